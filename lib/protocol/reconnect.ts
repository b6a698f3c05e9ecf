export interface Backoff {
  /** The most to wait before the second try, in milliseconds; it doubles with each further one. */
  minDelay: number
  maxDelay: number
}

/** Milliseconds to wait before coming back after a goodbye; undefined: do not come back. */
export function reconnectDelay (code: number, reason: string, tries: number, { minDelay, maxDelay }: Backoff): number | undefined {
  // 1000 was asked for, and 4500 to 4999 stand until something changes
  if (code === 1000 || (code >= 4500 && code < 5000)) return undefined
  const [, told = 0] = /^retry=(\d{1,9})$/.exec(reason) ?? []
  // full jitter: any wait up to the bound is as likely as any other; a server may ask for a longer one, and not for a shorter
  return Math.max(Number(told), Math.random() * Math.min(maxDelay, minDelay * 2 ** tries))
}
