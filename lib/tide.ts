/** What has something that is to leave. */
export interface Holding {
  flush (): void
}

/**
 * When what was handed to the connections leaves: all that came up in one turn of the event loop, at its end. One pass over the
 * connections serves everyone who had something for them, and each of them costs one write. What goes to many goes at once where
 * nothing came before it: that is a pass as well.
 */
export class Tide {
  #holding: Holding[] = []
  #isTurning = false

  /** True: the first of this turn, which need not be held. While one pass follows another, there is none. */
  opens (): boolean {
    if (this.#isTurning) return false
    this.#begin()
    return true
  }

  /** Leaves with the next pass. */
  join (holding: Holding): void {
    this.#holding.push(holding)
    if (!this.#isTurning) this.#begin()
  }

  #begin (): void {
    this.#isTurning = true
    setImmediate(this.#pass)
  }

  readonly #pass = (): void => {
    this.#isTurning = false
    const holding = this.#holding
    if (holding.length === 0) return
    this.#holding = []
    for (const one of holding) one.flush()
    this.#begin()
  }
}
