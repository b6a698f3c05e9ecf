import { EventEmitter, once } from 'node:events'
import type { AddressInfo, Socket } from 'node:net'
import Fastify, { type FastifyInstance, type FastifyServerOptions } from 'fastify'
import type { Test } from 'tap'
import WebSocket, { type ClientOptions } from 'ws'
import devices, { type Options } from '../lib/index.ts'

export { until } from './fakes.ts'

/** A JSON-RPC message as a device sees it; `data` is what followed it in a binary frame. */
export interface Seen {
  id?: string | number | null
  method?: string
  params?: any
  result?: any
  error?: { code: number, message: string, data?: unknown }
  data?: Buffer
  traceparent?: string
  tracestate?: string
}

/** An application with the plugin, listening on a free port of this machine, closed when the test ends. */
export async function listen (t: Pick<Test, 'teardown'>, options: Options = {}, server: FastifyServerOptions = {}): Promise<FastifyInstance & { url: string }> {
  const app = Fastify({ routerOptions: { maxParamLength: 128 }, ...server } as FastifyServerOptions) as FastifyInstance
  await app.register(devices, options)
  return await open(t, app)
}

/** Starts an application on a free port; closes it when the test ends. */
export async function open (t: Pick<Test, 'teardown'>, app: FastifyInstance): Promise<FastifyInstance & { url: string }> {
  t.teardown(() => app.close())
  await app.listen({ port: 0, host: '127.0.0.1' })
  return Object.assign(app, { url: `http://127.0.0.1:${(app.server.address() as AddressInfo).port}` })
}

/** An application that listens, and the address that devices connect to. */
export type Served = FastifyInstance & { url: string, address: string | undefined }

export interface ConnectOptions extends ClientOptions {
  path?: string
  protocols?: string[]
  /** Resolve when the socket is open, without the welcome. */
  unwelcomed?: boolean
}

/** Connects a device and resolves once it is welcomed. */
export async function connect (url: string, deviceId: string, { path, protocols = [], unwelcomed = false, ...options }: ConnectOptions = {}): Promise<TestDevice> {
  const device = new TestDevice(new WebSocket(`${url.replace('http', 'ws')}${path ?? `/ws?deviceId=${deviceId}`}`, protocols, options))
  await once(device.socket, 'open')
  if (!unwelcomed) await device.next(({ method }) => method === 'welcome')
  return device
}

/** The status with which an upgrade is refused, and the body of the answer. */
export async function refusal (url: string, path: string, { protocols = [], ...options }: ConnectOptions = {}): Promise<{ status: number, body: any }> {
  const socket = new WebSocket(`${url.replace('http', 'ws')}${path}`, protocols, options)
  socket.on('error', () => {})
  const [, response] = await once(socket, 'unexpected-response')
  let text = ''
  for await (const chunk of response) text += chunk
  return { status: response.statusCode, body: text.startsWith('{') ? JSON.parse(text) : text }
}

/** A device that is controlled by a test. */
export class TestDevice {
  readonly socket: WebSocket
  /** All messages received, oldest first. */
  readonly seen: Seen[] = []
  /** The code and reason with which its connection ended. */
  readonly closed: Promise<{ code: number, reason: string }>
  readonly #handlers = new Map<string, (params: any) => unknown>()
  readonly #waiting = new Set<() => void>()
  #asked = 0
  #taken = 0

  constructor (socket: WebSocket) {
    this.socket = socket
    this.closed = new Promise(resolve => socket.once('close', (code, reason) => resolve({ code, reason: reason.toString() })))
    socket.on('error', () => {})
    socket.on('message', (frame: Buffer, isBinary) => this.#receive(frame, isBinary))
  }

  /** The first message that matches among those that no earlier `next` has returned. */
  async next (matches: (message: Seen) => boolean = () => true): Promise<Seen> {
    for (let at = this.#taken; ; at++) {
      while (at >= this.seen.length) await new Promise<void>(resolve => this.#waiting.add(resolve))
      if (!matches(this.seen[at]!)) continue
      this.#taken = at + 1
      return this.seen[at]!
    }
  }

  /** The next message of the kind that `send` and `broadcast` bring. */
  async message (): Promise<Seen> {
    return await this.next(({ method }) => method === 'message')
  }

  /** Answers a method; what the function returns is the result, an object with `code` that it throws is the error. */
  handle (method: string, handler: (params: any) => unknown): this {
    this.#handlers.set(method, handler)
    for (const message of this.seen) if (message.method === method) this.#answer(message)
    return this
  }

  send (message: object | object[]): void {
    this.socket.send(JSON.stringify(message))
  }

  notify (method: string, params?: unknown): void {
    this.send({ jsonrpc: '2.0', method, params })
  }

  /** Resolves with the answer, `result` or `error` in it. */
  async ask (method: string, params?: unknown): Promise<Seen> {
    const id = `ask-${++this.#asked}`
    this.send({ jsonrpc: '2.0', id, method, params })
    return await this.answer(id)
  }

  /** The answer to a message with this id, whenever it came. */
  async answer (id: string | number | null): Promise<Seen> {
    for (;;) {
      const found = this.seen.find(message => message.id === id && message.method === undefined)
      if (found) return found
      await new Promise<void>(resolve => this.#waiting.add(resolve))
    }
  }

  async close (): Promise<void> {
    this.socket.close()
    await this.closed
  }

  #receive (frame: Buffer, isBinary: boolean): void {
    const end = isBinary ? frame.indexOf(0x0a) : frame.length
    const parsed = JSON.parse(frame.subarray(0, end).toString())
    for (const message of (Array.isArray(parsed) ? parsed : [parsed]) as Seen[]) {
      if (isBinary) message.data = frame.subarray(end + 1)
      this.seen.push(message)
      this.#answer(message)
    }
    for (const wake of this.#waiting) wake()
    this.#waiting.clear()
  }

  #answer ({ id, method, params }: Seen): void {
    const handler = this.#handlers.get(method ?? '')
    if (!handler || id === undefined) return
    try {
      const result = handler(params)
      if (result !== undefined) this.send({ jsonrpc: '2.0', id, result })
    } catch (error) {
      this.send({ jsonrpc: '2.0', id, error })
    }
  }
}

/** Connects a device over a stream of lines and resolves once it is welcomed. */
export async function connectLines (socket: Socket, deviceId: string, token?: string): Promise<TestDevice> {
  const device = new TestDevice(new LineSocket(socket) as unknown as WebSocket)
  device.handle('ping', () => ({})) // the answer that lets a device replace its older connection
  device.notify('connect', { deviceId, token })
  await device.next(({ method }) => method === 'welcome')
  return device
}

/** A socket with a message per line and the interface of a WebSocket. A `close` notice carries the close code. */
export class LineSocket extends EventEmitter {
  readonly raw: Socket
  #text = ''
  #close = { code: 1006, reason: '' }

  constructor (raw: Socket) {
    super()
    this.raw = raw.setEncoding('utf8')
    raw.on('data', (text: string) => {
      const lines = (this.#text + text).split('\n')
      this.#text = lines.pop()!
      for (const line of lines) this.#receive(line)
    })
    raw.on('error', () => {})
    raw.on('close', () => this.emit('close', this.#close.code, this.#close.reason))
  }

  send (text: string): void {
    this.raw.write(`${text}\n`)
  }

  close (code: number, reason: string): void {
    this.send(JSON.stringify({ jsonrpc: '2.0', method: 'close', params: { code, reason } }))
    this.raw.end()
  }

  /** Resets a TCP connection; TLS and Unix sockets have no reset, and are closed. */
  terminate (): void {
    if (this.raw.remoteAddress && !('encrypted' in this.raw)) this.raw.resetAndDestroy()
    else this.raw.destroy()
  }

  pause (): void {
    this.raw.pause()
  }

  resume (): void {
    this.raw.resume()
  }

  #receive (line: string): void {
    const { method, params } = JSON.parse(line)
    if (method === 'close') this.#close = params
    else this.emit('message', Buffer.from(line), false)
  }
}

/** Sends a request over a real port; a body that is neither text nor bytes goes as JSON. */
export async function request (app: { url: string }, method: string, path: string, body?: unknown, headers: Record<string, string> = {}): Promise<{ status: number, body: any, headers: Headers }> {
  const raw = typeof body === 'string' || body instanceof Uint8Array
  const type = headers['content-type'] ?? (body instanceof Uint8Array ? 'application/octet-stream' : raw ? 'text/plain' : 'application/json')
  const response = await fetch(app.url + path, {
    method,
    headers: { ...headers, ...(body !== undefined && { 'content-type': type }) },
    ...(body !== undefined && { body: raw ? body as string : JSON.stringify(body) })
  })
  const bytes = Buffer.from(await response.arrayBuffer())
  const isJson = response.headers.get('content-type')?.startsWith('application/json')
  return { status: response.status, headers: response.headers, body: isJson ? JSON.parse(bytes.toString()) : bytes }
}
