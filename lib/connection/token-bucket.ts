/** The rate at which a token bucket fills, and its capacity. */
export interface RateLimit {
  /** Tokens per second. */
  rate: number
  /** Capacity in tokens. */
  burst: number
}

/** A token bucket that needs no timer, and measures by how much its limit has been exceeded. */
export class TokenBucket {
  readonly #limit: RateLimit
  #tokens: number
  #filledAt: number
  #excess = 0

  constructor (limit: RateLimit, now: number) {
    this.#limit = limit
    this.#tokens = limit.burst
    this.#filledAt = now
  }

  /** Tokens that were refused, less those that were granted since. */
  get excess (): number {
    return this.#excess
  }

  /** Takes `count` tokens; false if there are fewer, and then it takes none. */
  take (count: number, now: number): boolean {
    const { rate, burst } = this.#limit
    // a clock that is set back removes no tokens
    this.#tokens = Math.min(burst, this.#tokens + Math.max(0, now - this.#filledAt) / 1_000 * rate)
    this.#filledAt = now
    if (this.#tokens < count) {
      this.#excess += count
      return false
    }
    this.#tokens -= count
    this.#excess = Math.max(0, this.#excess - count)
    return true
  }

  /** Charges `count` tokens for a message that has already been accepted. The balance may fall below zero, by `burst` at most. */
  charge (count: number): void {
    this.#tokens = Math.max(this.#tokens - Math.max(count, 0), -this.#limit.burst)
  }
}
