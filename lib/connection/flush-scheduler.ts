/** What has something that is to leave. */
export interface Flushable {
  /** Has a look at the connection, as the turn is over. */
  look (): void
  flush (): void
}

/**
 * When what was handed to the connections leaves: all that came up in one turn of the event loop, at its end. One pass over the
 * connections serves everyone who had something for them, and each of them costs one write. Where there were many, the event loop turns
 * some more before the next pass: in each turn Node takes in only one new connection, and whatever is on its way leaves together.
 */
export class FlushScheduler {
  #holding: Flushable[] = []
  /** Turns of the event loop that the next pass waits. */
  #turns = 0

  /** Leaves with the next pass. */
  join (holding: Flushable): void {
    if (this.#holding.push(holding) === 1) setImmediate(this.#pass)
  }

  readonly #pass = (): void => {
    if (this.#turns-- > 0) return void setImmediate(this.#pass)
    const holding = this.#holding
    this.#holding = []
    this.#turns = Math.floor(holding.length / FLUSHES_PER_TURN)
    for (let at = 0; at < holding.length; at += PREFETCHED_CONNECTIONS) {
      const some = holding.slice(at, at + PREFETCHED_CONNECTIONS)
      for (const one of some) one.look()
      for (const one of some) one.flush()
    }
  }
}

/** Connections written to, for which others get one turn. */
const FLUSHES_PER_TURN = 128
/**
 * Each connection lies elsewhere in memory, and a write drives others out of the processor's caches. It fetches several side by
 * side when it may look at them before it writes to the first, and waits for one after the other when not.
 */
const PREFETCHED_CONNECTIONS = 32
