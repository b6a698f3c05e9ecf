import type { StreamStore } from './stream-store.ts'

/** How long a reading is valid. */
const REFRESH_INTERVAL_MS = 60_000
/** A reading that took longer is too inaccurate, and ignored. */
const MAX_ROUND_TRIP_MS = 1_000

/** The clock of NATS. Nodes share its time, because their own clocks may differ. */
export class ServerClock {
  readonly #records: StreamStore
  /** The time at NATS when `performance.now()` was 0. That clock is monotonic, so setting the clock of this machine changes nothing. */
  #origin: number | undefined
  #readAt = -Infinity
  #reading: Promise<void> | undefined

  constructor (records: StreamStore) {
    this.#records = records
  }

  /** Milliseconds by which it is ahead of the clock of this machine, rounded to seconds because a reading includes transit time. */
  get ahead (): number {
    if (this.#origin === undefined) return 0
    return Math.round((this.#origin + performance.now() - Date.now()) / 1_000) * 1_000
  }

  /** Reads the clock if the last reading is too old. */
  async refresh (): Promise<void> {
    if (performance.now() - this.#readAt < REFRESH_INTERVAL_MS) return
    this.#reading ??= this.#read().finally(() => { this.#reading = undefined })
    await this.#reading
  }

  /** The next `refresh` reads again: this machine may have been suspended, or connected to another NATS. */
  invalidate (): void {
    this.#readAt = -Infinity
  }

  async #read (): Promise<void> {
    const startedAt = performance.now()
    const time = await this.#records.time().catch(() => undefined) // NATS may be unreachable or full
    this.#readAt = performance.now()
    if (time === undefined || this.#readAt - startedAt > MAX_ROUND_TRIP_MS) return
    this.#origin = time - (startedAt + this.#readAt) / 2
  }
}
