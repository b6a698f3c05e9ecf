import type { Contract } from '../protocol/contract.ts'
import { Failure } from '../protocol/errors.ts'
import type { Call, Notice } from '../protocol/message.ts'
import { MAX_TIMER_MS, type InboundCall } from '../protocol/peer.ts'
import { reconnectDelay } from '../protocol/reconnect.ts'
import { matches } from '../protocol/topics.ts'
import { ClientConnection, ABNORMAL_CLOSURE, NORMAL_CLOSURE, type ConnectionHandler } from './connection.ts'
import { clientOptions, type CallOptions, type ClientOptions, type ConnectOptions } from './options.ts'
import type { Received } from './received.ts'
import type { Typed } from './typed.ts'

export { Failure, Refusal, type Detail, type Reason } from '../protocol/errors.ts'
export type { WebSocketLike } from './connection.ts'
export { contract, type Contract, type MethodSchemas } from '../protocol/contract.ts'
export type { CallOptions, ConnectOptions } from './options.ts'
export type { ClientTracer } from './tracer.ts'
export type { Received } from './received.ts'
export type { Typed } from './typed.ts'

export interface Status {
  /** `waiting`: another attempt follows. `stopped`: final, because `close` was called or the server forbade reconnecting. */
  state: 'connecting' | 'connected' | 'waiting' | 'stopped'
  /** Close code of the last connection or connection attempt. */
  code?: number
  reason?: string
  /** Milliseconds until the next connection attempt. */
  retryIn?: number
}

export type MethodHandler = (params: any, context: { signal: AbortSignal }) => unknown
export type MessageListener = (message: Received) => unknown

interface Listeners {
  message: Set<MessageListener>
  status: Set<(status: Status) => unknown>
  /** Errors that listeners and handlers threw, and failures that no caller can receive. */
  error: Set<(error: unknown) => unknown>
}

type ListenerOf<Event extends keyof Listeners> = Listeners[Event] extends Set<infer Listener> ? Listener : never

/** More letters than a server sends before their acknowledgement. */
const MAX_REMEMBERED_IDS = 1_000
/** Received messages that may wait for the listeners. */
const MAX_QUEUED_MESSAGES = 10_000
const schemes = /^(wss?|tcp|unix):/
/** A connection resets the backoff if it lasted this many times `minDelay`. */
const STABLE_AFTER_DELAYS = 5

/**
 * Connects a device and reconnects it until `close` is called or the server forbids it. Throws at once if an option or the URL is invalid, or if there is no
 * WebSocket. An attempt that the server refuses over HTTP (401, 403, ...) is retried with backoff and a new token, like one that cannot reach the server:
 * browsers do not reveal the status. Call `close` to stop. With a contract the client has its types.
 */
export function connect (url: string, options: Omit<ConnectOptions, 'contract'>): Client
export function connect<C extends Contract> (url: string, options: ConnectOptions & { contract?: C }): Typed<Client, C>
export function connect (url: string, options: ConnectOptions): Client {
  return new Client(url, options)
}

/** A connected device; it keeps its subscriptions over all its connections. */
export class Client implements ConnectionHandler {
  readonly #url: URL
  readonly #options: ClientOptions
  readonly #handlers = new Map<string, MethodHandler>()
  readonly #listeners: Listeners = { message: new Set(), status: new Set(), error: new Set() }
  readonly #subscriptions = new Map<string, Set<MessageListener>>()
  /** Calls that wait for a connection. */
  readonly #connectionWaiters = new Set<(failure?: Failure) => void>()
  /** Ids of the letters that the listeners have processed, oldest first. */
  readonly #processedIds = new Set<string>()
  #status: Status = { state: 'connecting' }
  #disconnectReason = 'none yet'
  #connection: ClientConnection | undefined
  #attempts = 0
  #welcomedAt = Infinity
  /** Of the current attempt or of the delay before the next one. */
  #timer: ReturnType<typeof setTimeout> | undefined
  #lastDelivery: Promise<unknown> = Promise.resolve()
  #queued = 0

  constructor (url: string, options: ConnectOptions) {
    this.#options = clientOptions(options)
    this.#url = new URL(url, (globalThis as any).location?.href)
    this.#url.protocol = this.#url.protocol.replace('http', 'ws')
    if (!schemes.test(this.#url.href)) throw new TypeError(`Invalid URL: ${url}`)
    this.#url.searchParams.set('deviceId', options.deviceId)
    if (options.tracer) this.#url.searchParams.set('trace', '1')
    void this.#open()
  }

  get status (): Status {
    return this.#status
  }

  /** Registers the handler of a method that the server may call. What it returns or throws is the answer. */
  handle (method: string, handler: MethodHandler): this {
    this.#handlers.set(method, handler)
    return this
  }

  /**
   * Adds a listener. Messages are delivered one at a time; a letter is acknowledged once all its listeners have finished. If a listener throws, or there is
   * none, the server sends the letter again; if it throws a `Refusal`, the server gives the letter up.
   */
  on<Event extends keyof Listeners> (event: Event, listener: ListenerOf<Event>): this {
    (this.#listeners[event] as Set<unknown>).add(listener)
    return this
  }

  off<Event extends keyof Listeners> (event: Event, listener: ListenerOf<Event>): this {
    (this.#listeners[event] as Set<unknown>).delete(listener)
    return this
  }

  /** Calls a method of the server. Waits for a connection if there is none. A call in flight when the connection ends fails with `dropped` and is not repeated. */
  async call (method: string, params?: unknown, { timeout = this.#options.timeout, signal }: CallOptions = {}): Promise<any> {
    const deadline = performance.now() + timeout
    while (this.#status.state !== 'connected') await this.#waitForConnection(deadline - performance.now(), signal)
    return await this.#options.run({ method }, trace => this.#connection!.peer.call(method, params, { timeout: deadline - performance.now(), signal, trace }))
  }

  /** Sends a notice, which gets no answer. Returns false, and sends nothing, if there is no connection. */
  notify (method: string, params?: unknown): boolean {
    if (this.#status.state !== 'connected') return false
    this.#connection!.peer.notify(method, params)
    return true
  }

  /** Subscribes to a topic filter, now and after each reconnection. Returns a function that unsubscribes. */
  subscribe (filter: string, listener: MessageListener): () => void {
    const listeners = this.#subscriptions.get(filter) ?? new Set()
    if (listeners.size === 0) this.#requestTopics('subscribe', [filter])
    this.#subscriptions.set(filter, listeners.add(listener))
    return () => {
      if (!listeners.delete(listener) || listeners.size > 0) return
      this.#subscriptions.delete(filter)
      this.#requestTopics('unsubscribe', [filter])
    }
  }

  async publish (topic: string, data: unknown, options?: CallOptions): Promise<void> {
    await this.call('publish', { topic, data }, options)
  }

  /** Closes the connection and does not reconnect. No message is delivered afterwards; unacknowledged letters go to the next connection of the device. */
  close (): void {
    if (this.#connection) this.#connection.close()
    else if (this.#status.state !== 'stopped') this.ended(NORMAL_CLOSURE, '')
  }

  // The handler of the connection.

  answer (request: Call | Notice, inbound: InboundCall): unknown {
    if (request.method === 'welcome') return this.#welcomed(request.params as { heartbeat: number })
    if (request.method !== 'message') return this.#handle(request, inbound)
    const delivered = this.#enqueue(request)
    return request.kind === 'call' ? delivered : undefined
  }

  ended (code: number, reason: string): void {
    clearTimeout(this.#timer)
    this.#timer = undefined // cancels an attempt that waits for its token
    this.#connection = undefined
    if (performance.now() - this.#welcomedAt >= STABLE_AFTER_DELAYS * this.#options.minDelay) this.#attempts = 0
    this.#welcomedAt = Infinity
    this.#disconnectReason = reason || `closed with code ${code}`
    const retryIn = reconnectDelay(code, reason, this.#attempts++, this.#options)
    if (retryIn !== undefined) {
      this.#timer = setTimeout(() => void this.#open(), retryIn)
      return this.#setStatus({ state: 'waiting', code, reason, retryIn })
    }
    this.#setStatus({ state: 'stopped', code, reason })
    for (const settle of this.#connectionWaiters) settle(this.#noConnection('dropped'))
  }

  failed (error: unknown): unknown {
    for (const listener of this.#listeners.error) {
      (async () => listener(error))().catch(() => {}) // an error listener that throws has no listener
    }
    return error
  }

  async #handle (request: Call | Notice, inbound: InboundCall): Promise<unknown> {
    const handler = this.#handlers.get(request.method)
    if (!handler) throw new Failure('unknown-method')
    try {
      return await this.#options.run(request, () => handler(request.params, inbound))
    } catch (error) {
      this.#reportUnexpected(error)
      throw error
    }
  }

  /** Reports an unexpected error; a `Failure` is a deliberate answer. */
  #reportUnexpected (error: unknown): void {
    if (!(error instanceof Failure)) this.failed(error)
  }

  /** One connection attempt. `timeout` covers the token, the connection and the welcome. */
  async #open (): Promise<void> {
    const { token, timeout, WebSocket, codec } = this.#options
    const attempt = this.#timer = setTimeout(() => this.#connection ? this.#connection.terminate() : this.ended(ABNORMAL_CLOSURE, ''), timeout)
    this.#setStatus({ state: 'connecting' })
    try {
      const bearer = await (typeof token === 'function' ? token() : token)
      if (this.#timer !== attempt) return // closed or timed out meanwhile
      this.#connection = new ClientConnection(new WebSocket(this.#url.href, bearer ? ['jsonrpc', `bearer.${bearer}`] : ['jsonrpc']), this, timeout, codec)
    } catch (error) { // the token function failed, or the token is not valid in a header
      if (this.#timer === attempt) this.ended(ABNORMAL_CLOSURE, '')
      this.failed(error)
    }
  }

  #welcomed ({ heartbeat }: { heartbeat: number }): void {
    clearTimeout(this.#timer)
    this.#connection!.watchLiveness(heartbeat)
    this.#welcomedAt = performance.now()
    this.#setStatus({ state: 'connected' })
    if (this.#subscriptions.size > 0) this.#requestTopics('subscribe', [...this.#subscriptions.keys()])
    for (const settle of this.#connectionWaiters) settle()
  }

  /** Delivers messages one at a time, in order. */
  #enqueue (request: Call | Notice): Promise<object> {
    if (this.#queued === MAX_QUEUED_MESSAGES) throw this.failed(new Failure('busy'))
    this.#queued++
    const delivered = this.#lastDelivery.then(() => this.#deliver(request))
    this.#lastDelivery = delivered.catch(error => this.#reportUnexpected(error)).then(() => { this.#queued-- })
    return delivered
  }

  /** Skips a letter that was processed before: the connection ended before the server received its acknowledgement. A failed letter is not remembered. */
  async #deliver (request: Call | Notice): Promise<object> {
    const isLetter = request.kind === 'call'
    const message = request.params as Received
    if (this.#status.state === 'stopped' || this.#processedIds.has(message.id)) return {}
    const listeners = this.#listenersTo(message.topic)
    if (isLetter && listeners.size === 0) throw new Error('No message listener')
    await this.#options.run(request, async () => { for (const listener of listeners) await listener(message) })
    if (isLetter) this.#processedIds.add(message.id)
    if (this.#processedIds.size > MAX_REMEMBERED_IDS) this.#processedIds.delete(this.#processedIds.values().next().value!)
    return {}
  }

  #listenersTo (topic?: string): Set<MessageListener> {
    const found = new Set(this.#listeners.message)
    for (const [filter, listeners] of this.#subscriptions) {
      if (topic !== undefined && matches(filter, topic)) for (const listener of listeners) found.add(listener)
    }
    return found
  }

  #waitForConnection (timeout: number, signal?: AbortSignal): Promise<void> {
    if (this.#status.state === 'stopped') throw this.#noConnection('dropped')
    if (this.#connectionWaiters.size >= this.#options.maxWaiting) throw new Failure('busy')
    return new Promise((resolve, reject) => {
      const settle = (failure?: Failure) => {
        clearTimeout(timer)
        signal?.removeEventListener('abort', giveUp)
        this.#connectionWaiters.delete(settle)
        if (failure) reject(failure)
        else resolve()
      }
      const giveUp = () => settle(new Failure('dropped'))
      const timer = setTimeout(() => settle(this.#noConnection('timeout')), Math.min(timeout, MAX_TIMER_MS))
      signal?.addEventListener('abort', giveUp)
      this.#connectionWaiters.add(settle)
      if (signal?.aborted) giveUp()
    })
  }

  #noConnection (reason: 'dropped' | 'timeout'): Failure {
    return new Failure(reason, { message: `No connection: ${this.#disconnectReason}` })
  }

  /** Without a connection there is nothing to send: `#welcomed` subscribes to all filters. */
  #requestTopics (method: 'subscribe' | 'unsubscribe', topics: string[]): void {
    if (this.#status.state === 'connected') void this.#connection!.requestTopics(method, topics)
  }

  #setStatus (status: Status): void {
    this.#status = status
    for (const listener of this.#listeners.status) {
      if (this.#status !== status) return // a listener changed the status, for example with `close`
      (async () => listener(status))().catch(error => { this.failed(error) })
    }
  }
}
