export interface Expiry {
  deviceId: string
  letterId: string
  expiresAt: number
}

/** What expires later than this is for another look. */
const HORIZON = 7_200_000
const MAX_EXPIRIES = 100_000

/** Letters that expire before long, by the second in which they do. */
export class ExpiryIndex {
  readonly #now: () => number
  readonly #due = new Map<number, Map<string, Expiry>>()
  #size = 0

  constructor (now = Date.now) {
    this.#now = now
  }

  /** One that is too far ahead, or one too many, is not kept: somebody has to come by again. */
  add (reminder: Expiry): void {
    const { expiresAt } = reminder
    if (expiresAt > this.#now() + HORIZON || this.#size >= MAX_EXPIRIES) return
    const others = this.#due.get(secondOf(expiresAt)) ?? new Map<string, Expiry>()
    const before = others.size
    others.set(keyOf(reminder), reminder)
    this.#size += others.size - before
    this.#due.set(secondOf(expiresAt), others)
  }

  has (reminder: Expiry): boolean {
    return this.#due.get(secondOf(reminder.expiresAt))?.has(keyOf(reminder)) ?? false
  }

  remove (reminder: Expiry): void {
    const second = secondOf(reminder.expiresAt)
    const others = this.#due.get(second)
    if (!others?.delete(keyOf(reminder))) return
    this.#size--
    if (others.size === 0) this.#due.delete(second)
  }

  /** Those that have expired; they are still to be removed. */
  until (now: number): Expiry[] {
    const found: Expiry[] = []
    for (const [second, others] of this.#due) {
      if (second > secondOf(now)) continue
      for (const reminder of others.values()) if (reminder.expiresAt <= now) found.push(reminder)
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
