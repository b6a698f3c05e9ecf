import { readFile, writeFile } from 'node:fs/promises'
import { join } from 'node:path'

/** After so long, a start is not one of those that end at once. */
const SETTLED_AFTER_MS = 60_000
const MAX_FAILED_STARTS = 2

/**
 * Counts the starts in a row that ended soon and without `close`, in a file. LevelDB ends its process over some damage, when it reads or merges it, and would do so
 * at each start.
 */
export class StartCounter {
  /** Whether the files must be checked before they are opened once more. */
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

  /** A counter that cannot be written has the files checked once too often. */
  async #reset (): Promise<void> {
    await writeFile(this.#file, '0').catch(() => {})
  }
}
