/** Lets so much happen in one turn of the event loop; what is more waits for the next ones, in order. */
export class TurnLimiter {
  readonly #perTurn: number
  readonly #waiting: Array<() => void> = []
  #left: number
  #turning = false

  constructor (perTurn: number) {
    this.#perTurn = this.#left = perTurn
  }

  /** Resolves when it is the caller's turn; nothing, if it is now. */
  step (): Promise<void> | undefined {
    this.#turn()
    if (this.#left === 0) return new Promise(resolve => { this.#waiting.push(resolve) })
    this.#left--
    return undefined
  }

  #turn (): void {
    if (this.#turning) return
    this.#turning = true
    setImmediate(() => {
      this.#turning = false
      const next = this.#waiting.splice(0, this.#perTurn)
      this.#left = this.#perTurn - next.length
      if (next.length > 0) this.#turn()
      for (const resolve of next) resolve()
    })
  }
}
