import { Failure } from '../errors.ts'
import type { Call, Notice } from '../message.ts'
import type { Inbound } from '../peer.ts'
import { Topics } from '../topics.ts'
import { Line, type End, type WebSocketLike } from './line.ts'
import { waitOf, type Backoff } from '../retry.ts'

export interface ConnectOptions extends Partial<Backoff> {
  deviceId: string
  /** A token, or what gives one; it is asked anew before each connection. */
  token?: string | (() => string | undefined | Promise<string | undefined>)
  /** Where there is no global one, as in Node 20: the one of `ws`. */
  WebSocket?: new (url: string, protocols: string[]) => WebSocketLike
  /** Milliseconds for the server to answer a call, the wait for a connection included. */
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
  /** How the last connection ended. */
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

interface Waiting {
  settle (failure?: Failure): void
}

const REMEMBERED = 1_000
/** Messages that may wait for the listeners to finish with the one before. */
const MOST_QUEUED = 10_000
/** A connection that lasted so many times the first wait was a good one. */
const GOOD = 5

/** Connects a device, and keeps it connected until it is closed or told not to come back. */
export function connect (url: string, options: ConnectOptions): Client {
  return new Client(url, options)
}

/** A device: the other end of a session. */
export class Client implements End {
  readonly #url: string
  readonly #options: ConnectOptions & Backoff & { timeout: number, maxWaiting: number }
  readonly #handlers = new Map<string, MethodHandler>()
  readonly #listeners: Listeners = { message: new Set(), status: new Set(), error: new Set() }
  readonly #topics = new Topics<MessageListener>()
  readonly #filters = new Set<string>()
  readonly #waiting = new Set<Waiting>()
  /** Ids of the messages that the application has seen, oldest first. */
  readonly #seen = new Set<string>()
  #status: Status = { state: 'connecting' }
  #line: Line | undefined
  #tries = 0
  #timer: ReturnType<typeof setTimeout> | undefined
  #shown: Promise<unknown> = Promise.resolve()
  #queued = 0

  constructor (url: string, options: ConnectOptions) {
    this.#url = url
    this.#options = { first: 1_000, most: 30_000, timeout: 10_000, maxWaiting: 100, ...options }
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

  /** A message is acknowledged once all its listeners have finished; the next one waits for that. */
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
    const until = Date.now() + timeout
    await this.#connected(timeout, signal)
    return await this.#line!.peer.call(method, params, { timeout: until - Date.now(), signal })
  }

  /** Now or never. False: there was no connection. */
  notify (method: string, params?: unknown): boolean {
    if (this.#status.state !== 'connected') return false
    this.#line!.peer.notify(method, params)
    return true
  }

  /** Listens to a topic, over all connections to come; returns what ends it. */
  subscribe (filter: string, listener: MessageListener): () => void {
    if (this.#topics.add(filter, listener)) {
      this.#filters.add(filter)
      this.#tell('subscribe', [filter])
    }
    return () => {
      if (!this.#topics.remove(filter, listener)) return
      this.#filters.delete(filter)
      this.#tell('unsubscribe', [filter])
    }
  }

  async publish (topic: string, data: unknown, options?: CallOptions): Promise<void> {
    await this.call('publish', { topic, data }, options)
  }

  /** Ends the connection for good. */
  close (): void {
    clearTimeout(this.#timer)
    if (this.#line) this.#line.close()
    else this.#stop({ state: 'stopped' })
  }

  // What a line asks of us.

  answer (asked: Call | Notice, inbound: Inbound): unknown {
    if (asked.method === 'welcome') return this.#welcomed(asked.params as { heartbeat: number })
    if (asked.method === 'message') {
      const shown = this.#next(asked.params as Received)
      return asked.kind === 'call' ? shown : undefined
    }
    const handler = this.#handlers.get(asked.method)
    if (!handler) throw new Failure('unknown-method')
    return handler(asked.params, inbound)
  }

  ended (code: number, reason: string): void {
    const lasted = Date.now() - this.#line!.openedAt
    this.#line = undefined
    if (lasted >= GOOD * this.#options.first) this.#tries = 0
    const retryIn = waitOf(code, reason, this.#tries++, this.#options)
    if (retryIn === undefined) return this.#stop({ state: 'stopped', code, reason })
    this.#wait({ state: 'waiting', code, reason, retryIn })
  }

  #wait (status: Status & { retryIn: number }): void {
    this.#timer = setTimeout(() => void this.#open(), status.retryIn)
    this.#set(status)
  }

  #stop (status: Status): void {
    this.#set(status)
    for (const { settle } of this.#waiting) settle(new Failure('dropped'))
  }

  async #open (): Promise<void> {
    this.#set({ state: 'connecting' })
    const { deviceId, token, WebSocket = (globalThis as any).WebSocket } = this.#options
    try {
      const bearer = typeof token === 'function' ? await token() : token
      if (this.#status.state === 'stopped') return
      const url = new URL(this.#url, (globalThis as any).location?.href)
      url.protocol = url.protocol.replace('http', 'ws')
      url.searchParams.set('deviceId', deviceId)
      this.#line = new Line(new WebSocket(url.href, bearer ? ['jsonrpc', `bearer.${bearer}`] : ['jsonrpc']), this)
    } catch (error) { // no token to be had, or none that a header can hold
      this.#failed(error)
      this.#wait({ state: 'waiting', retryIn: waitOf(0, '', this.#tries++, this.#options)! })
    }
  }

  #welcomed ({ heartbeat }: { heartbeat: number }): void {
    this.#line!.listen(heartbeat)
    this.#set({ state: 'connected' })
    if (this.#filters.size > 0) this.#tell('subscribe', [...this.#filters])
    for (const { settle } of this.#waiting) settle()
  }

  /** One message after the other, and none twice. */
  #next (message: Received): Promise<object> {
    if (this.#queued === MOST_QUEUED) throw this.#failed(new Failure('busy'))
    this.#queued++
    const shown = this.#shown.then(() => this.#show(message))
    this.#shown = shown.catch(error => this.#failed(error)).finally(() => { this.#queued-- })
    return shown
  }

  async #show (message: Received): Promise<object> {
    const { id, topic } = message
    if (this.#seen.has(id)) return {}
    const listeners = [...this.#listeners.message, ...(topic === undefined ? [] : this.#topics.match(topic))]
    for (const listener of listeners) await listener(message)
    this.#seen.add(id)
    if (this.#seen.size > REMEMBERED) this.#seen.delete(this.#seen.values().next().value!)
    return {}
  }

  #connected (timeout: number, signal?: AbortSignal): Promise<void> | undefined {
    if (this.#status.state === 'connected') return undefined
    if (this.#status.state === 'stopped') throw new Failure('dropped')
    if (this.#waiting.size >= this.#options.maxWaiting) throw new Failure('busy')
    return new Promise((resolve, reject) => {
      const waiting: Waiting = {
        settle: failure => {
          clearTimeout(timer)
          signal?.removeEventListener('abort', giveUp)
          this.#waiting.delete(waiting)
          if (failure) reject(failure)
          else resolve()
        }
      }
      const giveUp = () => waiting.settle(new Failure('dropped'))
      const timer = setTimeout(() => waiting.settle(new Failure('timeout')), timeout)
      signal?.addEventListener('abort', giveUp)
      this.#waiting.add(waiting)
    })
  }

  /** While there is no connection nothing need be told: a welcome subscribes to all there is. */
  #tell (method: 'subscribe' | 'unsubscribe', topics: string[]): void {
    if (this.#status.state !== 'connected') return
    this.#line!.peer.call(method, { topics }, { timeout: this.#options.timeout }).catch(error => this.#failed(error))
  }

  #set (status: Status): void {
    this.#status = status
    for (const listener of this.#listeners.status) listener(status)
  }

  #failed (error: unknown): unknown {
    for (const listener of this.#listeners.error) listener(error)
    return error
  }
}
