/** What has something that is to leave. */
export interface Holding {
  flush (): void
}

/**
 * When what was handed to the connections leaves: all of one tick in one write. What goes to many goes at once as well, but while
 * one broadcast follows another, those of one turn of the event loop leave together: one pass over the connections serves them all.
 */
export class Tide {
  #soon: Holding[] = []
  #together: Holding[] = []
  #passing = false

  /** Leaves at the end of this tick. */
  soon (holding: Holding): void {
    if (this.#soon.push(holding) === 1) process.nextTick(this.#flushSoon)
  }

  /** Leaves with the next pass. */
  together (holding: Holding): void {
    if (this.#together.push(holding) === 1 && !this.#passing) process.nextTick(this.#pass)
  }

  readonly #flushSoon = (): void => {
    const soon = this.#soon
    this.#soon = []
    for (const holding of soon) holding.flush()
  }

  readonly #pass = (): void => {
    const together = this.#together
    this.#together = []
    for (const holding of together) holding.flush()
    this.#passing = true
    setImmediate(this.#turned)
  }

  readonly #turned = (): void => {
    this.#passing = false
    if (this.#together.length > 0) this.#pass()
  }
}
