import { randomBytes } from 'node:crypto'
import type { FastifyBaseLogger } from 'fastify'
import { EVERYONE_TOPIC, type Answer, valueOf, type Backplane, type PublishResult, type Request } from '../cluster/backplane.ts'
import { Failure, type Detail } from '../protocol/errors.ts'
import { digestOf, IdempotencyKeys, type KeyLimits } from './idempotency.ts'
import { isDeviceId } from '../protocol/device-id.ts'
import { failureOf, type Letters } from './letters.ts'
import { sizeOf, type Letter, type Receipt } from '../storage/mailbox.ts'
import type { CallOptions, CallSignal } from '../protocol/peer.ts'
import type { Registry } from '../connection/registry.ts'
import type { Session } from '../connection/session.ts'
import { flatString } from '../connection/flat-string.ts'
import { describeThrown } from '../protocol/user-code.ts'

export interface SendOptions {
  /** Milliseconds the message may wait; 0, the default: now or never. */
  ttl?: number | undefined
  /** Resolve only when the device has acknowledged. */
  confirm?: boolean | undefined
  /** Milliseconds to wait for that. */
  timeout?: number | undefined
  /** Replaces a waiting letter of the same key. */
  collapse?: string | undefined
  /** Makes a retry safe: the same key and message, the same answer, one delivery. */
  key?: string | undefined
  /** Gives the wait up. */
  signal?: CallSignal | undefined
}

export interface SendResult {
  id: string
  status: 'sent' | Receipt['status']
}

export interface DispatcherLimits extends KeyLimits {
  callTimeout: number
  maxTtl: number
  maxBuffered: number
}

const WAKE_RETRY_MS = 1_000
/** Devices beyond this number get their letters when they reconnect. */
const MAX_PENDING_WAKES = 10_000

interface OutgoingMessage {
  id: string
  deviceId: string
  data: unknown
  digest?: string
}

/** How far a message has come, and what the device said when it refused. */
interface SendProgress extends SendResult {
  device?: Detail | undefined
}

/** Decides where a message goes: here, elsewhere, or later. */
export class Dispatcher {
  readonly #registry: Registry
  readonly #backplane: Backplane
  readonly #letters: Letters
  readonly #node: string
  readonly #limits: DispatcherLimits
  readonly #log: FastifyBaseLogger
  readonly #keys: IdempotencyKeys
  readonly #prefix = randomBytes(6).toString('base64url')
  #minted = 0
  /** Devices whose owners did not hear that there are letters for them. */
  readonly #pendingWakes = new Set<string>()
  #wakeTimer: NodeJS.Timeout | undefined
  #isClosed = false

  constructor (
    { registry, backplane, letters, node, limits, log }:
    { registry: Registry, backplane: Backplane, letters: Letters, node: string, limits: DispatcherLimits, log: FastifyBaseLogger }
  ) {
    this.#registry = registry
    this.#backplane = backplane
    this.#letters = letters
    this.#node = node
    this.#limits = limits
    this.#log = log
    this.#keys = new IdempotencyKeys(limits)
  }

  /** What it is by now, or a promise of it: a message to a device that is here and has room is on its way at once. Throws, or rejects. */
  send (deviceId: string, data: unknown, options: SendOptions = {}): SendResult | Promise<SendResult> {
    const { key, ttl = 0 } = options
    if (!isDeviceId(deviceId)) throw new Failure('bad-id')
    if (!(ttl >= 0 && ttl <= this.#limits.maxTtl)) throw new Failure('malformed', { message: `ttl goes from 0 to ${this.#limits.maxTtl} ms` })
    if (key === undefined) return this.#post({ id: this.#nextId(), deviceId, data }, options)
    const digest = digestOf(data instanceof Uint8Array ? 'bytes' : 'json', encodeBody(data))
    return this.#once({ id: digestOf(deviceId, key), deviceId, data, digest }, key, options)
  }

  call (deviceId: string, method: string, params: unknown, { timeout = this.#limits.callTimeout, signal }: CallOptions): Promise<unknown> {
    const session = this.#sessionOf(deviceId)
    if (session) return session.call(method, params, { timeout, signal })
    return this.reach(deviceId, { kind: 'call', method, params, timeout }, signal && abortSignalOf(signal))
  }

  async broadcast (data: unknown, topic = EVERYONE_TOPIC): Promise<PublishResult & { id: string }> {
    const id = this.#nextId()
    return { id, ...await this.#backplane.publish({ id, topic, data }) }
  }

  /** Asks whoever has the device. */
  async reach (deviceId: string, request: Request, signal?: AbortSignal): Promise<unknown> {
    const answer = await this.#ask(deviceId, request, signal)
    if (!answer) throw new Failure('offline')
    return valueOf(answer)
  }

  close (): void {
    this.#isClosed = true
    clearTimeout(this.#wakeTimer)
  }

  /** A message id that never comes again. */
  #nextId (): string {
    return `${this.#prefix}${(++this.#minted).toString(36)}`
  }

  #post (posted: OutgoingMessage, options: SendOptions): SendResult | Promise<SendResult> {
    const { ttl = 0, confirm = false } = options
    if (ttl === 0) return confirm ? this.#confirm(posted, options) : this.#sendNow(posted)
    const letter = this.#letterOf(posted, options, ttl)
    return this.#settled(posted, options, () => this.#keep(posted, letter))
  }

  /**
   * One delivery under one key, whatever the options. This node remembers what it sent, and the mailbox its letters, by their ids and for longer. Who
   * retries wants to know what became of the first try, so the first caller's hanging up must not end it.
   */
  #once (posted: OutgoingMessage, key: string, options: SendOptions): Promise<SendResult> {
    const { ttl = 0 } = options
    const begin = async () => {
      if (ttl > 0) return await this.#keep(posted, this.#letterOf(posted, options, ttl))
      return await this.#earlier(posted) ?? await this.#post(posted, { ...options, signal: undefined })
    }
    const isFinal = ({ status }: SendProgress) => ttl === 0 && status !== 'queued'
    return this.#settled(posted, options, () => this.#keys.once(`${posted.deviceId} ${key}`, posted.digest!, begin, isFinal))
  }

  #sendNow ({ id, deviceId, data = null }: OutgoingMessage): SendResult | Promise<SendResult> {
    const sent: SendResult = { id, status: 'sent' }
    const session = this.#sessionOf(deviceId)
    const handed = session ? session.offer(id, data) : this.reach(deviceId, { kind: 'send', id, data })
    return handed ? handed.then(() => sent) : sent
  }

  async #confirm ({ id, deviceId, data = null }: OutgoingMessage, { timeout = this.#limits.callTimeout, signal }: SendOptions): Promise<SendResult> {
    await this.reach(deviceId, { kind: 'confirm', id, data, timeout }, signal && abortSignalOf(signal))
    return { id, status: 'delivered' }
  }

  #letterOf ({ id, deviceId, data, digest }: OutgoingMessage, { confirm, collapse }: SendOptions, ttl: number): Letter {
    const body = encodeBody(data)
    if (sizeOf(body) > this.#limits.maxBuffered / 2) throw new Failure('too-large')
    const session = this.#registry.get(deviceId)
    if (session?.isForeign) session.callFor(id, data) // what cannot be delivered is better refused at once
    return { id, body, expiresAt: Date.now() + ttl, collapse: collapse && flatString(collapse), digest, awaitedBy: confirm ? this.#node : undefined }
  }

  /** Write, then deliver, then remove: the letter is kept before its owner is rung. */
  async #keep ({ id, deviceId, digest }: OutgoingMessage, letter: Letter): Promise<SendProgress> {
    const { receipt } = await this.#letters.put(deviceId, letter)
    if (receipt.digest !== digest) throw new Failure('key-mismatch')
    // also for a repeat: an earlier try may have kept the letter and told nobody
    if (receipt.status === 'queued') this.#wake(deviceId)
    return { id, status: receipt.status, device: receipt.device }
  }

  /** The letter that was put under the same key. A mailbox that cannot be read keeps back nothing that is sent now. */
  async #earlier ({ id, deviceId, digest }: OutgoingMessage): Promise<SendProgress | undefined> {
    const receipt = await this.#letters.receipt(deviceId, id).catch(ifFailure)
    if (!receipt) return undefined
    if (receipt.digest !== digest) throw new Failure('key-mismatch')
    return { id, status: receipt.status, device: receipt.device }
  }

  /** Begins, and waits for the acknowledgement where that is asked for. */
  async #settled ({ id }: OutgoingMessage, { confirm, timeout = this.#limits.callTimeout, signal }: SendOptions, begin: () => Promise<SendProgress>): Promise<SendResult> {
    if (!confirm) {
      const { status } = await begin()
      return { id, status }
    }
    const wait = this.#letters.outcome(id, timeout, signal) // before it can have come
    try {
      const { status, device } = await begin()
      if (status === 'sent') return { id, status }
      const outcome = status === 'queued' ? await wait.outcome : { ending: status, device }
      if (outcome && outcome.ending !== 'delivered') throw failureOf(outcome)
      return { id, status: outcome ? 'delivered' : 'queued' }
    } finally {
      wait.forget()
    }
  }

  #wake (deviceId: string): void {
    const session = this.#registry.get(deviceId)
    if (session?.isIn) session.wake()
    else void this.#wakeOwner(deviceId)
  }

  /** Retries until the owner has answered. A device that is away gets its letters when it reconnects. */
  async #wakeOwner (deviceId: string): Promise<void> {
    try {
      const answer = await this.#ask(deviceId, { kind: 'ring' })
      if (answer) valueOf(answer)
    } catch (error) {
      if (this.#isClosed) return
      if (!this.#pendingWakes.has(deviceId)) this.#log.warn({ err: error, deviceId }, 'delivery wake-up failed')
      if (this.#pendingWakes.size < MAX_PENDING_WAKES) this.#pendingWakes.add(deviceId)
      this.#wakeTimer ??= setTimeout(() => this.#wakeAgain(), WAKE_RETRY_MS).unref()
      return
    }
    this.#pendingWakes.delete(deviceId)
  }

  #wakeAgain (): void {
    this.#wakeTimer = undefined
    for (const deviceId of this.#pendingWakes) void this.#wakeOwner(deviceId)
  }

  /** The session of a device that is here and speaks as we do: it needs nobody between. */
  #sessionOf (deviceId: string): Session | undefined {
    const session = this.#registry.get(deviceId)
    return session?.isIn && !session.isForeign ? session : undefined
  }

  /** Undefined: nobody has the device. */
  async #ask (deviceId: string, request: Request, signal?: AbortSignal): Promise<Answer | undefined> {
    const owner = this.#registry.get(deviceId)?.owner
    return owner ? await owner.answer(request, signal) : await this.#backplane.ask(deviceId, request, signal)
  }
}

/** For what can do without an answer; an accident is still one. */
function ifFailure (error: unknown): undefined {
  if (!(error instanceof Failure)) throw error
}

/** JSON text or bytes, as a letter holds it. */
function encodeBody (data: unknown): string | Uint8Array {
  if (data instanceof Uint8Array) return data
  try {
    const text: string | undefined = JSON.stringify(data ?? null)
    if (text === undefined) throw new TypeError(`a ${typeof data} is no data`)
    return text
  } catch (error) {
    throw new Failure('bad-params', { message: `Cannot be encoded: ${describeThrown(error)}` })
  }
}

/** A whole one, for those elsewhere. */
function abortSignalOf (signal: CallSignal): AbortSignal {
  if (signal instanceof AbortSignal) return signal
  const controller = new AbortController()
  if (signal.aborted) controller.abort()
  signal.addEventListener('abort', () => controller.abort(), { once: true })
  return controller.signal
}
