import { readFile, writeFile } from 'node:fs/promises'
import { join } from 'node:path'

/** A process that has run for so long did not fail at its start. */
const SETTLED_AFTER_MS = 60_000
const MAX_FAILED_STARTS = 2

/**
 * Counts consecutive processes that ended soon after their start and without `close`, in a file. LevelDB ends its process when it reads or merges certain
 * damage, and would do so at each start.
 */
export class StartCounter {
  /** Whether the files must be checked before they are opened again. */
  readonly isCheckDue: boolean
  readonly #file: string
  readonly #timer: NodeJS.Timeout

  private constructor (file: string, isCheckDue: boolean) {
    this.#file = file
    this.isCheckDue = isCheckDue
    this.#timer = setTimeout(() => void this.#reset(), SETTLED_AFTER_MS).unref()
  }

  static async open (path: string): Promise<StartCounter> {
    const file = join(path, 'starts')
    const failed = Number(await readFile(file, 'latin1').catch(() => '0')) || 0
    const isCheckDue = failed >= MAX_FAILED_STARTS
    await writeFile(file, isCheckDue ? '1' : String(failed + 1), { mode: 0o600 })
    return new StartCounter(file, isCheckDue)
  }

  async close (isInPlace: boolean): Promise<void> {
    clearTimeout(this.#timer)
    if (isInPlace) await this.#reset()
  }

  /** If the counter cannot be written, the files are checked once more than needed. */
  async #reset (): Promise<void> {
    await writeFile(this.#file, '0').catch(() => {})
  }
}
