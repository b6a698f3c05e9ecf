import { randomBytes } from 'node:crypto'
import { Type } from '@sinclair/typebox'
import type { FastifyBaseLogger } from 'fastify'
import { EVERYONE_TOPIC, type Answer, valueOf, type Backplane, type PublishResult, type SessionRequest } from '../cluster/backplane.ts'
import { Failure, type Detail } from '../protocol/errors.ts'
import { digestOf, IdempotencyKeys, type KeyLimits } from './idempotency.ts'
import { isDeviceId } from '../protocol/device-id.ts'
import { abortSignalOf } from './abort-signal.ts'
import { failureOf, type Letters } from './letters.ts'
import { sizeOf, type Letter, type Receipt } from '../storage/mailbox.ts'
import type { CallOptions, CallSignal } from '../protocol/peer.ts'
import { contextOf, type RequestContext, type RequestLike } from '../protocol/request-context.ts'
import { offerMessage } from '../connection/device-operations.ts'
import { operate, operations } from '../connection/operation.ts'
import type { Registry } from '../connection/registry.ts'
import { checkedCall, type OutboundChecks } from '../connection/outbound-checks.ts'
import type { Session } from '../connection/session.ts'
import { flatString } from '../connection/flat-string.ts'
import { describeThrown } from '../protocol/user-code.ts'

/** The options of `send()`. Durations are in milliseconds. */
export interface SendOptions {
  /**
   * How long the message may wait for its device; with 0 it is sent now or not at all.
   * @default 0
   */
  ttl?: number | undefined
  /**
   * Resolve only when the device has acknowledged the message.
   * @default false
   */
  confirm?: boolean | undefined
  /** How long to wait for the acknowledgement; `callTimeout` by default. */
  timeout?: number | undefined
  /** Replaces a waiting letter with the same collapse key. */
  collapse?: string | undefined
  /** Idempotency key: a retry with the same key and message gets the same result, and the message is delivered once. */
  key?: string | undefined
  /** Ends the wait for the acknowledgement. */
  signal?: CallSignal | undefined
  /** The request that causes the message: a request of Fastify, or the context of a handler. */
  request?: RequestLike | undefined
}

/** Documents `SendOptions`, and names its members. Their values are checked by hand, because this is done for each message. */
export const SendOptionsSchema = Type.Object({
  ttl: Type.Optional(Type.Integer({ default: 0, description: 'How long the message may wait for its device; with 0 it is sent now or not at all' })),
  confirm: Type.Optional(Type.Boolean({ default: false, description: 'Resolve only when the device has acknowledged the message' })),
  timeout: Type.Optional(Type.Integer({ description: 'How long to wait for the acknowledgement; `callTimeout` by default' })),
  collapse: Type.Optional(Type.String({ description: 'Replaces a waiting letter with the same collapse key' })),
  key: Type.Optional(Type.String({ description: 'Idempotency key: a retry with the same key and message gets the same result, and the message is delivered once' })),
  signal: Type.Optional(Type.Unsafe<CallSignal>(Type.Object({}, { description: 'Ends the wait for the acknowledgement' }))),
  request: Type.Optional(Type.Unsafe<RequestLike>(Type.Object({}, { description: 'The request that causes the message: a request of Fastify, or the context of a handler' })))
})

export interface SendResult {
  id: string
  status: 'sent' | Receipt['status']
}

export interface DispatcherLimits extends KeyLimits {
  callTimeout: number
  maxTtl: number
  maxBuffered: number
}

const WAKE_RETRY_INTERVAL_MS = 1_000
/** Wake-ups beyond this number are not retried: those devices get their letters when they reconnect. */
const MAX_PENDING_WAKES = 10_000

interface OutgoingMessage {
  id: string
  deviceId: string
  data: unknown
  request: RequestLike | undefined
  digest?: string
}

/** The result so far, with the error of a device that refused the message. */
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
  readonly #checks: OutboundChecks | undefined
  readonly #keys: IdempotencyKeys
  readonly #prefix = randomBytes(6).toString('base64url')
  #lastNumber = 0
  /** Devices with letters whose owners could not be woken. */
  readonly #pendingWakes = new Set<string>()
  #wakeTimer: NodeJS.Timeout | undefined
  #isClosed = false

  constructor (
    { registry, backplane, letters, node, limits, log, checks }:
    { registry: Registry, backplane: Backplane, letters: Letters, node: string, limits: DispatcherLimits, log: FastifyBaseLogger, checks?: OutboundChecks | undefined }
  ) {
    this.#registry = registry
    this.#backplane = backplane
    this.#letters = letters
    this.#node = node
    this.#limits = limits
    this.#log = log
    this.#checks = checks
    this.#keys = new IdempotencyKeys(limits)
  }

  /**
   * Returns the result at once if the device is connected to this node and its write queue has room, otherwise a promise. Throws, or rejects. `request` is
   * the one that causes a bulk send, whose messages have none of their own.
   */
  send (deviceId: string, given: unknown, options: SendOptions = {}, request = options.request): SendResult | Promise<SendResult> {
    return operations.hasSubscribers ? this.#sendAsOperation(deviceId, given, options, request) : this.#send(deviceId, given, options, request)
  }

  call (deviceId: string, method: string, params: unknown, options: CallOptions): Promise<unknown> {
    return operations.hasSubscribers ? this.#callAsOperation(deviceId, method, params, options) : this.#call(deviceId, method, params, options)
  }

  broadcast (given: unknown, topic?: string, request?: RequestLike): Promise<PublishResult & { id: string }> {
    return operations.hasSubscribers ? this.#broadcastAsOperation(given, topic, request) : this.#broadcast(given, topic, request)
  }

  #sendAsOperation (deviceId: string, given: unknown, options: SendOptions, request: RequestLike | undefined): SendResult | Promise<SendResult> {
    return operate({ kind: 'send', node: this.#node, deviceId }, request, request => this.#send(deviceId, given, options, request))
  }

  #callAsOperation (deviceId: string, method: string, params: unknown, options: CallOptions): Promise<unknown> {
    const facts = { kind: 'call', node: this.#node, deviceId, method, isKnown: this.#checks?.declares(method) === true } as const
    return operate(facts, options.request, request => this.#call(deviceId, method, params, { ...options, request }))
  }

  #broadcastAsOperation (given: unknown, topic: string | undefined, request: RequestLike | undefined): Promise<PublishResult & { id: string }> {
    return operate({ kind: 'broadcast', node: this.#node, topic }, request, request => this.#broadcast(given, topic, request))
  }

  #send (deviceId: string, given: unknown, options: SendOptions, request: RequestLike | undefined): SendResult | Promise<SendResult> {
    const { key, ttl = 0 } = options
    if (!isDeviceId(deviceId)) throw new Failure('bad-id')
    if (!(ttl >= 0 && ttl <= this.#limits.maxTtl)) throw new Failure('malformed', { message: `ttl must be from 0 to ${this.#limits.maxTtl} ms` })
    const data = this.#checks ? this.#checks.message(given) : given
    if (key === undefined) return this.#post({ id: this.#nextId(), deviceId, data, request }, options)
    const digest = digestOf(given instanceof Uint8Array ? 'bytes' : 'json', encodeBody(given))
    return this.#once({ id: digestOf(deviceId, key), deviceId, data, request, digest }, key, options)
  }

  #call (deviceId: string, method: string, params: unknown, { timeout = this.#limits.callTimeout, signal, request }: CallOptions): Promise<unknown> {
    const session = this.#sessionOf(deviceId)
    if (session) return session.call(method, params, { timeout, signal, request })
    const reach = (params: unknown) => this.reach(deviceId, { kind: 'call', method, params, timeout, context: contextOf(request) }, signal && abortSignalOf(signal))
    return this.#checks ? checkedCall(this.#checks, method, params, reach) : reach(params)
  }

  async #broadcast (given: unknown, topic: string | undefined, request: RequestLike | undefined): Promise<PublishResult & { id: string }> {
    const checks = this.#checks
    const data = checks ? topic === undefined ? checks.message(given) : checks.publication(topic, given) : given
    const id = this.#nextId()
    return { id, ...await this.#backplane.publish({ id, topic: topic ?? EVERYONE_TOPIC, data, context: contextOf(request) }) }
  }

  /** Sends a request to the owner of the device, on whichever node it is. */
  async reach (deviceId: string, request: SessionRequest, signal?: AbortSignal): Promise<unknown> {
    if (operations.hasSubscribers && 'context' in request && !this.#registry.get(deviceId)?.owner) return await this.#forwardAsOperation(deviceId, request, signal)
    return await this.#reach(deviceId, request, signal)
  }

  close (): void {
    this.#isClosed = true
    clearTimeout(this.#wakeTimer)
  }

  #forwardAsOperation (deviceId: string, request: SessionRequest & { context?: RequestContext | undefined }, signal: AbortSignal | undefined): Promise<unknown> {
    const facts = { kind: 'forward', node: this.#node, deviceId, method: request.kind, isKnown: true } as const
    return operate(facts, request.context, context => this.#reach(deviceId, { ...request, context: contextOf(context) } as SessionRequest, signal))
  }

  async #reach (deviceId: string, request: SessionRequest, signal: AbortSignal | undefined): Promise<unknown> {
    const answer = await this.#ask(deviceId, request, signal)
    if (!answer) throw new Failure('offline')
    return valueOf(answer)
  }

  /** A unique message id. */
  #nextId (): string {
    return `${this.#prefix}${(++this.#lastNumber).toString(36)}`
  }

  #post (message: OutgoingMessage, options: SendOptions): SendResult | Promise<SendResult> {
    const { ttl = 0, confirm = false } = options
    if (ttl === 0) return confirm ? this.#confirm(message, options) : this.#sendNow(message)
    const letter = this.#letterOf(message, options, ttl)
    return this.#settled(message, options, () => this.#keep(message, letter))
  }

  /**
   * One delivery per key, whatever the options. This node remembers what it sent; the mailbox remembers letters by their ids, and for longer. A retry
   * asks for the result of the first attempt, so the signal of the first caller must not end that attempt.
   */
  #once (message: OutgoingMessage, key: string, options: SendOptions): Promise<SendResult> {
    const { ttl = 0 } = options
    const post = async () => {
      if (ttl > 0) return await this.#keep(message, this.#letterOf(message, options, ttl))
      return await this.#earlierLetter(message) ?? await this.#post(message, { ...options, signal: undefined })
    }
    const isFinal = ({ status }: SendProgress) => ttl === 0 && status !== 'queued'
    return this.#settled(message, options, () => this.#keys.once(`${message.deviceId} ${key}`, message.digest!, post, isFinal))
  }

  #sendNow ({ id, deviceId, data = null, request }: OutgoingMessage): SendResult | Promise<SendResult> {
    const sent: SendResult = { id, status: 'sent' }
    const session = this.#sessionOf(deviceId)
    const pending = session ? offerMessage(session, id, data, request) : this.reach(deviceId, { kind: 'send', id, data, context: contextOf(request) })
    return pending ? pending.then(() => sent) : sent
  }

  async #confirm ({ id, deviceId, data = null, request }: OutgoingMessage, { timeout = this.#limits.callTimeout, signal }: SendOptions): Promise<SendResult> {
    await this.reach(deviceId, { kind: 'confirm', id, data, timeout, context: contextOf(request) }, signal && abortSignalOf(signal))
    return { id, status: 'delivered' }
  }

  #letterOf ({ id, deviceId, data, digest, request }: OutgoingMessage, { confirm, collapse }: SendOptions, ttl: number): Letter {
    const body = encodeBody(data)
    if (sizeOf(body) > this.#limits.maxBuffered / 2) throw new Failure('too-large')
    const session = this.#registry.get(deviceId)
    if (session?.isForeign) session.callFor(id, data) // throws if the protocol of the device cannot express it
    return { id, body, expiresAt: Date.now() + ttl, collapse: collapse && flatString(collapse), digest, awaitedBy: confirm ? this.#node : undefined, context: contextOf(request) }
  }

  /** Write, then deliver, then remove: the letter is stored before its owner is woken. */
  async #keep ({ id, deviceId, digest }: OutgoingMessage, letter: Letter): Promise<SendProgress> {
    const { receipt } = await this.#letters.put(deviceId, letter)
    if (receipt.digest !== digest) throw new Failure('key-mismatch')
    // also for a retry: the first attempt may have stored the letter and failed to wake the owner
    if (receipt.status === 'queued') this.#wake(deviceId, letter.context?.id)
    return { id, status: receipt.status, device: receipt.device }
  }

  /** The letter that was stored under the same key. A mailbox that cannot be read does not stop a message that is sent now. */
  async #earlierLetter ({ id, deviceId, digest }: OutgoingMessage): Promise<SendProgress | undefined> {
    const receipt = await this.#letters.receipt(deviceId, id).catch(ignoreFailure)
    if (!receipt) return undefined
    if (receipt.digest !== digest) throw new Failure('key-mismatch')
    return { id, status: receipt.status, device: receipt.device }
  }

  /** Sends or stores the message, and with `confirm` waits for the acknowledgement. */
  async #settled ({ id }: OutgoingMessage, { confirm, timeout = this.#limits.callTimeout, signal }: SendOptions, post: () => Promise<SendProgress>): Promise<SendResult> {
    if (!confirm) {
      const { status } = await post()
      return { id, status }
    }
    const wait = this.#letters.outcome(id, timeout, signal) // first, or the outcome may be missed
    try {
      const { status, device } = await post()
      if (status === 'sent') return { id, status }
      const outcome = status === 'queued' ? await wait.outcome : { ending: status, device }
      if (outcome && outcome.ending !== 'delivered') throw failureOf(outcome)
      return { id, status: outcome ? 'delivered' : 'queued' }
    } finally {
      wait.cancel()
    }
  }

  #wake (deviceId: string, reqId: string | undefined): void {
    const session = this.#registry.get(deviceId)
    if (session?.isIn) session.wake()
    else void this.#wakeOwner(deviceId, reqId)
  }

  /** Retries until the owner has answered. A device that is away gets its letters when it reconnects. */
  async #wakeOwner (deviceId: string, reqId?: string): Promise<void> {
    try {
      const answer = await this.#ask(deviceId, { kind: 'wake' })
      if (answer) valueOf(answer)
    } catch (error) {
      if (this.#isClosed) return
      if (!this.#pendingWakes.has(deviceId)) this.#log.warn({ err: error, reqId, deviceId }, 'delivery wake-up failed')
      if (this.#pendingWakes.size < MAX_PENDING_WAKES) this.#pendingWakes.add(deviceId)
      this.#wakeTimer ??= setTimeout(() => this.#wakeAgain(), WAKE_RETRY_INTERVAL_MS).unref()
      return
    }
    this.#pendingWakes.delete(deviceId)
  }

  #wakeAgain (): void {
    this.#wakeTimer = undefined
    for (const deviceId of this.#pendingWakes) void this.#wakeOwner(deviceId)
  }

  /** The session of a device that is connected here and welcomed, unless its protocol has no methods of ours: that one goes through its owner. */
  #sessionOf (deviceId: string): Session | undefined {
    const session = this.#registry.get(deviceId)
    return session?.isIn && !session.isForeign ? session : undefined
  }

  /** Undefined: nobody owns the device. */
  async #ask (deviceId: string, request: SessionRequest, signal?: AbortSignal): Promise<Answer | undefined> {
    const owner = this.#registry.get(deviceId)?.owner
    return owner ? await owner.serve(request, signal) : await this.#backplane.ask(deviceId, request, signal)
  }
}

/** Turns a `Failure` into undefined; any other error is a bug and is thrown on. */
function ignoreFailure (error: unknown): undefined {
  if (!(error instanceof Failure)) throw error
}

/** JSON text or bytes, as a letter holds it. */
function encodeBody (data: unknown): string | Uint8Array {
  if (data instanceof Uint8Array) return data
  try {
    const text: string | undefined = JSON.stringify(data ?? null)
    if (text === undefined) throw new TypeError(`a ${typeof data} is not data`)
    return text
  } catch (error) {
    throw new Failure('bad-params', { message: `Cannot be encoded: ${describeThrown(error)}` })
  }
}
