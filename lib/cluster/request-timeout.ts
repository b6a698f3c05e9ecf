import { MAX_TIMER_MS } from '../protocol/peer.ts'
import type { Request } from './backplane.ts'

/** Timeout of a request that has none of its own: longer than a slow device has for its messages. */
const DEFAULT_TIMEOUT_MS = 15_000
/** Time for the answer in transit, in addition to the timeout of the owner. */
export const TRANSIT_MS = 500
/** Delay before the second attempt, for a device that is being handed from one owner to the next. */
export const HANDOVER_MS = 10
/** Time for the owner to answer a liveness probe. */
export const PROBE_TIMEOUT_MS = 2_000

/** Requests without a timeout give a suspended owner up early. */
export function hasTimeout (request: Request): request is Request & { timeout: number } {
  return 'timeout' in request
}

/** A handler of a worker has no time limit; the liveness probe detects that the worker has died. */
export function timeoutOf (request: Request): number {
  if (request.kind === 'answer') return MAX_TIMER_MS
  return hasTimeout(request) ? request.timeout : DEFAULT_TIMEOUT_MS
}

/** Whether the owner may be silent for long: then only its own timeout ends the request. */
export function mayBeSilent (request: Request): boolean {
  return request.kind === 'answer' || hasTimeout(request)
}

export function leftUntil (deadline: number): number {
  return Math.min(Math.max(1, Math.ceil(deadline - performance.now())), MAX_TIMER_MS)
}

/** The request, with its timeout reduced to what is left. */
export function withTimeLeft<T extends Request> (request: T, deadline: number): T {
  return hasTimeout(request) ? { ...request, timeout: leftUntil(deadline) } : request
}
