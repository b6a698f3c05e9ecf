import { Failure } from './errors.ts'

const NEWLINE = 0x0a
const EMPTY: Buffer = Buffer.alloc(0)

/** Splits a byte stream into lines of limited length. An incomplete line takes no more memory than twice its length. */
export class LineSplitter {
  /** Maximum length of a line, in bytes. */
  limit: number
  #bytes = EMPTY
  #start = 0
  /** There is no newline before this offset. */
  #seen = 0
  #end = 0
  /** The bytes are a private copy with spare room at its end. */
  #isOwnCopy = false

  constructor (limit: number) {
    this.limit = limit
  }

  /** Bytes that have not been returned as a line yet. */
  get waiting (): number {
    return this.#end - this.#start
  }

  add (chunk: Buffer): void {
    if (this.waiting === 0) return this.#replace(chunk, false)
    if (!this.#isOwnCopy || this.#end + chunk.length > this.#bytes.length) this.#copy(this.waiting + chunk.length)
    this.#end += chunk.copy(this.#bytes, this.#end)
  }

  /** The next line, without its newline; undefined: it is not complete yet. Throws a `Failure` if it is too long. */
  next (): Buffer | undefined {
    const length = this.#bytes.subarray(this.#seen, this.#end).indexOf(NEWLINE)
    const start = this.#start
    const end = length === -1 ? this.#end : this.#seen + length
    if (end - start > this.limit) throw new Failure('too-large')
    this.#seen = end
    if (length === -1) return this.#releaseChunk()
    this.#start = this.#seen = end + 1
    return this.#bytes.subarray(start, end)
  }

  /** Drops a line that is too long. False: its end has not been received yet. */
  skip (): boolean {
    const length = this.#bytes.subarray(this.#seen, this.#end).indexOf(NEWLINE)
    if (length === -1) this.#replace(EMPTY, false)
    else this.#start = this.#seen += length + 1
    return length !== -1
  }

  /** Copies an incomplete line, so that the chunk, which may be large, can be freed. */
  #releaseChunk (): undefined {
    if (this.waiting === 0) this.#replace(EMPTY, false)
    else if (!this.#isOwnCopy) this.#copy(this.waiting)
  }

  #replace (bytes: Buffer, isOwnCopy: boolean): void {
    this.#bytes = bytes
    this.#end = bytes.length
    this.#start = this.#seen = 0
    this.#isOwnCopy = isOwnCopy
  }

  #copy (room: number): void {
    const bytes = Buffer.allocUnsafeSlow(Math.max(room, 2 * this.waiting))
    this.#end = this.#bytes.copy(bytes, 0, this.#start, this.#end)
    this.#seen -= this.#start
    this.#start = 0
    this.#bytes = bytes
    this.#isOwnCopy = true
  }
}
