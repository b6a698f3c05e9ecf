/** What all devices together have received, and who waits for it. */
export class ReceiveCounter {
  #frames = 0
  #bytes = 0
  #messageBytes = 0
  #goal = Infinity
  #reached = (): void => {}
  #sentAt = 0
  #delays: number[] | undefined

  /** Messages; a frame is one, unless its bytes tell how many it holds. */
  get received (): number {
    return this.#messageBytes > 0 ? this.#bytes / this.#messageBytes : this.#frames
  }

  /** Begins anew. */
  reset (unit = 0): void {
    this.#frames = this.#bytes = 0
    this.#messageBytes = unit
    this.#goal = Infinity
    this.#delays = undefined
  }

  /** Calls back once, when so many were received. */
  onReaching (goal: number, reached: () => void): void {
    this.#goal = goal
    this.#reached = reached
    this.check()
  }

  /** From now on each frame's delay since the last `start` is written down. */
  recordDelays (delays: number[]): void {
    this.#delays = delays
  }

  markSent (): void {
    this.#sentAt = performance.now()
  }

  addBytes (bytes: number): void {
    this.#bytes += bytes
  }

  /** A frame is complete. */
  addFrame (): void {
    this.#frames++
    this.#delays?.push(performance.now() - this.#sentAt)
  }

  /** After every read. */
  check (): void {
    if (this.received < this.#goal) return
    this.#goal = Infinity
    this.#reached()
  }
}
