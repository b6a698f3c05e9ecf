import { once } from 'node:events'
import { setImmediate as turn } from 'node:timers/promises'
import type { IncomingMessage } from 'node:http'
import { WebSocket } from 'ws'
import type { CloseNotice } from '../protocol/close-notice.ts'
import { connect, type CallOptions, type Client, type MethodHandler, type Received, type Status, type WebSocketLike } from '../client/index.ts'
import { withDeadline } from '../protocol/deadline.ts'
import { jsonrpcFrames } from '../protocol/jsonrpc.ts'
import { decodeWith, type Message } from '../protocol/message.ts'
import { checkOptionNames } from '../protocol/option-names.ts'
import { endedBeforeWelcome, readRefusal, type ConnectionError } from './connection-error.ts'
import type { InjectedMessage, InjectSettings } from './options.ts'
import { SocketEnd } from './socket-end.ts'

/** What the server says first. */
export interface Welcome {
  deviceId: string
  /** Grows with every connection of the device. */
  generation: number
  /** Milliseconds between pings. */
  heartbeat: number
  /** The clock of the server, in milliseconds since 1970. */
  now: number
  /** The number of letters that wait for the device; undefined if the mailbox cannot be reached. */
  waiting?: number
}

const LOCAL_ADDRESS = '127.0.0.1'
const NEXT_OPTION_NAMES = { timeout: true }
const codec = jsonrpcFrames({ depth: 1_000 })

/** A device in this process: the client of `fastify-devices/client` over a connection without a port. It does not reconnect. */
export class InjectedDevice {
  readonly id: string
  /** All messages received, oldest first. */
  readonly messages: InjectedMessage[] = []
  /** What handlers and `onMessage` have thrown, except a `Failure`. */
  readonly errors: unknown[] = []
  /** Resolves when the connection has ended, whoever ended it. */
  readonly closed: Promise<CloseNotice>
  /** Resolves with the device once it is welcomed; rejects if it is refused. */
  readonly welcomed: Promise<this>
  readonly #client: Client
  readonly #timeout: number
  /** Ids of messages that the client has not passed on yet and that the server wants acknowledged. */
  readonly #letterIds = new Set<string>()
  readonly #arrivalListeners = new Set<() => void>()
  #welcome: Welcome | undefined
  #socket: WebSocket | undefined
  #serverEnd: SocketEnd | undefined
  #refusal: ConnectionError | undefined
  #closeNotice: CloseNotice | undefined
  /** The number of messages that `next` has returned. */
  #taken = 0
  #resolveClosed!: (notice: CloseNotice) => void
  #resolveWelcomed!: (device: this) => void
  #rejectWelcomed!: (error: unknown) => void

  /** `accept` gives the other end of the connection to the server. */
  constructor (settings: InjectSettings, accept: (end: SocketEnd) => void) {
    const { deviceId, handlers, onMessage, token, timeout, query, path } = settings
    this.id = deviceId
    this.#timeout = timeout
    this.closed = new Promise(resolve => { this.#resolveClosed = resolve })
    this.welcomed = new Promise((resolve, reject) => {
      this.#resolveWelcomed = resolve
      this.#rejectWelcomed = reject
    })
    const open = (url: string, protocols: string[]) => this.#open(url, protocols, settings, accept)
    this.#client = connect(`ws://localhost${path}?${new URLSearchParams(query)}`, {
      deviceId,
      timeout,
      ...(token !== undefined && { token }),
      WebSocket: function (url: string, protocols: string[]) { return open(url, protocols) } as unknown as new () => WebSocketLike
    })
    this.#client.on('status', status => this.#follow(status))
    this.#client.on('error', error => this.errors.push(error))
    this.#client.on('message', message => this.#receive(message, onMessage))
    for (const [method, handler] of Object.entries(handlers)) this.handle(method, handler)
  }

  get welcome (): Welcome {
    return this.#welcome!
  }

  /** The subprotocol that the server has chosen; empty if the device offered none that it knows. */
  get protocol (): string {
    return this.#socket!.protocol
  }

  /** Returns the first message that no earlier `next` has returned; waits for it if it has not arrived. Rejects once the connection has ended, or after `timeout` milliseconds. */
  async next (options: { timeout?: number } = {}): Promise<InjectedMessage> {
    checkOptionNames('next()', options, NEXT_OPTION_NAMES)
    const { timeout = this.#timeout } = options
    while (this.#taken >= this.messages.length) {
      if (this.#closeNotice) throw new Error(`The connection of "${this.id}" has ended with code ${this.#closeNotice.code}: no further message arrives`)
      const arrival = new Promise<void>(resolve => this.#arrivalListeners.add(resolve))
      await withDeadline(arrival, timeout, () => new Error(`No message arrived at "${this.id}" within ${timeout} ms`))
    }
    return this.messages[this.#taken++]!
  }

  /** Adds a method that the server may call. */
  handle (method: string, handler: MethodHandler): this {
    this.#client.handle(method, handler)
    return this
  }

  /** Calls a method of the server. On failure it rejects with a `Failure`, whose `device` is the error that the server answered. */
  async call (method: string, params?: unknown, options?: CallOptions): Promise<any> {
    return await this.#client.call(method, params, options)
  }

  /** Sends a notice, which gets no answer. Returns false once the connection has ended. */
  notify (method: string, params?: unknown): boolean {
    return this.#client.notify(method, params)
  }

  async publish (topic: string, data: unknown): Promise<void> {
    await this.#client.publish(topic, data)
  }

  /** Resolves once the server has accepted the topic or filter; rejects if it refuses. Messages of the topic are in `messages`. */
  async subscribe (filter: string): Promise<void> {
    await this.call('subscribe', { topics: [filter] })
  }

  async unsubscribe (filter: string): Promise<void> {
    await this.call('unsubscribe', { topics: [filter] })
  }

  /** Loses the connection without a close frame. Resolves once the server has noticed. */
  async drop (): Promise<void> {
    this.#socket!.terminate()
    await this.#serverClosed()
  }

  /** Closes the connection. Resolves once the server has noticed. */
  async close (): Promise<void> {
    this.#client.close()
    await this.#serverClosed()
  }

  #open (url: string, protocols: string[], { headers, protocol, remoteAddress, deviceId }: InjectSettings, accept: (end: SocketEnd) => void): WebSocketLike {
    const [clientEnd, serverEnd] = SocketEnd.pair(remoteAddress, LOCAL_ADDRESS)
    const offered = protocols.map(name => name === 'jsonrpc' ? protocol : name)
    const socket = new WebSocket(url, offered, { headers, createConnection: () => clientEnd as never })
    this.#socket = socket
    this.#serverEnd = serverEnd
    // before the client adds its listeners: it does not tell a letter from another message
    socket.addEventListener('message', ({ data }) => this.#observe(data as string | ArrayBuffer))
    socket.on('unexpected-response', (_request, response: IncomingMessage) => readRefusal(deviceId, response, refusal => this.#refuse(refusal)))
    accept(serverEnd)
    return socket as WebSocketLike
  }

  #observe (frame: string | ArrayBuffer): void {
    const messages = decodeWith(codec, typeof frame === 'string' ? frame : new Uint8Array(frame))
    for (const message of [messages].flat() as Message[]) {
      if (message.kind === 'notice' && message.method === 'welcome') this.#welcome = message.params as Welcome
      if (message.kind === 'call' && message.method === 'message') this.#letterIds.add((message.params as Received).id)
    }
  }

  async #receive (received: Received, onMessage: InjectSettings['onMessage']): Promise<void> {
    const message = { ...received, isLetter: this.#letterIds.delete(received.id) }
    this.messages.push(message)
    this.#notifyArrival()
    await onMessage(message)
  }

  #refuse (refusal: ConnectionError): void {
    this.#refusal = refusal
    this.#client.close()
  }

  #follow ({ state, code, reason }: Status): void {
    if (state === 'connected') return this.#resolveWelcomed(this)
    if (state === 'connecting' || this.#closeNotice) return
    this.#closeNotice = { code: code!, reason: reason! }
    this.#client.close() // it would reconnect
    this.#resolveClosed(this.#closeNotice)
    this.#notifyArrival()
    queueMicrotask(() => this.#rejectWelcomed(this.#refusal ?? this.errors[0] ?? endedBeforeWelcome(this.id, this.#closeNotice!))) // the client reports an error after its status
  }

  #notifyArrival (): void {
    for (const listener of this.#arrivalListeners) listener()
    this.#arrivalListeners.clear()
  }

  async #serverClosed (): Promise<void> {
    if (!this.#serverEnd!.closed) await once(this.#serverEnd!, 'close')
    await turn() // the listeners of the server run after those of the stream
  }
}
