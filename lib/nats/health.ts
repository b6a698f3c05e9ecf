import type { Health } from '../protocol/health.ts'
import type { Link } from './link.ts'
import type { StreamStore } from './stream-store.ts'

/** The health of what uses the link, and of a stream that is read at least every few seconds. */
export async function healthOver (link: Pick<Link, 'up'>, records?: Pick<StreamStore, 'isReachable'>): Promise<Health> {
  if (!link.up) return { ok: false, reason: 'NATS unreachable' }
  return records?.isReachable === false ? { ok: false, reason: 'NATS streams unreachable' } : { ok: true }
}
