import { randomBytes } from 'node:crypto'
import { setTimeout as sleep } from 'node:timers/promises'
import { isListed, type Answer, type Request } from '../cluster/backplane.ts'
import { encode } from '../cluster/encoding.ts'
import { LivenessProbe, type ProbeResult } from '../cluster/liveness-probe.ts'
import { HANDOVER_MS, leftUntil, mayBeSilent, PROBE_TIMEOUT_MS, timeoutOf, TRANSIT_MS, withTimeLeft } from '../cluster/request-timeout.ts'
import { Failure } from '../protocol/errors.ts'
import { askScript } from './backplane-scripts.ts'
import { checkSize, type Link } from './link.ts'
import { nodeChannel, type NodeMessage, type Reply } from './node-message.ts'

interface PendingReply {
  settle: (reply: Reply) => void
  fail: (failure: Failure) => void
  timer: NodeJS.Timeout
}

/** Nobody has answered; true: although a node may have the device. */
type Unanswered = boolean

/** Sends requests to the node that has a device, and to nodes. */
export class Requests {
  readonly #link: Link
  readonly #self: string
  readonly #prefix = randomBytes(6).toString('base64url')
  readonly #pending = new Map<string, PendingReply>()
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
    const reply = this.#expect(nonce, timeout)
    const asking = this.#link.publish(nodeChannel(node), encode(message(nonce))).then(async receivers => receivers === 0 ? 'lost' as const : await reply)
    return await asking.catch(() => 'silent' as const).finally(() => this.#forget(nonce))
  }

  receive (reply: Reply): void {
    this.#pending.get(reply.nonce)?.settle(reply)
  }

  async #ask (deviceId: string, request: Request, deadline: number, signal?: AbortSignal): Promise<Answer | Unanswered> {
    const nonce = this.#nextNonce()
    const payload = encode({ ...withTimeLeft(request, deadline), type: 'request', from: this.#self, nonce, deviceId } satisfies NodeMessage)
    checkSize(payload)
    const reply = this.#expect(nonce, leftUntil(deadline + TRANSIT_MS))
    try {
      // the reply may come first, and fails after its time
      const found = await Promise.race([this.#send(deviceId, payload), reply])
      if (!Array.isArray(found)) return contentOf(found)
      const [home, receivers, isAlive] = found
      if (home === undefined) return false
      if (receivers === 0) return isAlive === 1 || request.kind === 'wake' // a node that is taken for dead may come back
      return await this.#reply(String(home), nonce, reply, request, signal)
    } finally {
      this.#forget(nonce)
    }
  }

  /** Resolves with nothing if the device has no owner. Without an answer of Redis nobody knows whether the request has arrived. */
  async #send (deviceId: string, payload: Uint8Array): Promise<[home?: Buffer, receivers?: number, isAlive?: number]> {
    const wasUp = this.#link.up
    try {
      return await this.#link.run(askScript, ['owners', 'nodes', nodeChannel('')], [deviceId, payload as Buffer]) as [Buffer, number, number] | []
    } catch (error) {
      throw wasUp && !this.#link.up ? new Failure('dropped', { message: (error as Error).message }) : error
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
      return contentOf(found)
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

  /** Rejects with `timeout` after the given milliseconds. */
  #expect (nonce: string, timeout: number): Promise<Reply> {
    const reply = new Promise<Reply>((resolve, reject) => {
      const timer = setTimeout(() => reject(new Failure('timeout')), timeout)
      this.#pending.set(nonce, { settle: resolve, fail: reject, timer })
    })
    reply.catch(() => {}) // it may fail before anybody waits for it
    return reply
  }

  #forget (nonce: string): void {
    clearTimeout(this.#pending.get(nonce)?.timer)
    this.#pending.delete(nonce)
  }

  #nextNonce (): string {
    return `${this.#prefix}${++this.#count}`
  }

  #rejectAll (): void {
    for (const { fail } of this.#pending.values()) fail(new Failure('dropped', { message: 'The connection to the other nodes ended before the answer' }))
  }
}

/** The node has answered, or it does not have the device. */
function contentOf (reply: Reply): Answer | Unanswered {
  if (!('ok' in reply)) return true
  const { type: _type, nonce: _nonce, ...answer } = reply
  return answer
}
