import type { StreamStore, StoredRecord } from './stream-store.ts'

const CONCURRENCY = 10
/** Records that each part reads per step. */
const RECORDS_PER_PART = 10

/** A range of positions: from the first to before the end. */
interface ScanPart {
  from: number
  end: number
}

/** Scans all records of a stream in small steps, and starts over at the end. */
export class StreamScan {
  readonly #records: StreamStore
  /** The rest of the current scan, in parts that are read concurrently. */
  #parts: ScanPart[] = []

  constructor (records: StreamStore) {
    this.#records = records
  }

  /** Visits the next records, at most a hundred. */
  async step (visit: (stored: StoredRecord) => Promise<void>, signal?: AbortSignal): Promise<void> {
    if (this.#parts.length === 0) this.#parts = await this.#divide()
    await Promise.all(this.#parts.map(part => this.#read(part, visit, signal)))
    this.#parts = this.#parts.filter(({ from, end }) => from < end)
  }

  async #read (part: ScanPart, visit: (stored: StoredRecord) => Promise<void>, signal?: AbortSignal): Promise<void> {
    for (let count = 0; count < RECORDS_PER_PART && part.from < part.end; count++) {
      if (signal?.aborted) return
      const stored = await this.#records.next('>', part.from)
      part.from = stored ? stored.seq + 1 : part.end
      if (stored && stored.seq < part.end) await visit(stored)
    }
  }

  async #divide (): Promise<ScanPart[]> {
    const { first, end, count } = await this.#records.span()
    const parts = Math.min(CONCURRENCY, Math.ceil(count / RECORDS_PER_PART))
    const width = Math.ceil((end - first) / parts)
    return Array.from({ length: parts }, (_, index) => ({ from: first + index * width, end: Math.min(first + (index + 1) * width, end) }))
  }
}
