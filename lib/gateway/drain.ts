import { setTimeout as sleep } from 'node:timers/promises'
import type { Session } from '../connection/session.ts'

export interface DrainLimits {
  drainTimeout: number
  closeTimeout: number
  retrySpread: number
}

const POLL_INTERVAL_MS = 10

/**
 * Ends the sessions: each once its calls are settled and its output is written, or when the time is nearly over. The time that is left is
 * for the close handshakes.
 */
export async function drain (sessions: Iterable<Session>, { drainTimeout, closeTimeout, retrySpread }: DrainLimits): Promise<void> {
  const deadline = Date.now() + Math.max(drainTimeout - closeTimeout, drainTimeout / 2)
  let busy = [...sessions]
  while (busy.length > 0) {
    const isLate = Date.now() >= deadline
    busy = busy.filter(session => {
      if (!isLate && (session.calls > 0 || session.isBehind) && !session.left) return true
      session.end('leaving', retryWithin(retrySpread))
      return false
    })
    if (busy.length > 0) await sleep(POLL_INTERVAL_MS)
  }
}

/** A close reason that tells the device when to reconnect, at random: all devices at once would be too many. */
export function retryWithin (retrySpread: number): string {
  return `retry=${Math.floor(Math.random() * retrySpread)}`
}
