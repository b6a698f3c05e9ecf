import { randomBytes } from 'node:crypto'
import { setTimeout as sleep } from 'node:timers/promises'
import { isListed, type Answer, type Request } from '../cluster/backplane.ts'
import { encode } from '../cluster/encoding.ts'
import { LivenessProbe, type ProbeResult } from '../cluster/liveness-probe.ts'
import { HANDOVER_MS, leftUntil, mayBeSilent, PROBE_TIMEOUT_MS, timeoutOf, TRANSIT_MS, withTimeLeft } from '../cluster/request-timeout.ts'
import { withDeadline } from '../protocol/deadline.ts'
import { Failure } from '../protocol/errors.ts'
import { askScript } from './backplane-scripts.ts'
import { checkSize, type Link } from './link.ts'
import { nodeChannel, type NodeMessage, type Reply } from './node-message.ts'

/** Nobody has answered; true: although a node may have the device. */
type Unanswered = boolean

/** Sends requests to the node that has a device, and to nodes. */
export class Requests {
  readonly #link: Link
  readonly #self: string
  readonly #prefix = randomBytes(6).toString('base64url')
  readonly #pending = new Map<string, (reply: Reply | Failure) => void>()
  #count = 0

  constructor (link: Link, self: string) {
    this.#link = link
    this.#self = self
    link.onChange(up => { if (!up) this.#rejectAll() })
  }

  async ask (deviceId: string, request: Request, signal?: AbortSignal): Promise<Answer | undefined> {
    const deadline = performance.now() + timeoutOf(request)
    const first = await this.#ask(deviceId, request, deadline, signal)
    if (typeof first === 'object') return first
    if (!first) return undefined
    await sleep(HANDOVER_MS)
    if (performance.now() >= deadline) throw new Failure('timeout')
    const second = await this.#ask(deviceId, request, deadline, signal)
    if (typeof second === 'object') return second
    if (!second || !isListed(deviceId)) return undefined
    throw new Failure('unreachable', { message: 'The node that has the device does not receive requests at present' })
  }

  /** Sends a message to a node. Resolves with `lost` if no node receives it, and with `silent` if that does not answer in time. */
  async askNode (node: string, message: (nonce: string) => NodeMessage, timeout: number): Promise<Reply | 'lost' | 'silent'> {
    const nonce = this.#nextNonce()
    const reply = this.#expect(nonce)
    const asking = this.#link.publish(nodeChannel(node), encode(message(nonce))).then(async receivers => {
      return receivers === 0 ? 'lost' as const : await withDeadline(reply, timeout, () => new Failure('timeout'))
    })
    return await asking.catch(() => 'silent' as const).finally(() => this.#pending.delete(nonce))
  }

  receive (reply: Reply): void {
    this.#settle(reply.nonce, reply)
  }

  async #ask (deviceId: string, request: Request, deadline: number, signal?: AbortSignal): Promise<Answer | Unanswered> {
    const nonce = this.#nextNonce()
    const payload = encode({ ...withTimeLeft(request, deadline), type: 'request', from: this.#self, nonce, deviceId } satisfies NodeMessage)
    checkSize(payload)
    const reply = this.#expect(nonce)
    try {
      const asking = this.#send(deviceId, payload).then(async ([home, receivers, isAlive]) => {
        if (home === undefined) return false
        if (receivers === 0) return isAlive === 1 || request.kind === 'wake' // a node that is taken for dead may come back
        return await this.#reply(String(home), nonce, reply, request, signal)
      })
      return await withDeadline(asking, leftUntil(deadline + TRANSIT_MS), () => new Failure('timeout'))
    } finally {
      this.#settle(nonce, new Failure('timeout')) // what still waits for the reply ends
    }
  }

  /** Resolves with nothing if the device has no owner. Once it is sent, nobody knows whether it has arrived. */
  async #send (deviceId: string, payload: Uint8Array): Promise<[home?: Buffer, receivers?: number, isAlive?: number]> {
    if (!this.#link.up) throw new Failure('unreachable')
    try {
      return await this.#link.run(askScript, ['owners', 'nodes', nodeChannel('')], [deviceId, payload as Buffer]) as [Buffer, number, number] | []
    } catch (error) {
      throw new Failure('dropped', { message: (error as Error).message })
    }
  }

  async #reply (home: string, nonce: string, reply: Promise<Reply>, request: Request, signal?: AbortSignal): Promise<Answer | Unanswered> {
    const cancel = () => { if (this.#link.up) this.#link.tell(nodeChannel(home), encode({ type: 'cancel', nonce } satisfies NodeMessage)) }
    if (signal?.aborted) cancel()
    signal?.addEventListener('abort', cancel, { once: true })
    const probe = new LivenessProbe(() => this.#probe(home, nonce), { mayBeSilent: mayBeSilent(request) })
    try {
      const found = await Promise.race([reply, probe.ended])
      if (typeof found === 'string') return { ok: false, reason: found === 'lost' ? 'dropped' : 'timeout' }
      const { type: _type, nonce: _nonce, ...answer } = found
      return 'ok' in answer ? answer : true
    } finally {
      probe.stop()
      signal?.removeEventListener('abort', cancel)
    }
  }

  async #probe (home: string, about: string): Promise<ProbeResult> {
    const reply = await this.askNode(home, nonce => ({ type: 'probe', from: this.#self, nonce, about }), PROBE_TIMEOUT_MS)
    if (typeof reply === 'string') return reply
    return 'state' in reply ? reply.state : 'silent'
  }

  #expect (nonce: string): Promise<Reply> {
    const reply = new Promise<Reply>((resolve, reject) => {
      this.#pending.set(nonce, found => found instanceof Failure ? reject(found) : resolve(found))
    })
    reply.catch(() => {}) // it may fail before anybody waits for it
    return reply
  }

  #settle (nonce: string, reply: Reply | Failure): void {
    this.#pending.get(nonce)?.(reply)
    this.#pending.delete(nonce)
  }

  #nextNonce (): string {
    return `${this.#prefix}${++this.#count}`
  }

  #rejectAll (): void {
    for (const settle of this.#pending.values()) settle(new Failure('dropped', { message: 'The connection to the other nodes ended before the answer' }))
    this.#pending.clear()
  }
}
