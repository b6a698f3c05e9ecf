import type { BatchHeader } from './event-batch.ts'

/** Until then a publication with any number may be the first of its source; later the first has number 1. */
const FIRST_CONTACT_MS = 30_000
/** A node answers each announcement; after this silence it is gone. */
const SILENCE_MS = 25_000

interface EventSource {
  node: string
  sequence: number
  heardAt: number
}

/** The other nodes that publish events, and the sequence number of each: shows which have publications missing. */
export class EventSources {
  readonly #sources = new Map<string, EventSource>()
  #startedAt = performance.now()

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
    if (!known && now - this.#startedAt < FIRST_CONTACT_MS) return false
    return sequence !== (known?.sequence ?? 0) + 1
  }

  /** The nodes that have become silent, which are forgotten. */
  takeSilent (): string[] {
    const silentSince = performance.now() - SILENCE_MS
    const silent = [...this.#sources].filter(([, { heardAt }]) => heardAt < silentSince)
    for (const [source] of silent) this.#sources.delete(source)
    return silent.map(([, { node }]) => node)
  }
}
