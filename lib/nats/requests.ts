import { randomBytes } from 'node:crypto'
import { setTimeout as sleep } from 'node:timers/promises'
import { isListed, type Answer, type Request } from '../cluster/backplane.ts'
import { withDeadline } from '../protocol/deadline.ts'
import { Failure } from '../protocol/errors.ts'
import { MAX_TIMER_MS } from '../protocol/peer.ts'
import type { Link } from './link.ts'
import { LivenessProbe, type ProbeResult } from './liveness-probe.ts'
import type { Membership } from './membership.ts'
import { ownerRecordOf } from './owner-record.ts'
import type { DeviceRequest } from './request-handler.ts'
import type { StreamStore } from './stream-store.ts'
import { deviceSubject, recordSubject } from './subjects.ts'
import { decode, encode } from './encoding.ts'

/** A request that names no time of its own may take so long: more than a device that takes its messages slowly is given. */
const DEFAULT_TIMEOUT_MS = 15_000
/** What an answer takes on its way, beyond the time that the owner allows itself. */
const TRANSIT_MS = 500
/** How long a device may be between two owners. */
const HANDOVER_MS = 10
/** How long the owner may take to say that it is still there. */
const PROBE_TIMEOUT_MS = 2_000

/** Asks whoever owns a device: one request, to the subject of the device. */
export class Requests {
  readonly #link: Link
  readonly #nodes: Membership
  readonly #records: StreamStore
  readonly #prefix = randomBytes(6).toString('base64url')
  #asked = 0

  constructor (link: Link, nodes: Membership, records: StreamStore) {
    this.#link = link
    this.#nodes = nodes
    this.#records = records
  }

  async ask (deviceId: string, request: Request, signal?: AbortSignal): Promise<Answer | undefined> {
    const until = performance.now() + timeOf(request)
    const answer = await this.#ask(deviceId, request, until, signal)
    const home = answer ? undefined : await withDeadline(this.#homeOf(deviceId), Math.min(leftUntil(until + TRANSIT_MS), MAX_TIMER_MS), () => new Failure('timeout'))
    if (home === undefined) return answer
    await sleep(HANDOVER_MS)
    if (performance.now() >= until) throw new Failure('timeout')
    const second = await this.#ask(deviceId, request, until, signal)
    if (second || !isListed(deviceId) || this.#nodes.hears(home)) return second
    throw new Failure('unreachable', { message: 'The node that has the device is not back yet' })
  }

  /** Nobody heard, but this node may be about to. */
  async #homeOf (deviceId: string): Promise<string | undefined> {
    const found = await this.#records.last(recordSubject(deviceId))
    const home = found && ownerRecordOf(found).home
    return home !== undefined && this.#nodes.alive(home) ? home : undefined
  }

  async #ask (deviceId: string, request: Request, until: number, signal?: AbortSignal): Promise<Answer | undefined> {
    const subject = deviceSubject(deviceId)
    const nonce = `${this.#prefix}${++this.#asked}`
    const left = leftUntil(until)
    const asking = isTimed(request) ? { ...request, timeout: left } : request
    const asked = this.#link.request(subject, encode({ ...asking, nonce }), Math.min(left + TRANSIT_MS, MAX_TIMER_MS))
    const giveUp = () => { if (this.#link.up) this.#link.publish(subject, encode({ kind: 'cancel', nonce } satisfies DeviceRequest)) }
    if (signal?.aborted) giveUp()
    signal?.addEventListener('abort', giveUp, { once: true })
    const lookout = new LivenessProbe(() => this.#look(subject, nonce), { mayBeSilent: request.kind === 'answer' || isTimed(request) })
    try {
      const message = await Promise.race([asked, lookout.ended])
      if (typeof message === 'string') return { ok: false, reason: message === 'lost' ? 'dropped' : 'timeout' }
      return message && decode(message.data)
    } finally {
      lookout.stop()
      signal?.removeEventListener('abort', giveUp)
    }
  }

  async #look (subject: string, nonce: string): Promise<ProbeResult> {
    try {
      const answer = await this.#link.request(subject, encode({ kind: 'probe', nonce } satisfies DeviceRequest), PROBE_TIMEOUT_MS)
      return answer?.string() === '1' ? 'there' : 'lost'
    } catch { // it is held still, or the link fell, which ends the request too
      return 'silent'
    }
  }
}

/** The caller says how long it waits: for the rest, an owner that is held still is given up before. */
function isTimed (request: Request): request is Request & { timeout: number } {
  return 'timeout' in request
}

/** A handler of a worker takes the time that it takes; should the worker die, that is found out. */
function timeOf (request: Request): number {
  if (request.kind === 'answer') return MAX_TIMER_MS
  return isTimed(request) ? request.timeout : DEFAULT_TIMEOUT_MS
}

function leftUntil (moment: number): number {
  return Math.max(1, Math.ceil(moment - performance.now()))
}
