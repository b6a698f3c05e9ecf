/** The time and the chance that retries depend on. */
export interface WebhookClock {
  /** Milliseconds since 1970. */
  now (): number
  /** Milliseconds; never set back or forward. */
  monotonic (): number
  /** From 0 to 1. */
  random (): number
}

export const systemClock: WebhookClock = { now: Date.now, monotonic: () => performance.now(), random: Math.random }
