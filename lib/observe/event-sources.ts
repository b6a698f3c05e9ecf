import type { BatchHeader } from './event-batch.ts'

/** In announcement intervals: a node answers each announcement, and is gone after this silence. */
const SILENCE = 2.5
/**
 * The same: until then any publication may be the first one heard of its source; later the first one has number 1. No longer than the silence: a node
 * that is back after it was gone is not heard for the first time.
 */
const FIRST_CONTACT = SILENCE

interface EventSource {
  node: string
  sequence: number
  heardAt: number
}

/** The other nodes that publish events, and the sequence number of each: shows which have publications missing. */
export class EventSources {
  readonly #sources = new Map<string, EventSource>()
  readonly #announceMs: number
  #startedAt = performance.now()

  constructor (announceMs: number) {
    this.#announceMs = announceMs
  }

  /** Forgets all sources; they may have published anything meanwhile. */
  restart (): void {
    this.#sources.clear()
    this.#startedAt = performance.now()
  }

  /** Returns whether earlier publications of the source are missing. */
  receive ({ source, node, sequence, isLast }: BatchHeader): boolean {
    const known = this.#sources.get(source)
    const now = performance.now()
    if (isLast) this.#sources.delete(source)
    else this.#sources.set(source, { node, sequence, heardAt: now })
    if (!known && now - this.#startedAt < FIRST_CONTACT * this.#announceMs) return false
    return sequence !== (known?.sequence ?? 0) + 1
  }

  /** The nodes that have become silent, which are forgotten. */
  takeSilent (): string[] {
    const silentSince = performance.now() - SILENCE * this.#announceMs
    const silent = [...this.#sources].filter(([, { heardAt }]) => heardAt < silentSince)
    for (const [source] of silent) this.#sources.delete(source)
    return silent.map(([, { node }]) => node)
  }
}
