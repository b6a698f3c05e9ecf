import { isDeviceId } from '../protocol/device-id.ts'
import { Failure } from '../protocol/errors.ts'
import type { Call, Notice } from '../protocol/message.ts'
import { MAX_TIMER_MS, type InboundCall } from '../protocol/peer.ts'
import { reconnectDelay, type Backoff } from '../protocol/reconnect.ts'
import { matches } from '../protocol/topics.ts'
import { ClientConnection, VANISHED, type ConnectionEnd, type WebSocketLike } from './connection.ts'

export { Failure, Refusal, type Detail, type Reason } from '../protocol/errors.ts'
export type { WebSocketLike } from './connection.ts'

export interface ConnectOptions extends Partial<Backoff> {
  deviceId: string
  /** A token, or what gives one; it is asked anew before each connection, and has `timeout` to answer. */
  token?: string | (() => string | undefined | Promise<string | undefined>)
  /** Where there is no global one, as in Node 20: the one of `ws`. */
  WebSocket?: new (url: string, protocols: string[]) => WebSocketLike
  /** Milliseconds for the server to welcome us, and to answer a call, the wait for a connection included. */
  timeout?: number
  /** Calls that may wait for the connection to come back. */
  maxWaiting?: number
}

export interface CallOptions {
  timeout?: number
  signal?: AbortSignal
}

/** `stopped` is for good: `close` was called, or the server said not to come back. */
export interface Status {
  state: 'connecting' | 'connected' | 'waiting' | 'stopped'
  /** How the last connection ended, or the attempt at one. */
  code?: number
  reason?: string
  /** Milliseconds until the next try. */
  retryIn?: number
}

export interface Received {
  id: string
  data: any
  topic?: string
}

export type MethodHandler = (params: any, context: { signal: AbortSignal }) => unknown
export type MessageListener = (message: Received) => unknown

interface Listeners {
  message: Set<MessageListener>
  status: Set<(status: Status) => unknown>
  /** What a listener threw, and what went wrong where nobody waits. */
  error: Set<(error: unknown) => unknown>
}

type ListenerOf<Event extends keyof Listeners> = Listeners[Event] extends Set<infer Listener> ? Listener : never

/** More than a server has on their way at a time. */
const REMEMBERED = 1_000
/** Messages that may wait for the listeners to finish with the one before. */
const MOST_QUEUED = 10_000
const schemes = new Set(['ws:', 'wss:', 'tcp:', 'unix:'])
/** A connection that lasted so many times the first wait was a good one. */
const GOOD = 5

/**
 * Connects a device, and keeps it connected until it is closed or told not to come back. Throws where that can never be: no URL, no
 * WebSocket. A server that refuses the connection
 * itself (401, 403, ...) looks like one that cannot be reached: browsers do not show the status. So it is tried again, ever more
 * rarely, each time with a new token; whoever knows better calls `close`.
 */
export function connect (url: string, options: ConnectOptions): Client {
  return new Client(url, options)
}

/** A device: the other end of a session. */
export class Client implements ConnectionEnd {
  readonly #url: URL
  readonly #options: ConnectOptions & Backoff & Required<Pick<ConnectOptions, 'WebSocket' | 'timeout' | 'maxWaiting'>>
  readonly #handlers = new Map<string, MethodHandler>()
  readonly #listeners: Listeners = { message: new Set(), status: new Set(), error: new Set() }
  readonly #filters = new Map<string, Set<MessageListener>>()
  /** Calls that wait for the connection to come back. */
  readonly #waiting = new Set<(failure?: Failure) => void>()
  /** Ids of the letters that the application has seen, oldest first. */
  readonly #seen = new Set<string>()
  #status: Status = { state: 'connecting' }
  /** Why there is no connection. */
  #trouble = 'none yet'
  #line: ClientConnection | undefined
  #tries = 0
  #welcomedAt = Infinity
  #timer: ReturnType<typeof setTimeout> | undefined
  #shown: Promise<unknown> = Promise.resolve()
  #queued = 0

  constructor (url: string, options: ConnectOptions) {
    const { WebSocket = (globalThis as any).WebSocket, timeout = 10_000 } = options
    if (!WebSocket) throw new Error('There is no WebSocket here: give one as the option "WebSocket", in Node 20 that of the package ws')
    if (!isDeviceId(options.deviceId)) throw new TypeError('The option "deviceId" is 1 to 128 of A-Z a-z 0-9 . _ : @ + = ~ -')
    this.#url = new URL(url, (globalThis as any).location?.href)
    this.#url.protocol = this.#url.protocol.replace('http', 'ws')
    if (!schemes.has(this.#url.protocol)) throw new TypeError(`Not an address to connect to: ${url}`)
    this.#url.searchParams.set('deviceId', options.deviceId)
    this.#options = { minDelay: 1_000, maxDelay: 30_000, maxWaiting: 100, ...options, WebSocket, timeout: Math.min(timeout, MAX_TIMER_MS) }
    void this.#open()
  }

  get status (): Status {
    return this.#status
  }

  /** Answers a method that the server calls. */
  handle (method: string, handler: MethodHandler): this {
    this.#handlers.set(method, handler)
    return this
  }

  /**
   * A message is acknowledged once all its listeners have finished; the next one waits for that. Where one throws, or there is none,
   * it is not, and comes again; a `Refusal` says that it is not wanted.
   */
  on<Event extends keyof Listeners> (event: Event, listener: ListenerOf<Event>): this {
    (this.#listeners[event] as Set<unknown>).add(listener)
    return this
  }

  off<Event extends keyof Listeners> (event: Event, listener: ListenerOf<Event>): this {
    (this.#listeners[event] as Set<unknown>).delete(listener)
    return this
  }

  /** Waits for the connection where there is none, within its timeout. A call that was under way when the line broke is not repeated. */
  async call (method: string, params?: unknown, { timeout = this.#options.timeout, signal }: CallOptions = {}): Promise<any> {
    const until = performance.now() + timeout
    while (this.#status.state !== 'connected') await this.#connected(until - performance.now(), signal)
    return await this.#line!.peer.call(method, params, { timeout: until - performance.now(), signal })
  }

  /** Now or never. False: there was no connection. */
  notify (method: string, params?: unknown): boolean {
    if (this.#status.state !== 'connected') return false
    this.#line!.peer.notify(method, params)
    return true
  }

  /** Listens to a topic, over all connections to come; returns what ends it. */
  subscribe (filter: string, listener: MessageListener): () => void {
    const listeners = this.#filters.get(filter) ?? new Set()
    if (listeners.size === 0) this.#tell('subscribe', [filter])
    this.#filters.set(filter, listeners.add(listener))
    return () => {
      if (!listeners.delete(listener) || listeners.size > 0) return
      this.#filters.delete(filter)
      this.#tell('unsubscribe', [filter])
    }
  }

  async publish (topic: string, data: unknown, options?: CallOptions): Promise<void> {
    await this.call('publish', { topic, data }, options)
  }

  /** Ends the connection for good. No message is shown after it: letters that had not been come again to whoever connects next. */
  close (): void {
    if (this.#line) this.#line.close()
    else if (this.#status.state !== 'stopped') this.ended(1000, '')
  }

  // What a line asks of us.

  answer (asked: Call | Notice, inbound: InboundCall): unknown {
    if (asked.method === 'welcome') return this.#welcomed(asked.params as { heartbeat: number })
    if (asked.method !== 'message') return this.#handle(asked, inbound)
    const isLetter = asked.kind === 'call'
    const shown = this.#next(asked.params as Received, isLetter)
    return isLetter ? shown : undefined
  }

  ended (code: number, reason: string): void {
    clearTimeout(this.#timer)
    this.#timer = undefined // ends an attempt that waits for its token
    this.#line = undefined
    if (performance.now() - this.#welcomedAt >= GOOD * this.#options.minDelay) this.#tries = 0
    this.#welcomedAt = Infinity
    this.#trouble = reason || `it ended with ${code}`
    const retryIn = reconnectDelay(code, reason, this.#tries++, this.#options)
    if (retryIn !== undefined) {
      this.#timer = setTimeout(() => void this.#open(), retryIn)
      return this.#set({ state: 'waiting', code, reason, retryIn })
    }
    this.#set({ state: 'stopped', code, reason })
    for (const settle of this.#waiting) settle(this.#unconnected('dropped'))
  }

  failed (error: unknown): unknown {
    for (const listener of this.#listeners.error) {
      (async () => listener(error))().catch(() => {}) // there is nobody else to tell
    }
    return error
  }

  async #handle (asked: Call | Notice, inbound: InboundCall): Promise<unknown> {
    const handler = this.#handlers.get(asked.method)
    if (!handler) throw new Failure('unknown-method')
    try {
      return await handler(asked.params, inbound)
    } catch (error) {
      this.#failed(error)
      throw error
    }
  }

  /** Tells of an accident; who refuses means it. */
  #failed (error: unknown): void {
    if (!(error instanceof Failure)) this.failed(error)
  }

  /** Has `timeout` for all of it: the token, the connection and the welcome. */
  async #open (): Promise<void> {
    const { token, timeout, WebSocket } = this.#options
    const attempt = this.#timer = setTimeout(() => this.#line ? this.#line.cut() : this.ended(VANISHED, ''), timeout)
    this.#set({ state: 'connecting' })
    try {
      const bearer = await (typeof token === 'function' ? token() : token)
      if (this.#timer !== attempt) return // closed meanwhile, or too late
      this.#line = new ClientConnection(new WebSocket(this.#url.href, bearer ? ['jsonrpc', `bearer.${bearer}`] : ['jsonrpc']), this, timeout)
    } catch (error) { // no token to be had, or none that a header can hold
      if (this.#timer === attempt) this.ended(VANISHED, '')
      this.failed(error)
    }
  }

  #welcomed ({ heartbeat }: { heartbeat: number }): void {
    clearTimeout(this.#timer)
    this.#line!.listen(heartbeat)
    this.#welcomedAt = performance.now()
    this.#set({ state: 'connected' })
    if (this.#filters.size > 0) this.#tell('subscribe', [...this.#filters.keys()])
    for (const settle of this.#waiting) settle()
  }

  /** One message after the other, and no letter twice. */
  #next (message: Received, isLetter: boolean): Promise<object> {
    if (this.#queued === MOST_QUEUED) throw this.failed(new Failure('busy'))
    this.#queued++
    const shown = this.#shown.then(() => this.#show(message, isLetter))
    this.#shown = shown.catch(error => this.#failed(error)).then(() => { this.#queued-- })
    return shown
  }

  /** A letter whose listeners failed has not been seen: it may come again if the line broke before the server knew. */
  async #show (message: Received, isLetter: boolean): Promise<object> {
    const { id, topic } = message
    if (this.#status.state === 'stopped' || this.#seen.has(id)) return {}
    const listeners = this.#listenersTo(topic)
    if (isLetter && listeners.size === 0) throw new Error('A message came, and nothing listens')
    for (const listener of listeners) await listener(message)
    if (isLetter) this.#seen.add(id)
    if (this.#seen.size > REMEMBERED) this.#seen.delete(this.#seen.values().next().value!)
    return {}
  }

  #listenersTo (topic?: string): Set<MessageListener> {
    const found = new Set(this.#listeners.message)
    for (const [filter, listeners] of this.#filters) {
      if (topic !== undefined && matches(filter, topic)) for (const listener of listeners) found.add(listener)
    }
    return found
  }

  #connected (timeout: number, signal?: AbortSignal): Promise<void> {
    if (this.#status.state === 'stopped') throw this.#unconnected('dropped')
    if (this.#waiting.size >= this.#options.maxWaiting) throw new Failure('busy')
    return new Promise((resolve, reject) => {
      const settle = (failure?: Failure) => {
        clearTimeout(timer)
        signal?.removeEventListener('abort', giveUp)
        this.#waiting.delete(settle)
        if (failure) reject(failure)
        else resolve()
      }
      const giveUp = () => settle(new Failure('dropped'))
      const timer = setTimeout(() => settle(this.#unconnected('timeout')), Math.min(timeout, MAX_TIMER_MS))
      signal?.addEventListener('abort', giveUp)
      this.#waiting.add(settle)
      if (signal?.aborted) giveUp()
    })
  }

  #unconnected (reason: 'dropped' | 'timeout'): Failure {
    return new Failure(reason, { message: `No connection: ${this.#trouble}` })
  }

  /** While there is no connection nothing need be told: a welcome tells all there is. */
  #tell (method: 'subscribe' | 'unsubscribe', topics: string[]): void {
    if (this.#status.state === 'connected') void this.#line!.tell(method, topics)
  }

  #set (status: Status): void {
    this.#status = status
    for (const listener of this.#listeners.status) {
      if (this.#status !== status) return // a listener closed it
      (async () => listener(status))().catch(error => { this.failed(error) })
    }
  }
}
