import type { Batch } from './batch.ts'
import { BEGIN, END, type Database } from './database.ts'

/** The files are merged only after so many deletions. */
const MIN_REMOVED_RECORDS = 10_000
/** Typical size of a record. */
const RECORD_BYTES = 256

interface Store {
  db: Database
  write: (fill: (batch: Batch) => void) => Promise<void>
}

/** Shrinks files with many deletions: LevelDB by itself merges files only while there are writes. */
export class Compactor {
  /** Deletions since the files were last merged. */
  #removed = 0
  /** LevelDB keeps the old files for reads that were open while it merged. */
  #mayHaveOldFiles = false
  #running: Promise<void> | undefined

  get running (): Promise<void> | undefined {
    return this.#running
  }

  countRemoved (records: number): void {
    this.#removed += records
  }

  /** Starts to merge or delete files, unless it is at it already, or has nothing to do. */
  start (store: Store): void {
    const ended = () => { this.#running = undefined }
    this.#running ??= this.#run(store).then(ended, ended) // the next write meets the same error
  }

  async #run ({ db, write }: Store): Promise<void> {
    if (await this.#isMergeDue(db)) {
      this.#removed = 0
      await flush(db)
      // LevelDB merges only tables with overlapping ranges, and these two keys span all of them
      await write(batch => {
        batch.del(BEGIN)
        batch.del(END)
      })
      await db.compactRange(BEGIN, END)
      this.#mayHaveOldFiles = true
    } else if (this.#mayHaveOldFiles) {
      this.#mayHaveOldFiles = false
      await flush(db)
    }
  }

  async #isMergeDue (db: Database): Promise<boolean> {
    if (this.#removed < MIN_REMOVED_RECORDS) return false
    return this.#removed * RECORD_BYTES >= await db.approximateSize(BEGIN, END) / 2
  }
}

/** Writes the memtable to a table. LevelDB then deletes the files that it no longer needs. */
async function flush (db: Database): Promise<void> {
  await db.compactRange(END, END)
}
