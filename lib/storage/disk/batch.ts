import { withChecksum } from './checksum.ts'
import type { Database } from './database.ts'

/** The record that tells which batch was the last. */
export const BATCH = 'batch'

/** Changes that are written and synced together. They are filled in one by one: as one list they cost more than twice as much. */
export class Batch {
  /** Records that were removed. */
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

  /** All that one batch has for a list becomes one record, its items a line each. */
  list (list: string, item: string): void {
    const items = this.#lists.get(list)
    this.#lists.set(list, items === undefined ? item : `${items}\n${item}`)
  }

  /** Of all that one batch has for a mark the last becomes its record. */
  mark (key: string, value: number): void {
    this.#marks.set(key, value)
  }

  async write (): Promise<void> {
    for (const [key, value] of this.#marks) this.put(key, String(value))
    for (const [list, items] of this.#lists) this.put(`${list}!${this.#number}`, items)
    this.put(BATCH, String(this.#number))
    await this.#batch.write({ sync: true })
  }
}
