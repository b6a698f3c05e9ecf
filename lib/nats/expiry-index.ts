export interface Expiry {
  deviceId: string
  letterId: string
  expiresAt: number
}

/** Later expiries are not indexed; the next scan over all letters finds them in time. */
const HORIZON_MS = 7_200_000
const MAX_EXPIRIES = 100_000

/** The letters that expire soon, by the second of their expiry. */
export class ExpiryIndex {
  readonly #now: () => number
  readonly #bySecond = new Map<number, Map<string, Expiry>>()
  #size = 0

  constructor (now = Date.now) {
    this.#now = now
  }

  /** Ignores an expiry beyond the horizon or the maximum: the scan over all letters adds it later. */
  add (expiry: Expiry): void {
    const { expiresAt } = expiry
    if (expiresAt > this.#now() + HORIZON_MS || this.#size >= MAX_EXPIRIES) return
    const expiries = this.#bySecond.get(secondOf(expiresAt)) ?? new Map<string, Expiry>()
    const sizeBefore = expiries.size
    expiries.set(keyOf(expiry), expiry)
    this.#size += expiries.size - sizeBefore
    this.#bySecond.set(secondOf(expiresAt), expiries)
  }

  has (expiry: Expiry): boolean {
    return this.#bySecond.get(secondOf(expiry.expiresAt))?.has(keyOf(expiry)) ?? false
  }

  remove (expiry: Expiry): void {
    const second = secondOf(expiry.expiresAt)
    const expiries = this.#bySecond.get(second)
    if (!expiries?.delete(keyOf(expiry))) return
    this.#size--
    if (expiries.size === 0) this.#bySecond.delete(second)
  }

  /** The letters that have expired by `now`, oldest first. They stay in the index until removed. */
  until (now: number): Expiry[] {
    const found: Expiry[] = []
    for (const [second, expiries] of this.#bySecond) {
      if (second > secondOf(now)) continue
      for (const expiry of expiries.values()) if (expiry.expiresAt <= now) found.push(expiry)
    }
    return found.toSorted((one, other) => one.expiresAt - other.expiresAt)
  }
}

function keyOf ({ deviceId, letterId }: Expiry): string {
  return `${deviceId} ${letterId}`
}

function secondOf (time: number): number {
  return Math.floor(time / 1_000)
}
