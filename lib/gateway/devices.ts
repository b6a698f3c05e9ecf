import type { Backplane, ListPage, Presence, PublishResult, Unwatch } from '../cluster/backplane.ts'
import { builtins } from './builtins.ts'
import { Failure } from '../protocol/errors.ts'
import type { DialConnection, DialOptions, Dialer } from './dial.ts'
import type { EventMap, Events, EverywhereMap } from '../messaging/events.ts'
import type { Letters, LettersPage } from '../messaging/letters.ts'
import type { Receipt } from '../storage/mailbox.ts'
import type { Handler, Methods, MethodSchemas } from './methods.ts'
import type { Dispatcher, SendOptions, SendResult } from '../messaging/dispatcher.ts'
import type { CallOptions } from '../protocol/peer.ts'
import type { Registry } from '../connection/registry.ts'
import type { DeviceDescription, Device, Disconnect } from '../connection/device.ts'
import { isDeviceId } from '../protocol/device-id.ts'
import type { Counters, Stats } from '../connection/stats.ts'
import { isTopic, type TopicLimits } from '../protocol/topics.ts'
import { BulkSender, type BulkMessage } from '../messaging/bulk.ts'

/** What is known of a device, here or elsewhere or away. */
export type DeviceDetails = { deviceId: string, waiting: number, lastDisconnect?: Disconnect } & (DeviceDescription | { connected: false })

interface DevicesParts {
  registry: Registry
  dispatcher: Dispatcher
  letters: Letters
  methods: Methods
  events: Events
  stats: Stats
  backplane: Backplane
  /** Not of a worker, which has no way to ask. */
  dials: Dialer | undefined
  topic: TopicLimits
}

interface ReadResult {
  line: IteratorResult<BulkMessage | Failure, unknown>
}

const reserved = new Set(['message', 'welcome'])

/** What `app.devices` is. Iterates over the devices that are connected to this node. */
export class Devices {
  readonly #parts: DevicesParts
  #following: Unwatch | undefined

  constructor (parts: DevicesParts) {
    this.#parts = parts
  }

  /** How many devices are connected to this node. */
  get size (): number {
    return this.#parts.registry.size
  }

  /** The device, if it is connected to this node. */
  get (deviceId: string): Device | undefined {
    return this.#parts.registry.get(deviceId)
  }

  has (deviceId: string): boolean {
    return this.#parts.registry.has(deviceId)
  }

  [Symbol.iterator] (): IterableIterator<Device> {
    return this.#parts.registry[Symbol.iterator]()
  }

  /** Sends a message to a device, wherever it is. */
  async send (deviceId: string, data: unknown, options?: SendOptions): Promise<SendResult> {
    return await this.#parts.dispatcher.send(deviceId, data, options)
  }

  /**
   * Sends many, side by side; answers each in the order given, with what it became or why it failed. A failure among the
   * lines is passed on in its place.
   */
  async * sendMany (
    lines: Iterable<BulkMessage | Failure> | AsyncIterable<BulkMessage | Failure>,
    { signal }: { signal?: AbortSignal | undefined } = {}
  ): AsyncGenerator<SendResult | Failure> {
    const source = Symbol.asyncIterator in lines ? lines[Symbol.asyncIterator]() : lines[Symbol.iterator]()
    const read = () => {
      const line = (async (): Promise<ReadResult> => ({ line: await source.next() }))()
      line.catch(() => {}) // it may fail while nobody looks, and is looked at again
      return line
    }
    let wake!: () => void
    const volley = new BulkSender(this.#parts.dispatcher, () => wake(), signal)
    let reading: Promise<ReadResult> | undefined = read()
    try {
      for (;;) {
        for (let sent = volley.take(); sent; sent = volley.take()) yield sent
        if (!reading && volley.isEmpty) return
        const known = volley.isEmpty ? undefined : new Promise<undefined>(resolve => { wake = () => resolve(undefined) })
        const next: ReadResult | undefined = await Promise.race([volley.isFull ? undefined : reading, known].filter(one => one !== undefined))
        if (!next) continue
        if (!next.line.done) volley.add(next.line.value as BulkMessage | Failure)
        reading = next.line.done ? undefined : read()
      }
    } finally {
      // not waited for: it may itself wait for the next line
      Promise.resolve(source.return?.()).catch(() => {})
    }
  }

  /** Calls a method of a device, wherever it is, and resolves with its result. */
  async call (deviceId: string, method: string, params?: unknown, { timeout, signal }: Omit<CallOptions, 'id'> = {}): Promise<unknown> {
    if (reserved.has(method)) throw new Failure('bad-params', { message: `"${method}" is what the server sends by itself` })
    if (params !== undefined && (typeof params !== 'object' || params === null)) {
      throw new Failure('bad-params', { message: 'The params of a call are an object or an array' })
    }
    return await this.#parts.dispatcher.call(checked(deviceId), method, params, { timeout, signal })
  }

  /** Sends a message to all devices, or to those that listen to a topic. */
  async broadcast (data: unknown, { topic }: { topic?: string | undefined } = {}): Promise<PublishResult & { id: string }> {
    if (topic !== undefined) this.#checkTopic(topic)
    return await this.#parts.dispatcher.broadcast(data, topic)
  }

  /** Lets a device listen to a topic; resolves with all it listens to. */
  async join (deviceId: string, topic: string): Promise<string[]> {
    return await this.#parts.dispatcher.reach(checked(deviceId), { kind: 'join', topic }) as string[]
  }

  async leave (deviceId: string, topic: string): Promise<string[]> {
    return await this.#parts.dispatcher.reach(checked(deviceId), { kind: 'leave', topic }) as string[]
  }

  /** Ends the connection of a device; it is told not to come back by itself. */
  async disconnect (deviceId: string): Promise<void> {
    await this.#parts.dispatcher.reach(checked(deviceId), { kind: 'end' })
  }

  async describe (deviceId: string): Promise<DeviceDetails> {
    const { dispatcher, letters, registry } = this.#parts
    const waiting = await letters.waiting(checked(deviceId))
    const lastDisconnect = registry.lastDisconnect(deviceId)
    const known = { deviceId, waiting, ...(lastDisconnect && { lastDisconnect }) }
    try {
      return { ...known, ...await dispatcher.reach(deviceId, { kind: 'describe' }) as DeviceDescription }
    } catch (error) {
      const away = error instanceof Failure && error.reason === 'offline' && (waiting > 0 || lastDisconnect !== undefined)
      if (!away) throw error
      return { ...known, connected: false }
    }
  }

  /** Who is connected, over all nodes, in the order of ids. */
  async list ({ limit = 100, after, topic }: Partial<ListPage> = {}): Promise<Presence[]> {
    if (topic !== undefined) this.#checkTopic(topic)
    return await this.#parts.backplane.list({ limit, after, topic })
  }

  /** The letters that wait for a device. */
  async letters (deviceId: string, { limit = 100, after }: Partial<LettersPage> = {}): Promise<{ receipts: Receipt[], next: number | undefined }> {
    return await this.#parts.letters.page(checked(deviceId), { limit, after })
  }

  /** What became of a letter. */
  async receipt (deviceId: string, letterId: string): Promise<Receipt> {
    const receipt = await this.#parts.letters.receipt(checked(deviceId), letterId)
    if (!receipt) throw new Failure('unknown-message')
    return receipt
  }

  /** Takes a letter back while it waits. */
  async cancel (deviceId: string, letterId: string): Promise<Receipt> {
    const receipt = await this.receipt(deviceId, letterId)
    if (receipt.status !== 'queued' || !await this.#parts.letters.settle(deviceId, receipt, 'cancelled')) throw new Failure('settled')
    return await this.receipt(deviceId, letterId)
  }

  /** Takes all letters of a device back; resolves with how many. */
  async purge (deviceId: string): Promise<number> {
    return await this.#parts.letters.purge(checked(deviceId))
  }

  /** Connects to a device that listens, or to another server, and stays connected. */
  dial (url: string, options: DialOptions): DialConnection {
    return this.#parts.dials!.dial(url, options)
  }

  /** Answers a method that devices call. Several handlers of one method share the devices: each connection stays with one. */
  handle<S extends MethodSchemas> (method: string, schemas: S, handler: Handler<S>): this
  handle (method: string, handler: Handler): this
  handle (method: string, ...rest: [Handler] | [MethodSchemas, Handler]): this {
    if (builtins.has(method)) throw new Error(`The method "${method}" is built in`)
    const [schemas, handler] = rest.length === 1 ? [{}, rest[0]] : rest
    this.#parts.methods.handle(method, schemas, handler)
    return this
  }

  /** Listens to what happens on this node; `everywhere`: on all of them. */
  on<Name extends keyof EventMap> (event: Name, listener: (...args: EventMap[Name]) => void): this
  on<Name extends keyof EverywhereMap> (event: Name, listener: (...args: EverywhereMap[Name]) => void, options: { everywhere: true }): this
  on (event: any, listener: (...args: any) => void, { everywhere = false } = {}): this {
    const { events, backplane } = this.#parts
    events.on(everywhere ? `${event} everywhere` as 'connected everywhere' : event, listener)
    if (everywhere) this.#following ??= backplane.follow(({ kind, presence }) => events.emit(`${kind} everywhere`, presence))
    return this
  }

  off<Name extends keyof EventMap> (event: Name, listener: (...args: EventMap[Name]) => void): this
  off<Name extends keyof EverywhereMap> (event: Name, listener: (...args: EverywhereMap[Name]) => void, options: { everywhere: true }): this
  off (event: any, listener: (...args: any) => void, { everywhere = false } = {}): this {
    this.#parts.events.off(everywhere ? `${event} everywhere` as 'connected everywhere' : event, listener)
    return this
  }

  #checkTopic (topic: string): void {
    if (!isTopic(topic, this.#parts.topic)) throw new Failure('bad-topic')
  }

  stats (): Counters {
    return this.#parts.stats.read(this.size)
  }
}

function checked (deviceId: string): string {
  if (!isDeviceId(deviceId)) throw new Failure('bad-id')
  return deviceId
}
