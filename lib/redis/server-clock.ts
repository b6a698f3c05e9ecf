/** A reading is replaced by a less accurate one once it is this old, because clocks drift. */
const MAX_AGE_MS = 60_000

/** A reading of the clock of Redis. */
interface Reading {
  /** The time at Redis when `performance.now()` was 0. That clock is monotonic, so setting the clock of this machine changes nothing. */
  origin: number
  roundTrip: number
  at: number
}

/** The clock of Redis. Nodes share its time, because their own clocks may differ. */
export class ServerClock {
  #reading: Reading | undefined

  /** The time at Redis in milliseconds; of this machine before the first reading. */
  now (): number {
    return this.#reading ? this.#reading.origin + performance.now() : Date.now()
  }

  /** Milliseconds by which it is ahead of the clock of this machine, rounded to seconds because a reading includes transit time. */
  get ahead (): number {
    return Math.round((this.now() - Date.now()) / 1_000) * 1_000
  }

  /** Records what Redis answered to a question that was sent at `sentAt`. */
  note (time: number, sentAt: number): void {
    const at = performance.now()
    const roundTrip = at - sentAt
    const isBetter = !this.#reading || roundTrip <= this.#reading.roundTrip || at - this.#reading.at > MAX_AGE_MS
    if (isBetter) this.#reading = { origin: time - (sentAt + at) / 2, roundTrip, at }
  }

  /** The next reading replaces this one: this machine may have been suspended, or connected to another server. */
  invalidate (): void {
    if (this.#reading) this.#reading.at = -Infinity
  }
}
