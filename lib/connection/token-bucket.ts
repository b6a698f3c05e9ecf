/** How fast a token bucket fills, and how much it holds. */
export interface RateLimit {
  /** Each second. */
  rate: number
  burst: number
}

/** A token bucket: counts without a timer, and knows how far its owner has gone beyond. */
export class TokenBucket {
  readonly #pace: RateLimit
  #tokens: number
  #filledAt: number
  #excess = 0

  constructor (pace: RateLimit, now: number) {
    this.#pace = pace
    this.#tokens = pace.burst
    this.#filledAt = now
  }

  /** What was asked for beyond the pace, less what was within it since. */
  get excess (): number {
    return this.#excess
  }

  /** Takes `count` tokens if they are there. */
  take (count: number, now: number): boolean {
    const { rate, burst } = this.#pace
    // a clock that is set back takes nothing out
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

  /** Takes `count` tokens for a message that has been accepted. The bucket may go below zero, by `burst` at most. */
  charge (count: number): void {
    this.#tokens = Math.max(this.#tokens - Math.max(count, 0), -this.#pace.burst)
  }
}
