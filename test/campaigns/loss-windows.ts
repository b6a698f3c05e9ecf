/** When something was first attempted, and when it was acknowledged; `undefined`: not yet. */
export interface Attempt {
  attemptedAt: number
  acknowledgedAt: number | undefined
}

/** An answer may be read that long after the kill of the server that caused it. */
const LATE_ANSWER_MS = 250

/** The times at which an engine may lose what it acknowledges, as docs/delivery.md says: shortly before a kill or a failover. */
export class LossWindows {
  readonly #windows: Array<{ from: number, to: number }> = []

  /** Adds a kill that ends now. The engine may lose what it acknowledged in the milliseconds before. */
  addKill (began: number, lossWindow: number): void {
    if (lossWindow > 0) this.add(began - lossWindow, performance.now() + LATE_ANSWER_MS)
  }

  add (from: number, to: number): void {
    this.#windows.push({ from, to })
  }

  /** Whether it may be lost although it was acknowledged. */
  mayLose ({ acknowledgedAt }: Attempt): boolean {
    return acknowledgedAt !== undefined && this.#windows.some(({ from, to }) => from <= acknowledgedAt && acknowledgedAt <= to)
  }

  /** Whether an attempt without an answer may have been carried out and then forgotten, so that the next one repeated it. */
  mayRepeat ({ attemptedAt, acknowledgedAt = Infinity }: Attempt): boolean {
    return this.#windows.some(({ from, to }) => from <= acknowledgedAt && attemptedAt <= to)
  }
}
