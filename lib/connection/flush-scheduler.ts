/** Buffers output until it is flushed. */
export interface Flushable {
  /** Reads the state of the connection before the flush. */
  inspect (): void
  flush (): void
}

/**
 * Flushes output at the end of each turn of the event loop, so that all messages of one turn to one connection cost one write. After a
 * pass over many connections, the next pass waits for some turns: Node accepts only one new connection per turn, and the output of
 * several turns leaves together.
 */
export class FlushScheduler {
  #pending: Flushable[] = []
  /** Turns of the event loop before the next pass. */
  #turnsLeft = 0

  /** Flushes the target in the next pass. */
  schedule (target: Flushable): void {
    if (this.#pending.push(target) === 1) setImmediate(this.#pass)
  }

  readonly #pass = (): void => {
    if (this.#turnsLeft-- > 0) return void setImmediate(this.#pass)
    const targets = this.#pending
    this.#pending = []
    this.#turnsLeft = Math.floor(targets.length / FLUSHES_PER_TURN)
    for (let at = 0; at < targets.length; at += PREFETCHED_CONNECTIONS) {
      const group = targets.slice(at, at + PREFETCHED_CONNECTIONS)
      for (const target of group) target.inspect()
      for (const target of group) target.flush()
    }
  }
}

/** For each so many flushes of a pass, the next pass waits one turn of the event loop. */
const FLUSHES_PER_TURN = 128
/**
 * Connections that are inspected before the first of them is written to. They lie scattered in memory, and each write evicts others from
 * the caches of the processor: reads in a row overlap, reads between writes wait for each other.
 */
const PREFETCHED_CONNECTIONS = 32
