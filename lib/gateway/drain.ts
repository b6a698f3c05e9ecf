import { setTimeout as sleep } from 'node:timers/promises'
import type { Session } from '../connection/session.ts'

export interface DrainLimits {
  drainTimeout: number
  closeTimeout: number
  retrySpread: number
}

const LOOK_AGAIN = 10

/** Lets the devices go: each as soon as its calls are settled and what waits for it is written, or when time is short, and each with a time of its own to come back. */
export async function drain (sessions: Iterable<Session>, { drainTimeout, closeTimeout, retrySpread }: DrainLimits): Promise<void> {
  const deadline = Date.now() + Math.max(drainTimeout - closeTimeout, drainTimeout / 2)
  let busy = [...sessions]
  while (busy.length > 0) {
    const late = Date.now() >= deadline
    busy = busy.filter(session => {
      if (!late && (session.calls > 0 || session.isBehind) && !session.left) return true
      session.end('leaving', retryWithin(retrySpread))
      return false
    })
    if (busy.length > 0) await sleep(LOOK_AGAIN)
  }
}

/** Tells a device its own time to come back: all at once would be too many. */
export function retryWithin (retrySpread: number): string {
  return `retry=${Math.floor(Math.random() * retrySpread)}`
}
