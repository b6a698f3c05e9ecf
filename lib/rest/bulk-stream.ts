import { Transform, type TransformCallback } from 'node:stream'
import { Failure } from '../protocol/errors.ts'
import { LineSplitter } from '../protocol/line-splitter.ts'
import type { Dispatcher, SendResult } from '../messaging/dispatcher.ts'
import { BulkSender, type BulkMessage } from '../messaging/bulk.ts'

/** Lines after which others get their turn. */
const YIELD_AFTER = 256
const END_OF_LINE = Buffer.from('\n')

interface Reading {
  dispatcher: Dispatcher
  read (text: string): BulkMessage | Failure
  maxLength: number
  signal: AbortSignal
}

/** Turns a stream of lines into one of receipts, in order. No faster than either side: lines wait for receipts to be taken. */
export class BulkStream extends Transform {
  readonly #read: Reading['read']
  readonly #bytes: LineSplitter
  /** The rest of a line that is too long is to be skipped. */
  #isTooLong = false
  readonly #volley: BulkSender
  /** Not begun yet. */
  #lines: Array<string | Failure> = []
  #at = 0
  #begun = 0
  #isLast = false
  #isBreathing = false
  #done: TransformCallback | undefined
  /** Not told yet. */
  #text = ''

  constructor ({ dispatcher, read, maxLength, signal }: Reading) {
    super()
    this.#read = read
    this.#bytes = new LineSplitter(maxLength)
    this.#volley = new BulkSender(dispatcher, () => { if (!this.#isBreathing) this.#go() }, signal)
  }

  override _transform (chunk: Buffer, _encoding: BufferEncoding, done: TransformCallback): void {
    this.#begin(chunk, done)
  }

  override _flush (done: TransformCallback): void {
    this.#isLast = true
    this.#begin(END_OF_LINE, done)
  }

  #begin (chunk: Buffer, done: TransformCallback): void {
    this.#lines = this.#split(chunk)
    this.#at = 0
    this.#done = done
    this.#go()
  }

  /** The lines that end in this chunk, without the empty ones. */
  #split (chunk: Buffer): Array<string | Failure> {
    const lines: Array<string | Failure> = []
    this.#bytes.add(chunk)
    for (let line = this.#next(); line !== undefined; line = this.#next()) if (line !== '') lines.push(line)
    return lines
  }

  #next (): string | Failure | undefined {
    if (this.#isTooLong && !this.#bytes.skip()) return undefined
    this.#isTooLong = false
    try {
      return this.#bytes.next()?.toString().trim()
    } catch (error) {
      this.#isTooLong = true
      return error as Failure
    }
  }

  /** Begins with the lines that there is room for, and tells what is known. */
  #go (): void {
    if (this.destroyed) return
    for (this.#collect(); this.#at < this.#lines.length && !this.#volley.isFull; this.#collect()) {
      const line = this.#lines[this.#at++]!
      this.#volley.add(line instanceof Failure ? line : this.#read(line))
      if (++this.#begun % YIELD_AFTER === 0) return this.#breathe()
    }
    this.#tell()
    if (this.#at < this.#lines.length || (this.#isLast && !this.#volley.isEmpty)) return
    const done = this.#done
    this.#done = undefined
    done?.()
  }

  #breathe (): void {
    this.#isBreathing = true
    setImmediate(() => {
      this.#isBreathing = false
      this.#go()
    })
  }

  #collect (): void {
    for (let outcome = this.#volley.take(); outcome; outcome = this.#volley.take()) this.#text += `${JSON.stringify(receiptOf(outcome))}\n`
  }

  #tell (): void {
    if (this.#text !== '') this.push(this.#text)
    this.#text = ''
  }
}

function receiptOf (outcome: SendResult | Failure): object {
  if (!(outcome instanceof Failure)) return outcome
  const { statusCode, code, message, device } = outcome
  return { statusCode, code, message, ...(device && { device }) }
}
