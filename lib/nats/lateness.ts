/**
 * The lead of another node's clock is its minimum over this window and the one before. A window is longer than a burst of messages
 * that were held back. It is not much longer, because after a suspension of the other machine its broadcasts look late until two windows have passed.
 */
const WINDOW_MS = 2_000

/** By how many milliseconds the clock of this node is ahead of that of another, transit included. */
interface ClockLead {
  windowStart: number
  minimum: number
  previousMinimum: number
}

/**
 * Measures how late messages of other nodes arrive: NATS servers that lose each other hold messages back and deliver them later. Each message
 * carries the time of its sender's clock. Clocks need not agree, because a message is compared with the fastest one of the same sender.
 */
export class LatenessTracker {
  readonly #leads = new Map<string, ClockLead>()

  /** Records a message that a node sent at `sentAt`, by its own clock. */
  note (node: string, sentAt: number): void {
    const now = performance.now()
    const difference = now - sentAt
    const lead = this.#leads.get(node)
    if (!lead) this.#leads.set(node, { windowStart: now, minimum: difference, previousMinimum: difference })
    else if (now - lead.windowStart < WINDOW_MS) lead.minimum = Math.min(lead.minimum, difference)
    else this.#leads.set(node, { windowStart: now, minimum: difference, previousMinimum: lead.minimum })
  }

  /** Milliseconds by which a message took longer than the fastest one; 0 for an unknown node. */
  of (node: string, sentAt: number): number {
    const lead = this.#leads.get(node)
    return lead ? performance.now() - sentAt - Math.min(lead.minimum, lead.previousMinimum) : 0
  }

  forget (node: string): void {
    this.#leads.delete(node)
  }
}
