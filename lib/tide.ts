/** What has something that is to leave. */
export interface Holding {
  flush (): void
}

/**
 * When what was handed to the connections leaves: all that came up in one turn of the event loop, at its end. One pass over the
 * connections serves everyone who had something for them, and each of them costs one write.
 */
export class Tide {
  #holding: Holding[] = []

  /** Leaves with the next pass. */
  join (holding: Holding): void {
    if (this.#holding.push(holding) === 1) setImmediate(this.#pass)
  }

  readonly #pass = (): void => {
    const holding = this.#holding
    this.#holding = []
    for (const one of holding) one.flush()
  }
}
