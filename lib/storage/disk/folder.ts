import { chmod, mkdir, readdir } from 'node:fs/promises'
import { join } from 'node:path'
import { BatchCounter } from './batch-counter.ts'
import { lockFolder } from './lock.ts'
import { StartCounter } from './start-counter.ts'

export const BATCHES_FILE = 'batches'

/** A folder that no other process uses and no other user may read, with the counters that are kept beside the database. */
export class Folder {
  readonly path: string
  readonly batches: BatchCounter
  readonly starts: StartCounter
  readonly #unlock: () => Promise<void>

  private constructor (path: string, starts: StartCounter, unlock: () => Promise<void>) {
    this.path = path
    this.batches = new BatchCounter(join(path, BATCHES_FILE))
    this.starts = starts
    this.#unlock = unlock
  }

  /** Creates the folder if it does not exist; rejects if another process has it. */
  static async open (path: string): Promise<Folder> {
    await mkdir(path, { recursive: true, mode: 0o700 })
    await chmod(path, 0o700)
    const lock = await lockFolder(path)
    return new Folder(path, await StartCounter.open(path), () => lock.release())
  }

  /** False: it was removed or replaced. */
  get isInPlace (): boolean {
    return this.batches.isInPlace
  }

  /** LevelDB makes its files readable by all; the folder is not, and neither are they after this. */
  async seal (): Promise<void> {
    if (!this.isInPlace) return
    for (const entry of await readdir(this.path, { withFileTypes: true })) {
      await chmod(join(this.path, entry.name), entry.isDirectory() ? 0o700 : 0o600).catch(() => {})
    }
  }

  async close (): Promise<void> {
    await this.starts.close(this.isInPlace)
    this.batches.close()
    await this.#unlock()
  }
}
