/** What all devices together have received, and who waits for it. */
export class Tally {
  #frames = 0
  #bytes = 0
  #unit = 0
  #goal = Infinity
  #reached = (): void => {}
  #since = 0
  #delays: number[] | undefined

  /** Messages; a frame is one, unless its bytes tell how many it holds. */
  get received (): number {
    return this.#unit > 0 ? this.#bytes / this.#unit : this.#frames
  }

  /** Begins anew. */
  reset (unit = 0): void {
    this.#frames = this.#bytes = 0
    this.#unit = unit
    this.#goal = Infinity
    this.#delays = undefined
  }

  /** Calls back once, when so many were received. */
  when (goal: number, reached: () => void): void {
    this.#goal = goal
    this.#reached = reached
    this.look()
  }

  /** From now on each frame's delay since the last `start` is written down. */
  time (delays: number[]): void {
    this.#delays = delays
  }

  start (): void {
    this.#since = performance.now()
  }

  payload (bytes: number): void {
    this.#bytes += bytes
  }

  /** A frame is complete. */
  frame (): void {
    this.#frames++
    this.#delays?.push(performance.now() - this.#since)
  }

  /** After every read. */
  look (): void {
    if (this.received < this.#goal) return
    this.#goal = Infinity
    this.#reached()
  }
}
