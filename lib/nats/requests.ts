import { randomBytes } from 'node:crypto'
import { setTimeout as sleep } from 'node:timers/promises'
import { isListed, type Answer, type Request } from '../cluster/backplane.ts'
import { withDeadline } from '../protocol/deadline.ts'
import { Failure } from '../protocol/errors.ts'
import { MAX_TIMER_MS } from '../protocol/peer.ts'
import type { Link } from './link.ts'
import { LivenessProbe, type ProbeResult } from '../cluster/liveness-probe.ts'
import type { Membership } from './membership.ts'
import { ownerRecordOf } from './owner-record.ts'
import type { DeviceRequest } from './request-handler.ts'
import type { StreamStore } from './stream-store.ts'
import { deviceSubject, recordSubject } from './subjects.ts'
import { decode, encode } from '../cluster/encoding.ts'

/** Timeout of a request that has none of its own: longer than a slow device has for its messages. */
const DEFAULT_TIMEOUT_MS = 15_000
/** Time for the answer in transit, in addition to the timeout of the owner. */
const TRANSIT_MS = 500
/** Delay before the second attempt, for a device that is being handed from one owner to the next. */
const HANDOVER_MS = 10
/** Time for the owner to answer a liveness probe. */
const PROBE_TIMEOUT_MS = 2_000

/** Sends requests to the owner of a device, over the subject of the device. */
export class Requests {
  readonly #link: Link
  readonly #nodes: Membership
  readonly #records: StreamStore
  readonly #prefix = randomBytes(6).toString('base64url')
  #count = 0

  constructor (link: Link, nodes: Membership, records: StreamStore) {
    this.#link = link
    this.#nodes = nodes
    this.#records = records
  }

  async ask (deviceId: string, request: Request, signal?: AbortSignal): Promise<Answer | undefined> {
    const deadline = performance.now() + timeoutOf(request)
    const answer = await this.#ask(deviceId, request, deadline, signal)
    if (answer || !await this.#hasOwner(deviceId, request, deadline)) return answer
    await sleep(HANDOVER_MS)
    if (performance.now() >= deadline) throw new Failure('timeout')
    const second = await this.#ask(deviceId, request, deadline, signal)
    if (second || !isListed(deviceId) || !await this.#hasOwner(deviceId, request, deadline)) return second
    throw new Failure('unreachable', { message: 'The node that has the device does not receive requests at present' })
  }

  /**
   * Whether the bucket names a live node as the owner. It may not have subscribed yet, or NATS servers may have lost each other. A wake-up is not given up
   * for a node that is taken for dead either: the node may come back before its records are erased.
   */
  async #hasOwner (deviceId: string, { kind }: Request, deadline: number): Promise<boolean> {
    const left = Math.min(leftUntil(deadline + TRANSIT_MS), MAX_TIMER_MS)
    const found = await withDeadline(this.#records.last(recordSubject(deviceId)), left, () => new Failure('timeout'))
    return found !== undefined && (kind === 'wake' || this.#nodes.alive(ownerRecordOf(found).home))
  }

  async #ask (deviceId: string, request: Request, deadline: number, signal?: AbortSignal): Promise<Answer | undefined> {
    const subject = deviceSubject(deviceId)
    const nonce = `${this.#prefix}${++this.#count}`
    const left = leftUntil(deadline)
    const timed = hasTimeout(request) ? { ...request, timeout: left } : request
    const reply = this.#link.request(subject, encode({ ...timed, nonce }), Math.min(left + TRANSIT_MS, MAX_TIMER_MS))
    const cancel = () => { if (this.#link.up) this.#link.publish(subject, encode({ kind: 'cancel', nonce } satisfies DeviceRequest)) }
    if (signal?.aborted) cancel()
    signal?.addEventListener('abort', cancel, { once: true })
    const probe = new LivenessProbe(() => this.#probe(subject, nonce), { mayBeSilent: request.kind === 'answer' || hasTimeout(request) })
    try {
      const message = await Promise.race([reply, probe.ended])
      if (typeof message === 'string') return { ok: false, reason: message === 'lost' ? 'dropped' : 'timeout' }
      return message && decode(message.data)
    } finally {
      probe.stop()
      signal?.removeEventListener('abort', cancel)
    }
  }

  async #probe (subject: string, nonce: string): Promise<ProbeResult> {
    try {
      const answer = await this.#link.request(subject, encode({ kind: 'probe', nonce } satisfies DeviceRequest), PROBE_TIMEOUT_MS)
      return answer?.string() === '1' ? 'there' : 'lost'
    } catch { // the owner is suspended, or the link went down, which ends the request too
      return 'silent'
    }
  }
}

/** Requests without a timeout give a suspended owner up early. */
function hasTimeout (request: Request): request is Request & { timeout: number } {
  return 'timeout' in request
}

/** A handler of a worker has no time limit; the liveness probe detects that the worker has died. */
function timeoutOf (request: Request): number {
  if (request.kind === 'answer') return MAX_TIMER_MS
  return hasTimeout(request) ? request.timeout : DEFAULT_TIMEOUT_MS
}

function leftUntil (deadline: number): number {
  return Math.max(1, Math.ceil(deadline - performance.now()))
}
