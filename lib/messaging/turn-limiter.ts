/** Limits how many steps run in one turn of the event loop. Further steps wait for the next turns, in order. */
export class TurnLimiter {
  readonly #stepsPerTurn: number
  readonly #waiting: Array<() => void> = []
  #remaining: number
  #isScheduled = false

  constructor (stepsPerTurn: number) {
    this.#stepsPerTurn = this.#remaining = stepsPerTurn
  }

  /** Resolves when the caller may go on; returns undefined if it may do so at once. */
  step (): Promise<void> | undefined {
    this.#schedule()
    if (this.#remaining === 0) return new Promise(resolve => { this.#waiting.push(resolve) })
    this.#remaining--
    return undefined
  }

  #schedule (): void {
    if (this.#isScheduled) return
    this.#isScheduled = true
    setImmediate(() => {
      this.#isScheduled = false
      const next = this.#waiting.splice(0, this.#stepsPerTurn)
      this.#remaining = this.#stepsPerTurn - next.length
      if (next.length > 0) this.#schedule()
      for (const resolve of next) resolve()
    })
  }
}
