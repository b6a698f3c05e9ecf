import { closeSync, constants, fstatSync, openSync, readSync, statSync, writeSync, type Stats } from 'node:fs'
import { crc32 } from 'node:zlib'

const COUNT_DIGITS = 16
const CHECKSUM_DIGITS = 10
const MAX_FILE_BYTES = 64

/**
 * Counts the batches on disk in a file beside the database, because the database cannot notice that its newest writes are missing.
 * The file is written after each batch and not synced: it may lag behind the batches, but is never ahead of them.
 */
export class BatchCounter {
  /** The count at opening; undefined if the file is damaged. */
  readonly count: number | undefined
  readonly #path: string
  readonly #file: number
  readonly #stats: Stats

  constructor (path: string) {
    this.#path = path
    this.#file = openSync(path, constants.O_RDWR | constants.O_CREAT, 0o600)
    const bytes = Buffer.alloc(MAX_FILE_BYTES)
    this.count = countOf(bytes.toString('latin1', 0, readSync(this.#file, bytes, 0, MAX_FILE_BYTES, 0)))
    this.#stats = fstatSync(this.#file)
  }

  /** False: another file, or none, is under its path; its folder was removed or replaced. */
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
  const digits = String(count).padStart(COUNT_DIGITS, '0')
  return `${digits} ${String(crc32(digits)).padStart(CHECKSUM_DIGITS, '0')}\n` // fixed length, so that it overwrites the previous line
}

function countOf (line: string): number | undefined {
  if (line === '') return 0
  const count = Number(line.slice(0, COUNT_DIGITS))
  return line === lineOf(count) ? count : undefined
}
