import { closeSync, constants, fstatSync, openSync, readSync, statSync, writeSync, type Stats } from 'node:fs'
import { crc32 } from 'node:zlib'

const DIGITS = 16
const CHECKSUM_DIGITS = 10
const LENGTH = 64

/**
 * How many batches are on the disk, in a file beside the database: from itself the database cannot tell that its newest writes are gone.
 * The file is written after each batch and not synced: it may lag behind the batches, and is never ahead of them.
 */
export class BatchCounter {
  /** As it was found; undefined where the file cannot be believed. */
  readonly count: number | undefined
  readonly #path: string
  readonly #file: number
  readonly #stats: Stats

  constructor (path: string) {
    this.#path = path
    this.#file = openSync(path, constants.O_RDWR | constants.O_CREAT, 0o600)
    const bytes = Buffer.alloc(LENGTH)
    this.count = countOf(bytes.toString('latin1', 0, readSync(this.#file, bytes, 0, LENGTH, 0)))
    this.#stats = fstatSync(this.#file)
  }

  /** False: the file that was opened is not the one under its path any more; its folder was removed or replaced. */
  get isInPlace (): boolean {
    try {
      const { dev, ino } = statSync(this.#path)
      return dev === this.#stats.dev && ino === this.#stats.ino
    } catch {
      return false
    }
  }

  record (count: number): void {
    try {
      writeSync(this.#file, lineOf(count), 0)
    } catch {} // it lags behind until the next batch
  }

  close (): void {
    closeSync(this.#file)
  }
}

function lineOf (count: number): string {
  const digits = String(count).padStart(DIGITS, '0')
  return `${digits} ${String(crc32(digits)).padStart(CHECKSUM_DIGITS, '0')}\n` // always as long, so that it replaces what was there
}

function countOf (line: string): number | undefined {
  if (line === '') return 0
  const count = Number(line.slice(0, DIGITS))
  return line === lineOf(count) ? count : undefined
}
