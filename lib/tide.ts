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
  /** Turns of the event loop that must pass with nothing to do before it is quiet again. */
  #restless = 0

  /** True: it is quiet, and what goes to many need not be held. What comes while that is written is read a turn later, and leaves together. */
  opens (): boolean {
    if (this.#restless > 0) return false
    this.#begin()
    return true
  }

  /** Leaves with the next pass. */
  join (holding: Holding): void {
    this.#holding.push(holding)
    if (this.#restless === 0) this.#begin()
  }

  #begin (): void {
    this.#restless = RESTLESS
    setImmediate(this.#pass)
  }

  readonly #pass = (): void => {
    const holding = this.#holding
    this.#holding = []
    for (const one of holding) one.flush()
    if (holding.length > 0) return this.#begin()
    if (--this.#restless > 0) setImmediate(this.#pass)
  }
}

const RESTLESS = 2
