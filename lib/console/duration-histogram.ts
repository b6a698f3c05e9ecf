/** Bounds of the first bucket, and the factor between buckets: durations from 0.05 ms to more than ten minutes, each known to 5 %. */
const SMALLEST_MS = 0.05
const BUCKETS_PER_DOUBLING = 8
const BUCKETS = 200

/** How durations are distributed, in a fixed amount of memory whatever their number. */
export class DurationHistogram {
  readonly #buckets = new Uint32Array(BUCKETS)
  #count = 0

  get count (): number {
    return this.#count
  }

  /** Adds a duration in milliseconds. */
  add (duration: number): void {
    const bucket = Math.floor(Math.log2(duration / SMALLEST_MS) * BUCKETS_PER_DOUBLING)
    this.#buckets[Math.max(0, Math.min(BUCKETS - 1, bucket))]!++
    this.#count++
  }

  /** The duration in milliseconds that a share of all durations does not exceed; undefined without durations. */
  quantile (share: number): number | undefined {
    if (this.#count === 0) return undefined
    let left = Math.ceil(share * this.#count)
    const bucket = this.#buckets.findIndex(count => (left -= count) <= 0)
    return Number((SMALLEST_MS * 2 ** ((bucket + 0.5) / BUCKETS_PER_DOUBLING)).toPrecision(3))
  }

  clear (): void {
    this.#buckets.fill(0)
    this.#count = 0
  }
}
