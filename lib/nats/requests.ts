import { randomBytes } from 'node:crypto'
import { setTimeout as sleep } from 'node:timers/promises'
import { isListed, type Answer, type Request } from '../cluster/backplane.ts'
import { withDeadline } from '../protocol/deadline.ts'
import { Failure } from '../protocol/errors.ts'
import { LivenessProbe, type ProbeResult } from '../cluster/liveness-probe.ts'
import { HANDOVER_MS, leftUntil, mayBeSilent, PROBE_TIMEOUT_MS, timeoutOf, TRANSIT_MS, withTimeLeft } from '../cluster/request-timeout.ts'
import type { Link } from './link.ts'
import type { Membership } from './membership.ts'
import { ownerRecordOf } from './owner-record.ts'
import type { DeviceRequest } from './request-handler.ts'
import type { StreamStore } from './stream-store.ts'
import { deviceSubject, recordSubject } from './subjects.ts'
import { decode, encode } from '../cluster/encoding.ts'

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
    const found = await withDeadline(this.#records.last(recordSubject(deviceId)), leftUntil(deadline + TRANSIT_MS), () => new Failure('timeout'))
    return found !== undefined && (kind === 'wake' || this.#nodes.alive(ownerRecordOf(found).home))
  }

  async #ask (deviceId: string, request: Request, deadline: number, signal?: AbortSignal): Promise<Answer | undefined> {
    const subject = deviceSubject(deviceId)
    const nonce = `${this.#prefix}${++this.#count}`
    const reply = this.#link.request(subject, encode({ ...withTimeLeft(request, deadline), nonce }), leftUntil(deadline + TRANSIT_MS))
    const cancel = () => { if (this.#link.up) this.#link.publish(subject, encode({ kind: 'cancel', nonce } satisfies DeviceRequest)) }
    if (signal?.aborted) cancel()
    signal?.addEventListener('abort', cancel, { once: true })
    const probe = new LivenessProbe(() => this.#probe(subject, nonce), { mayBeSilent: mayBeSilent(request) })
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
