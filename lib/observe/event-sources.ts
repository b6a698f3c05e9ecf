import type { BatchHeader } from './event-batch.ts'

/** A node answers each announcement; after this silence, in intervals between announcements, it is gone. */
const SILENCE_INTERVALS = 2.5
/**
 * Until then, in such intervals, the first publication received of a source may have any number; later it has number 1. No longer than the silence: a node
 * that returns after it was gone has published before.
 */
const FIRST_CONTACT_INTERVALS = SILENCE_INTERVALS

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
    if (!known && now - this.#startedAt < FIRST_CONTACT_INTERVALS * this.#announceMs) return false
    return sequence !== (known?.sequence ?? 0) + 1
  }

  /** The nodes that have become silent, which are forgotten. */
  takeSilent (): string[] {
    const silentSince = performance.now() - SILENCE_INTERVALS * this.#announceMs
    const silent = [...this.#sources].filter(([, { heardAt }]) => heardAt < silentSince)
    for (const [source] of silent) this.#sources.delete(source)
    return silent.map(([, { node }]) => node)
  }
}
