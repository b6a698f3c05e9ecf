export interface Backoff {
  /** Maximum delay before the first retry, in milliseconds; it doubles with each further one. */
  minDelay: number
  /** Maximum delay before any retry, in milliseconds. */
  maxDelay: number
}

/** Milliseconds to wait before the next connection attempt; undefined: do not reconnect. */
export function reconnectDelay (code: number, reason: string, attempts: number, { minDelay, maxDelay }: Backoff): number | undefined {
  // 1000: closed on request; 4500 to 4999: the cause lasts until something is changed
  if (code === 1000 || (code >= 4500 && code < 5000)) return undefined
  const [, requestedDelay = 0] = /^retry=(\d{1,9})$/.exec(reason) ?? []
  // full jitter: uniformly distributed up to the bound; a server may ask for a longer delay, not for a shorter one
  return Math.max(+requestedDelay, Math.random() * Math.min(maxDelay, minDelay * 2 ** attempts))
}
