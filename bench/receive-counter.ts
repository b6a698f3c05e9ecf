/** Counts what all devices receive, and calls back at a given number of messages. */
export class ReceiveCounter {
  #frames = 0
  #bytes = 0
  #messageBytes = 0
  #goal = Infinity
  #reached = (): void => {}
  #sentAt = 0
  #delays: number[] | undefined

  /** Number of messages: one per frame, or by size where a frame may hold several. */
  get received (): number {
    return this.#messageBytes > 0 ? this.#bytes / this.#messageBytes : this.#frames
  }

  reset (unit = 0): void {
    this.#frames = this.#bytes = 0
    this.#messageBytes = unit
    this.#goal = Infinity
    this.#delays = undefined
  }

  /** Calls back once this many messages have been received. */
  onReaching (goal: number, reached: () => void): void {
    this.#goal = goal
    this.#reached = reached
    this.check()
  }

  /** Records the delay of each frame since the last `markSent`. */
  recordDelays (delays: number[]): void {
    this.#delays = delays
  }

  markSent (): void {
    this.#sentAt = performance.now()
  }

  addBytes (bytes: number): void {
    this.#bytes += bytes
  }

  /** Counts a complete frame. */
  addFrame (): void {
    this.#frames++
    this.#delays?.push(performance.now() - this.#sentAt)
  }

  /** Calls back if the goal is reached; to be called after every read. */
  check (): void {
    if (this.received < this.#goal) return
    this.#goal = Infinity
    this.#reached()
  }
}
