import type { StreamStore, StoredRecord } from './stream-store.ts'

const SIDE_BY_SIDE = 10
/** Records that each of them reads, one after the other. */
const STEPS = 10

/** Goes round all records of a stream, again and again, some at a time. */
export class StreamScan {
  readonly #records: StreamStore
  /** What is left of this round, in parts that are read side by side. */
  #parts: Array<{ from: number, end: number }> = []

  constructor (records: StreamStore) {
    this.#records = records
  }

  /** The next ones, a hundred at most. */
  async step (visit: (stored: StoredRecord) => Promise<void>, signal?: AbortSignal): Promise<void> {
    if (this.#parts.length === 0) this.#parts = await this.#divide()
    await Promise.all(this.#parts.map(part => this.#read(part, visit, signal)))
    this.#parts = this.#parts.filter(({ from, end }) => from < end)
  }

  async #read (part: { from: number, end: number }, visit: (stored: StoredRecord) => Promise<void>, signal?: AbortSignal): Promise<void> {
    for (let step = 0; step < STEPS && part.from < part.end; step++) {
      if (signal?.aborted) return
      const stored = await this.#records.next('>', part.from)
      part.from = stored ? stored.seq + 1 : part.end
      if (stored && stored.seq < part.end) await visit(stored)
    }
  }

  async #divide (): Promise<Array<{ from: number, end: number }>> {
    const { first, end, count } = await this.#records.span()
    const parts = Math.min(SIDE_BY_SIDE, Math.ceil(count / STEPS))
    const width = Math.ceil((end - first) / parts)
    return Array.from({ length: parts }, (_, at) => ({ from: first + at * width, end: Math.min(first + (at + 1) * width, end) }))
  }
}
