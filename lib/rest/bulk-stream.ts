import { AsyncLocalStorage } from 'node:async_hooks'
import { Transform, type TransformCallback } from 'node:stream'
import { Failure } from '../protocol/errors.ts'
import { LineSplitter } from '../protocol/line-splitter.ts'
import type { RequestLike } from '../protocol/request-context.ts'
import type { Dispatcher, SendResult } from '../messaging/dispatcher.ts'
import { BulkSender, type BulkMessage } from '../messaging/bulk.ts'

/** Lines sent before the stream yields to the event loop. */
const LINES_PER_TURN = 256
const END_OF_LINE = Buffer.from('\n')

interface BulkStreamOptions {
  dispatcher: Dispatcher
  parse (text: string): BulkMessage | Failure | Promise<BulkMessage | Failure>
  maxLength: number
  signal: AbortSignal
  request?: RequestLike
}

/** Transforms lines of messages into lines of receipts, in order. Backpressure goes through: it reads no line before there is room for its send. */
export class BulkStream extends Transform {
  readonly #parse: BulkStreamOptions['parse']
  readonly #splitter: LineSplitter
  /** The current line is too long: skip to its end. */
  #isSkipping = false
  readonly #sender: BulkSender
  /** The chunks of a body arrive outside the asynchronous context of its request, which holds the active span. */
  readonly #inContextOfRequest = AsyncLocalStorage.snapshot()
  /** The lines of the current chunk; those from `#next` on are not sent yet. */
  #lines: Array<string | Failure> = []
  #next = 0
  #sentLines = 0
  #isLast = false
  #isYielding = false
  #chunkDone: TransformCallback | undefined
  /** Receipts that are not pushed yet. */
  #receipts = ''

  constructor ({ dispatcher, parse, maxLength, signal, request }: BulkStreamOptions) {
    super()
    this.#parse = parse
    this.#splitter = new LineSplitter(maxLength)
    this.#sender = new BulkSender(dispatcher, () => { if (!this.#isYielding) this.#advance() }, { signal, request })
  }

  override _transform (chunk: Buffer, _encoding: BufferEncoding, done: TransformCallback): void {
    this.#process(chunk, done)
  }

  override _flush (done: TransformCallback): void {
    this.#isLast = true
    this.#process(END_OF_LINE, done)
  }

  #process (chunk: Buffer, done: TransformCallback): void {
    this.#lines = this.#split(chunk)
    this.#next = 0
    this.#chunkDone = done
    this.#inContextOfRequest(() => this.#advance())
  }

  /** The lines that end in this chunk, without the empty ones. */
  #split (chunk: Buffer): Array<string | Failure> {
    const lines: Array<string | Failure> = []
    this.#splitter.add(chunk)
    for (let line = this.#readLine(); line !== undefined; line = this.#readLine()) if (line !== '') lines.push(line)
    return lines
  }

  #readLine (): string | Failure | undefined {
    if (this.#isSkipping && !this.#splitter.skip()) return undefined
    this.#isSkipping = false
    try {
      return this.#splitter.next()?.toString().trim()
    } catch (error) {
      this.#isSkipping = true
      return error as Failure
    }
  }

  /** Sends as many lines as there is room for, and pushes the receipts that have arrived. */
  #advance (): void {
    if (this.destroyed) return
    for (this.#collect(); this.#next < this.#lines.length && !this.#sender.isFull; this.#collect()) {
      const line = this.#lines[this.#next++]!
      this.#sender.add(line instanceof Failure ? line : this.#parse(line))
      if (++this.#sentLines % LINES_PER_TURN === 0) return this.#yieldTurn()
    }
    this.#pushReceipts()
    if (this.#next < this.#lines.length || (this.#isLast && !this.#sender.isEmpty)) return
    const done = this.#chunkDone
    this.#chunkDone = undefined
    done?.()
  }

  #yieldTurn (): void {
    this.#isYielding = true
    setImmediate(() => {
      this.#isYielding = false
      this.#advance()
    })
  }

  #collect (): void {
    for (let outcome = this.#sender.take(); outcome; outcome = this.#sender.take()) this.#receipts += `${JSON.stringify(receiptOf(outcome))}\n`
  }

  #pushReceipts (): void {
    if (this.#receipts !== '') this.push(this.#receipts)
    this.#receipts = ''
  }
}

function receiptOf (outcome: SendResult | Failure): object {
  if (!(outcome instanceof Failure)) return outcome
  const { statusCode, code, message, device } = outcome
  return { statusCode, code, message, ...(device && { device }) }
}
