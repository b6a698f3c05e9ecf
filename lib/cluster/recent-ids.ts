/** Remembers at least this many of the last ids, and at most twice as many. */
const REMEMBERED_IDS = 5_000

/** The last ids, in two generations: where copies arrive close together, remembering these is enough to drop all but the first. */
export class RecentIds {
  #recent = new Set<string>()
  #older = new Set<string>()

  /** Whether the id is new. */
  add (id: string): boolean {
    if (this.#recent.has(id) || this.#older.has(id)) return false
    if (this.#recent.size === REMEMBERED_IDS) {
      this.#older = this.#recent
      this.#recent = new Set()
    }
    this.#recent.add(id)
    return true
  }
}
