/** Delay before the first retry; it doubles with each further one. */
const MIN_DELAY_MS = 1_000
const MAX_DELAY_MS = 3_600_000
const MAX_PAUSE_MS = 60_000

/** How long an event waits. Between half of the delay and all of it, so that events that failed together are not sent together again. */
export function retryDelay (attempts: number, random: number): number {
  return Math.ceil(doubled(attempts, MAX_DELAY_MS) * (1 + random) / 2)
}

/** How long all events wait for an endpoint that seems to be down. */
export function pauseAfter (failures: number): number {
  return doubled(failures, MAX_PAUSE_MS)
}

function doubled (count: number, limit: number): number {
  return Math.min(MIN_DELAY_MS * 2 ** (count - 1), limit)
}
