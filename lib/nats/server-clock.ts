import type { StreamStore } from './stream-store.ts'

/** How long one look at it is good for. */
const REFRESH_INTERVAL_MS = 60_000
/** An answer that took longer tells no time. */
const MAX_ROUND_TRIP_MS = 1_000

/** The time at NATS: nodes go by it among themselves, whatever their own clocks say. */
export class ServerClock {
  readonly #records: StreamStore
  /** What time it was there when `performance.now()` was 0, which no change of this machine's clock moves. */
  #origin: number | undefined
  #readAt = -Infinity
  #reading: Promise<void> | undefined

  constructor (records: StreamStore) {
    this.#records = records
  }

  /** Milliseconds that it is ahead of the clock of this machine: whole seconds, as an answer takes its time, too. */
  get ahead (): number {
    if (this.#origin === undefined) return 0
    return Math.round((this.#origin + performance.now() - Date.now()) / 1_000) * 1_000
  }

  /** Looks at it, if the last look is too old. */
  async refresh (): Promise<void> {
    if (performance.now() - this.#readAt < REFRESH_INTERVAL_MS) return
    this.#reading ??= this.#read().finally(() => { this.#reading = undefined })
    await this.#reading
  }

  /** This machine may have stood still, or NATS may be another one. */
  doubt (): void {
    this.#readAt = -Infinity
  }

  async #read (): Promise<void> {
    const began = performance.now()
    const time = await this.#records.time().catch(() => undefined) // NATS may be away, or full
    this.#readAt = performance.now()
    if (time === undefined || this.#readAt - began > MAX_ROUND_TRIP_MS) return
    this.#origin = time - (began + this.#readAt) / 2
  }
}
