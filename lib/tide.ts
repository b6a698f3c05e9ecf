/** What has something that is to leave. */
export interface Holding {
  flush (): void
}

/**
 * When what was handed to the connections leaves: all of one tick in one write. What goes to many goes at once, but while one
 * broadcast follows another, those of one turn of the event loop leave together: one pass over the connections serves them all.
 */
export class Tide {
  #soon: Holding[] = []
  #together: Holding[] = []
  #passing = false

  /** Leaves at the end of this tick. */
  soon (holding: Holding): void {
    if (this.#soon.push(holding) === 1) process.nextTick(this.#flushSoon)
  }

  /** True: the first for many in this turn, which need not be held. What follows it leaves with the next pass. */
  opens (): boolean {
    if (this.#passing) return false
    this.#begin()
    return true
  }

  /** Leaves with the next pass. */
  together (holding: Holding): void {
    this.#together.push(holding)
  }

  readonly #flushSoon = (): void => {
    const soon = this.#soon
    this.#soon = []
    for (const holding of soon) holding.flush()
  }

  #begin (): void {
    this.#passing = true
    setImmediate(this.#turned)
  }

  readonly #turned = (): void => {
    this.#passing = false
    const together = this.#together
    if (together.length === 0) return
    this.#together = []
    for (const holding of together) holding.flush()
    this.#begin()
  }
}
