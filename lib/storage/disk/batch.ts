import { withChecksum } from './checksum.ts'
import type { Database } from './database.ts'

/** The record with the number of the newest batch. */
export const BATCH_KEY = 'batch'

/** Changes that are written and synced together. They are added one by one: passing an array to LevelDB costs more than twice as much. */
export class Batch {
  /** Number of deletions. */
  removed = 0
  readonly #batch: ReturnType<Database['batch']>
  readonly #number: number
  readonly #lists = new Map<string, string>()
  readonly #marks = new Map<string, number>()

  constructor (db: Database, number: number) {
    this.#batch = db.batch()
    this.#number = number
  }

  put (key: string, value: string | Uint8Array): void {
    this.#batch.put(key, withChecksum(key, value))
  }

  del (key: string): void {
    this.#batch.del(key)
    this.removed++
  }

  /** The items of one batch for a list become one record, an item a line. */
  list (list: string, item: string): void {
    const items = this.#lists.get(list)
    this.#lists.set(list, items === undefined ? item : `${items}\n${item}`)
  }

  /** A number of which only the last value in the batch is written. */
  mark (key: string, value: number): void {
    this.#marks.set(key, value)
  }

  async write (): Promise<void> {
    for (const [key, value] of this.#marks) this.put(key, String(value))
    for (const [list, items] of this.#lists) this.put(`${list}!${this.#number}`, items)
    this.put(BATCH_KEY, String(this.#number))
    await this.#batch.write({ sync: true })
  }
}
