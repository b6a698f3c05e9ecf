/** The clock of another node is compared with the least lead that it had in this time, and in the same time before. */
const WINDOW_MS = 10_000

interface ClockLead {
  since: number
  least: number
  leastBefore: number
}

/**
 * How late what other nodes send arrives: NATS servers that lose each other hold messages back and deliver them afterwards. Every node
 * says what its own clock shows; clocks need not agree, because only the difference to the quickest messages counts.
 */
export class LatenessTracker {
  readonly #leads = new Map<string, ClockLead>()

  /** A message came from a node that sent it at a moment of its own clock. */
  note (node: string, sentAt: number): void {
    const now = performance.now()
    const ahead = now - sentAt
    const lead = this.#leads.get(node)
    if (!lead) this.#leads.set(node, { since: now, least: ahead, leastBefore: ahead })
    else if (now - lead.since < WINDOW_MS) lead.least = Math.min(lead.least, ahead)
    else this.#leads.set(node, { since: now, least: ahead, leastBefore: lead.least })
  }

  /** By how many milliseconds it took longer than the quickest. */
  of (node: string, sentAt: number): number {
    const lead = this.#leads.get(node)
    return lead ? performance.now() - sentAt - Math.min(lead.least, lead.leastBefore) : 0
  }

  forget (node: string): void {
    this.#leads.delete(node)
  }
}
