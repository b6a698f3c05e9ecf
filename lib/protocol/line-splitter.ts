import { Failure } from './errors.ts'

const NEWLINE = 0x0a
const NOTHING: Buffer = Buffer.alloc(0)

/** Bytes cut into lines, none longer than allowed. What has come of a line takes no more room than twice its length. */
export class LineSplitter {
  /** How long a line may be. */
  limit: number
  #bytes = NOTHING
  #start = 0
  /** Up to here there is no newline. */
  #seen = 0
  #end = 0
  /** The bytes are a copy of ours, with room behind them. */
  #isOurs = false

  constructor (limit: number) {
    this.limit = limit
  }

  /** Bytes that no line has been taken of yet. */
  get waiting (): number {
    return this.#end - this.#start
  }

  add (chunk: Buffer): void {
    if (this.waiting === 0) return this.#hold(chunk, false)
    if (!this.#isOurs || this.#end + chunk.length > this.#bytes.length) this.#copy(this.waiting + chunk.length)
    this.#end += chunk.copy(this.#bytes, this.#end)
  }

  /** The next line, without its end; undefined: it has not come yet. Throws a `Failure` when it is too long. */
  next (): Buffer | undefined {
    const length = this.#bytes.subarray(this.#seen, this.#end).indexOf(NEWLINE)
    const start = this.#start
    const end = length === -1 ? this.#end : this.#seen + length
    if (end - start > this.limit) throw new Failure('too-large')
    this.#seen = end
    if (length === -1) return this.#wait()
    this.#start = this.#seen = end + 1
    return this.#bytes.subarray(start, end)
  }

  /** Drops what has come of a line that is too long. False: its end has not come yet. */
  skip (): boolean {
    const length = this.#bytes.subarray(this.#seen, this.#end).indexOf(NEWLINE)
    if (length === -1) this.#hold(NOTHING, false)
    else this.#start = this.#seen += length + 1
    return length !== -1
  }

  /** Nothing is kept of the chunk, which may be large. */
  #wait (): undefined {
    if (this.waiting === 0) this.#hold(NOTHING, false)
    else if (!this.#isOurs) this.#copy(this.waiting)
  }

  #hold (bytes: Buffer, isOurs: boolean): void {
    this.#bytes = bytes
    this.#end = bytes.length
    this.#start = this.#seen = 0
    this.#isOurs = isOurs
  }

  #copy (room: number): void {
    const bytes = Buffer.allocUnsafeSlow(Math.max(room, 2 * this.waiting))
    this.#end = this.#bytes.copy(bytes, 0, this.#start, this.#end)
    this.#seen -= this.#start
    this.#start = 0
    this.#bytes = bytes
    this.#isOurs = true
  }
}
