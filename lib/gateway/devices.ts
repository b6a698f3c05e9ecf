import type { FastifyInstance } from 'fastify'
import type { Backplane, ListPage, Presence, PublishResult, Unwatch } from '../cluster/backplane.ts'
import { asyncApiOf } from './asyncapi.ts'
import type { Action } from './authorize.ts'
import { builtins, reservedMethods } from './builtins.ts'
import type { Contract, MethodSchemas } from '../protocol/contract.ts'
import { Failure } from '../protocol/errors.ts'
import type { DialConnection, DialOptions, Dialer } from './dial.ts'
import type { EventMap, Events, EverywhereMap } from '../messaging/events.ts'
import type { Letters, LettersPage } from '../messaging/letters.ts'
import type { NodeHealth, Readiness } from './readiness.ts'
import type { MailboxSize } from '../messaging/mailbox-size.ts'
import type { Receipt } from '../storage/mailbox.ts'
import type { Handler, Methods } from './methods.ts'
import type { Typed } from './typed.ts'
import type { Paths } from './paths.ts'
import { SendOptionsSchema, type Dispatcher, type SendOptions, type SendResult } from '../messaging/dispatcher.ts'
import type { CallOptions } from '../protocol/peer.ts'
import type { Registry } from '../connection/registry.ts'
import type { DeviceDescription, Device, Disconnect } from '../connection/device.ts'
import { isDeviceId } from '../protocol/device-id.ts'
import { checkOptionNames } from '../protocol/option-names.ts'
import type { Counters, Observer, Stats } from '../connection/stats.ts'
import { isTopic, type TopicLimits } from '../protocol/topics.ts'
import type { BulkMessage, BulkOptions } from '../messaging/bulk.ts'
import { sendMany } from '../messaging/send-many.ts'
import type { RequestLike } from '../protocol/request-context.ts'
import type { WebhookReport } from './webhook-options.ts'

/** A device, wherever it is: its waiting letters, how its last connection to this node ended, and its connection if it has one. */
export type DeviceDetails = { deviceId: string, waiting: number, lastDisconnect?: Disconnect } & (DeviceDescription | { connected: false })

export interface BroadcastOptions {
  /** Only the devices that are subscribed to it. */
  topic?: string | undefined
  /** The request that causes the message: a request of Fastify, or the context of a handler. */
  request?: RequestLike | undefined
}

/** Protects the routes of a scope: their callers do `action`. */
export type Protect = (scope: FastifyInstance, action: Action) => void

interface DevicesParts {
  registry: Registry
  dispatcher: Dispatcher
  letters: Letters
  methods: Methods
  events: Events
  stats: Stats
  backplane: Backplane
  /** A worker has none, and no method that needs it. */
  dials: Dialer | undefined
  /** The same. */
  protect: Protect | undefined
  /** The same. */
  webhooks: (() => Promise<WebhookReport[]>) | undefined
  topic: TopicLimits
  contract: Contract | undefined
  paths: Paths
  readiness: Readiness
  mailboxSize: MailboxSize
}

const sendOptions = SendOptionsSchema.properties
const sendManyOptions = { signal: true, request: true }
const callOptions = { timeout: true, signal: true, request: true }
const broadcastOptions = { topic: true, request: true }
const listOptions = { limit: true, after: true, prefix: true, topic: true }
const lettersOptions = { limit: true, after: true }
const listenerOptions = { everywhere: true }

/** `app.devices`. Iterates over the devices that are connected to this node. */
export class Devices {
  readonly #parts: DevicesParts
  #unfollow: Unwatch | undefined

  constructor (parts: DevicesParts) {
    this.#parts = parts
  }

  /** The number of devices connected to this node. */
  get size (): number {
    return this.#parts.registry.size
  }

  /** Returns the device, if it is connected to this node. */
  get (deviceId: string): Device | undefined {
    return this.#parts.registry.get(deviceId)
  }

  /** Returns whether the device is connected to this node. */
  has (deviceId: string): boolean {
    return this.#parts.registry.has(deviceId)
  }

  /** Where the REST routes and the WebSocket are. */
  get paths (): Paths {
    return this.#parts.paths
  }

  [Symbol.iterator] (): IterableIterator<Device> {
    return this.#parts.registry[Symbol.iterator]()
  }

  /**
   * Sends a message to a device, on whichever node it is connected. A device that is away gets it later only with a `ttl`; without one,
   * the promise rejects with `DEVICE_OFFLINE`.
   */
  async send (deviceId: string, data: unknown, options?: SendOptions): Promise<SendResult> {
    if (options) checkOptionNames('send()', options, sendOptions)
    return await this.#parts.dispatcher.send(deviceId, data, options)
  }

  /**
   * Sends many messages concurrently. Messages are sent as you consume the iterator; results arrive in input order: a `SendResult`, or the
   * `Failure` of that message. A `Failure` among the input is passed on in its place.
   */
  async * sendMany (
    messages: Iterable<BulkMessage | Failure> | AsyncIterable<BulkMessage | Failure>,
    options: BulkOptions = {}
  ): AsyncGenerator<SendResult | Failure> {
    checkOptionNames('sendMany()', options, sendManyOptions)
    yield* sendMany(this.#parts.dispatcher, messages, options)
  }

  /**
   * Calls a method of a device, on whichever node it is connected, and resolves with the result. `params` is an object or an array.
   * `timeout` is in milliseconds; by default it is the option `callTimeout`.
   */
  async call (deviceId: string, method: string, params?: unknown, options: Omit<CallOptions, 'id'> = {}): Promise<unknown> {
    checkOptionNames('call()', options, callOptions)
    if (reservedMethods.has(method)) throw new Failure('bad-params', { message: `"${method}" is reserved for the server itself` })
    if (params !== undefined && (typeof params !== 'object' || params === null)) {
      throw new Failure('bad-params', { message: 'The params of a call are an object or an array' })
    }
    const { timeout, signal, request } = options
    return await this.#parts.dispatcher.call(checkedId(deviceId), method, params, { timeout, signal, request })
  }

  /** Sends a message to all devices of all nodes, or to those that are subscribed to `topic`. */
  async broadcast (data: unknown, options: BroadcastOptions = {}): Promise<PublishResult & { id: string }> {
    checkOptionNames('broadcast()', options, broadcastOptions)
    const { topic, request } = options
    if (topic !== undefined) this.#checkTopic(topic)
    return await this.#parts.dispatcher.broadcast(data, topic, request)
  }

  /** Subscribes a device to a topic filter; resolves with all filters of the device. */
  async join (deviceId: string, topic: string): Promise<string[]> {
    return await this.#parts.dispatcher.reach(checkedId(deviceId), { kind: 'join', topic }) as string[]
  }

  /** Unsubscribes a device from a topic filter; resolves with the filters that remain. */
  async leave (deviceId: string, topic: string): Promise<string[]> {
    return await this.#parts.dispatcher.reach(checkedId(deviceId), { kind: 'leave', topic }) as string[]
  }

  /** Ends the connection of a device, with a close code that tells it not to reconnect by itself. */
  async disconnect (deviceId: string): Promise<void> {
    await this.#parts.dispatcher.reach(checkedId(deviceId), { kind: 'end' })
  }

  /** Describes a device. Rejects with `DEVICE_OFFLINE` if it is not connected, has no letters, and was not on this node recently. */
  async describe (deviceId: string): Promise<DeviceDetails> {
    const { dispatcher, letters, registry } = this.#parts
    const waiting = await letters.waiting(checkedId(deviceId))
    const lastDisconnect = registry.lastDisconnect(deviceId)
    const details = { deviceId, waiting, ...(lastDisconnect && { lastDisconnect }) }
    try {
      return { ...details, ...await dispatcher.reach(deviceId, { kind: 'describe' }) as DeviceDescription }
    } catch (error) {
      const isKnown = error instanceof Failure && error.reason === 'offline' && (waiting > 0 || lastDisconnect !== undefined)
      if (!isKnown) throw error
      return { ...details, connected: false }
    }
  }

  /**
   * Lists the connected devices of all nodes, ordered by id: at most `limit` (100 by default), with ids after `after`. With `prefix` only those whose
   * ids begin with it, with `topic` only those that are subscribed to it.
   */
  async list (options: Partial<ListPage> = {}): Promise<Presence[]> {
    checkOptionNames('list()', options, listOptions)
    const { limit = 100, after, prefix, topic } = options
    if (topic !== undefined) this.#checkTopic(topic)
    return await this.#parts.backplane.list({ limit, after, prefix, topic })
  }

  /** Lists the letters that wait for a device, oldest first. `next` is the `after` of the next page, or undefined if this is the last one. */
  async letters (deviceId: string, options: Partial<LettersPage> = {}): Promise<{ receipts: Receipt[], next: number | undefined }> {
    checkOptionNames('letters()', options, lettersOptions)
    const { limit = 100, after } = options
    return await this.#parts.letters.page(checkedId(deviceId), { limit, after })
  }

  /** Returns the receipt of a letter: whether it waits, was delivered, or how else it ended. */
  async receipt (deviceId: string, letterId: string): Promise<Receipt> {
    const receipt = await this.#parts.letters.receipt(checkedId(deviceId), letterId)
    if (!receipt) throw new Failure('unknown-message')
    return receipt
  }

  /** Cancels a letter that waits; rejects with `MESSAGE_SETTLED` if it has ended already. */
  async cancel (deviceId: string, letterId: string): Promise<Receipt> {
    const receipt = await this.receipt(deviceId, letterId)
    if (receipt.status !== 'queued' || !await this.#parts.letters.settle(deviceId, receipt, 'cancelled')) throw new Failure('settled')
    return await this.receipt(deviceId, letterId)
  }

  /** Cancels all letters that wait for a device; resolves with their number. */
  async purge (deviceId: string): Promise<number> {
    return await this.#parts.letters.purge(checkedId(deviceId))
  }

  /** Connects to a device that listens, or to another server, and reconnects until the connection is closed. */
  dial (url: string, options: DialOptions): DialConnection {
    return this.#parts.dials!.dial(url, options)
  }

  /** Returns this object, typed by the contract, which is the one of the option `contract`. */
  as<C extends Contract> (contract: C): Typed<this, C> {
    if (contract !== this.#parts.contract) throw new Error('as() takes the contract of the option "contract"')
    return this as unknown as Typed<this, C>
  }

  /**
   * Adds a handler for a method that devices call. Several handlers of a method share the devices: each connection stays with one.
   * Without schemas it has those of the contract.
   */
  handle<S extends MethodSchemas> (method: string, schemas: S, handler: Handler<S>): this
  handle (method: string, handler: Handler): this
  handle (method: string, ...rest: [Handler] | [MethodSchemas, Handler]): this {
    if (builtins.has(method)) throw new Error(`The method "${method}" is built in`)
    const [schemas, handler] = rest.length === 1 ? [methodOf(this.#parts.contract, method), rest[0]] : rest
    this.#parts.methods.handle(method, schemas, handler)
    return this
  }

  /** Listens to an event of this node; with `everywhere`, to `connected` or `disconnected` of all nodes. */
  on<Name extends keyof EventMap> (event: Name, listener: (...args: EventMap[Name]) => void): this
  on<Name extends keyof EverywhereMap> (event: Name, listener: (...args: EverywhereMap[Name]) => void, options: { everywhere: true }): this
  on (event: any, listener: (...args: any) => void, options: { everywhere?: boolean } = {}): this {
    const { events, backplane } = this.#parts
    events.on(eventOf('on()', event, options), listener)
    if (options.everywhere) this.#unfollow ??= backplane.follow(({ kind, presence }) => events.emit(`${kind} everywhere`, presence))
    return this
  }

  /** Removes a listener that was added with the same event, function and options. */
  off<Name extends keyof EventMap> (event: Name, listener: (...args: EventMap[Name]) => void): this
  off<Name extends keyof EverywhereMap> (event: Name, listener: (...args: EverywhereMap[Name]) => void, options: { everywhere: true }): this
  off (event: any, listener: (...args: any) => void, options: { everywhere?: boolean } = {}): this {
    this.#parts.events.off(eventOf('off()', event, options), listener)
    return this
  }

  #checkTopic (topic: string): void {
    if (!isTopic(topic, this.#parts.topic)) throw new Failure('bad-topic')
  }

  /** Describes the WebSocket of devices as an AsyncAPI 3 document. */
  asyncapi (): object {
    const { paths, contract } = this.#parts
    return asyncApiOf({ address: paths.socket, contract })
  }

  /** Resolves once the mailbox and the backplane can be used; rejects with `NODE_DRAINING` when the application closes. */
  async ready (): Promise<void> {
    await this.#parts.readiness.ready()
  }

  /** Whether the mailbox and the backplane can be used, and if not, why. For readiness probes: never rejects, and takes a second at most. */
  async health (): Promise<NodeHealth> {
    return await this.#parts.readiness.health()
  }

  /** Describes the endpoints of the option `webhooks`: their state, what waits for them, and how the last request failed. */
  async webhooks (): Promise<WebhookReport[]> {
    return await this.#parts.webhooks!()
  }

  /** Returns the counters of this node. */
  stats (): Counters {
    const { stats, registry } = this.#parts
    return { ...stats.read(this.size), connected: registry.connected }
  }

  /** The number of letters that wait in the mailbox, over all devices; undefined if the mailbox does not count them, fails, or takes longer than a second. */
  async lettersWaiting (): Promise<number | undefined> {
    return await this.#parts.mailboxSize.read()
  }

  /** Whether this node handles a method that devices call (`in`), or the contract names it; for a method of devices (`out`), whether the contract names it. */
  declares (direction: 'in' | 'out', method: string): boolean {
    const { contract, methods } = this.#parts
    return (direction === 'in' && methods.has(method)) || Object.hasOwn((direction === 'in' ? contract?.methods : contract?.commands) ?? {}, method)
  }

  /** Tells a monitoring system of each call that ends and each pong, on this node. Returns a function that removes the observer. */
  observe (observer: Observer): () => void {
    return this.#parts.stats.observe(observer)
  }

  /**
   * Protects routes of your own like the REST routes: callers of the routes that are added to `scope` after this must pass `guard`, protected mode and
   * `origins`, and `authorize` is asked whether they may do `action`.
   */
  protect (scope: FastifyInstance, action: Action): void {
    this.#parts.protect!(scope, action)
  }
}

function methodOf (contract: Contract | undefined, name: string): MethodSchemas {
  const methods = contract?.methods
  return methods && Object.hasOwn(methods, name) ? methods[name]! : {}
}

function checkedId (deviceId: string): string {
  if (!isDeviceId(deviceId)) throw new Failure('bad-id')
  return deviceId
}

function eventOf (method: string, event: string, options: { everywhere?: boolean }): 'connected everywhere' {
  checkOptionNames(method, options, listenerOptions)
  return (options.everywhere ? `${event} everywhere` : event) as 'connected everywhere'
}
