/** The time and the chance that retries depend on. */
export interface WebhookClock {
  /** Milliseconds since 1970. */
  now (): number
  /** From 0 to 1. */
  random (): number
}

export const systemClock: WebhookClock = { now: Date.now, random: Math.random }
