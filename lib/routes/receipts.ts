import { Transform, type TransformCallback } from 'node:stream'
import { Failure } from '../errors.ts'
import type { Outbox, Sent } from '../outbox.ts'
import { Volley, type Addressed } from '../volley.ts'

/** Lines after which others get their turn. */
const BREATH = 256
const NEWLINE = 0x0a

interface Reading {
  outbox: Outbox
  read (text: string): Addressed | Failure
  maxLength: number
  signal: AbortSignal
}

/** Turns a stream of lines into one of receipts, in order. No faster than either side: lines wait for receipts to be taken. */
export class Receipts extends Transform {
  readonly #read: Reading['read']
  readonly #cutter: Cutter
  readonly #volley: Volley
  /** Not begun yet. */
  #lines: Array<string | Failure> = []
  #at = 0
  #begun = 0
  #isLast = false
  #isBreathing = false
  #done: TransformCallback | undefined
  /** Not told yet. */
  #text = ''

  constructor ({ outbox, read, maxLength, signal }: Reading) {
    super()
    this.#read = read
    this.#cutter = new Cutter(maxLength)
    this.#volley = new Volley(outbox, () => { if (!this.#isBreathing) this.#go() }, signal)
  }

  override _transform (chunk: Buffer, _encoding: BufferEncoding, done: TransformCallback): void {
    this.#begin(this.#cutter.cut(chunk), done)
  }

  override _flush (done: TransformCallback): void {
    this.#isLast = true
    this.#begin(this.#cutter.rest(), done)
  }

  #begin (lines: Array<string | Failure>, done: TransformCallback): void {
    this.#lines = lines
    this.#at = 0
    this.#done = done
    this.#go()
  }

  /** Begins with the lines that there is room for, and tells what is known. */
  #go (): void {
    if (this.destroyed) return
    for (this.#collect(); this.#at < this.#lines.length && !this.#volley.isFull; this.#collect()) {
      const line = this.#lines[this.#at++]!
      this.#volley.add(line instanceof Failure ? line : this.#read(line))
      if (++this.#begun % BREATH === 0) return this.#breathe()
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

function receiptOf (outcome: Sent | Failure): object {
  if (!(outcome instanceof Failure)) return outcome
  const { statusCode, code, message, device } = outcome
  return { statusCode, code, message, ...(device && { device }) }
}

/** Cuts text into lines and leaves the empty ones out; one that is too long is a failure, and is not kept. */
class Cutter {
  readonly #maxLength: number
  /** What has come of the last line. */
  #parts: Buffer[] = []
  #length = 0

  constructor (maxLength: number) {
    this.#maxLength = maxLength
  }

  cut (chunk: Buffer): Array<string | Failure> {
    const lines: Array<string | Failure> = []
    let start = 0
    for (let end = chunk.indexOf(NEWLINE); end !== -1; end = chunk.indexOf(NEWLINE, start)) {
      const line = this.#length === 0 ? this.#lineOf(chunk, start, end) : this.#whole(chunk.subarray(start, end))
      if (line !== '') lines.push(line)
      start = end + 1
    }
    this.#keep(chunk.subarray(start))
    return lines
  }

  /** The last line, which has no end. */
  rest (): Array<string | Failure> {
    const line = this.#whole(Buffer.alloc(0))
    return line === '' ? [] : [line]
  }

  #whole (end: Buffer): string | Failure {
    this.#keep(end)
    const bytes = Buffer.concat(this.#parts)
    const line = this.#length > this.#maxLength ? new Failure('too-large') : this.#lineOf(bytes, 0, bytes.length)
    this.#parts = []
    this.#length = 0
    return line
  }

  #lineOf (bytes: Buffer, start: number, end: number): string | Failure {
    return end - start > this.#maxLength ? new Failure('too-large') : bytes.toString('utf8', start, end).trim()
  }

  #keep (part: Buffer): void {
    this.#length += part.length
    if (this.#length <= this.#maxLength) this.#parts.push(part)
    else this.#parts = []
  }
}
