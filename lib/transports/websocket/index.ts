import { setTimeout as sleep } from 'node:timers/promises'
import { EventEmitter } from 'node:events'
import type { IncomingMessage, Server, ServerResponse } from 'node:http'
import type { Duplex } from 'node:stream'
import fastifyWebsocket from '@fastify/websocket'
import type { FastifyInstance, FastifyRequest } from 'fastify'
import { WebSocketServer, type ServerOptions, type WebSocket } from 'ws'
import type { Transport, Gateway, TransportContext } from '../../gateway/transport.ts'
import { Failure, closeCodes } from '../../protocol/errors.ts'
import type { Form } from '../../connection/frame.ts'
import { callerOf } from '../../gateway/access.ts'
import { basicOf, tokenOf, type ConnectRequest } from '../../gateway/connect-request.ts'
import type { Settings } from '../../gateway/options.ts'
import type { AdmittedDevice } from '../../connection/session-host.ts'
import { deflating } from './deflate.ts'
import { WebSocketConnection, type RawStream } from './connection.ts'
import { narrowed, onlyToWebSocket } from './upgrades.ts'

type WebSocketSettings = Pick<Settings, 'prefix' | 'path' | 'codecs' | 'maxMessage' | 'maxFragments' | 'closeTimeout' | 'compression'>

const MAX_CHUNKS = 4_096
const MAX_PONGS = 16
const LOOK_AGAIN = 10
const BEARER = 'bearer.'

type Members = Record<string, unknown>

/** Turns WebSockets into sessions. */
export class WebSocketTransport implements Transport {
  readonly #settings: WebSocketSettings
  readonly #server: WebSocketServer
  readonly #deflating: Form | undefined
  /** Undefined: it speaks none of the protocols of its path, and is told so once it is connected. */
  readonly #arrivals = new WeakMap<IncomingMessage, AdmittedDevice | undefined>()
  readonly #lines = new Set<WebSocketConnection>()
  /** Connections that came to upgrade and are not ours: not answered yet, or taken by a route of the host. */
  readonly #knocking = new Map<Duplex, AbortController | undefined>()
  /** One listener for all of them: a closure each would stay with every connection. */
  readonly #onGone: (this: Duplex) => void

  constructor (settings: WebSocketSettings) {
    this.#settings = settings
    this.#deflating = settings.compression ? deflating(settings.compression.threshold) : undefined
    const limits: ServerOptions & Record<'maxPendingAutoPongs' | 'closeTimeout', number> = {
      noServer: true,
      clientTracking: false,
      maxPayload: settings.maxMessage,
      maxFragments: settings.maxFragments,
      maxBufferedChunks: MAX_CHUNKS,
      maxPendingAutoPongs: MAX_PONGS,
      closeTimeout: settings.closeTimeout,
      // what comes is inflated to no more than `maxPayload`; neither side keeps a window from one message to the next
      perMessageDeflate: settings.compression && { serverNoContextTakeover: true, clientNoContextTakeover: true },
      // only what was agreed on is echoed, never a token
      handleProtocols: (offered, request) => {
        const { subprotocol = '' } = this.#arrivals.get(request)?.codec ?? {}
        return offered.has(subprotocol) && subprotocol
      }
    }
    this.#server = new WebSocketServer(limits)
    const knocking = this.#knocking
    this.#onGone = function () {
      knocking.get(this)?.abort(new Failure('departed'))
      knocking.delete(this)
    }
  }

  /** Lets the upgrades that we admitted go to a WebSocket server with our limits, whoever registered `@fastify/websocket`. */
  async open ({ app, gateway }: TransportContext): Promise<void> {
    if (!app.hasDecorator('websocketServer')) {
      // a second listener for upgrades, from a sibling scope, would dispatch each of them twice
      const listening = app.server.listeners('upgrade').some(({ name }) => name === 'onUpgrade')
      const options = { closeTimeout: this.#settings.closeTimeout, ...(listening && { server: new EventEmitter() as Server }) }
      await app.register(fastifyWebsocket, { options })
    }
    const shared = app.websocketServer
    const handleUpgrade = shared.handleUpgrade.bind(shared)
    shared.handleUpgrade = (request: IncomingMessage, socket: Duplex, head: Buffer, done: (socket: WebSocket, request: IncomingMessage) => void) => {
      if (!this.#arrivals.has(request)) return handleUpgrade(request, socket, head, done)
      // the answer, and the first that the device is told if that is in the same turn of the event loop, leave in one write
      socket.cork()
      setImmediate(uncork, socket)
      this.#server.handleUpgrade(request, socket, head, done)
    }
    const hangUp = narrowed((_request, socket) => this.#hangUp(socket))
    app.server.on('upgrade', hangUp)
    // as early as the listener of @fastify/websocket: without one, upgrades are plain requests, and answered
    app.addHook('preClose', async () => { app.server.removeListener('upgrade', hangUp) })
    onlyToWebSocket(app)
    await app.register(async scope => this.#addRoutes(scope, gateway), { prefix: this.#settings.prefix })
  }

  #addRoutes (app: FastifyInstance, entrance: Gateway): void {
    for (const url of [this.#settings.path, `${this.#settings.path}/:deviceId`]) this.#route(app, entrance, url)
    const paths = new Set(this.#settings.codecs?.flatMap(({ path }) => path ?? []))
    for (const path of paths) this.#route(app, entrance, `${path}/:deviceId`, path)
  }

  /** Resolves when every connection has ended; those that linger are cut at the deadline. */
  async close (deadline: number): Promise<void> {
    while (this.#lines.size + this.#knocking.size > 0 && Date.now() < deadline) await sleep(LOOK_AGAIN)
    for (const line of this.#lines) line.cut()
    for (const socket of this.#knocking.keys()) socket.destroy()
  }

  /**
   * Ends the connection of an upgrade once it has been refused. @fastify/websocket does so only where its own hooks ran: not
   * where a hook of the host refused first, or the router.
   */
  #hangUp (socket: RawStream): void {
    this.#expect(socket)
    socket._httpMessage?.on('finish', onAnswered)
  }

  #expect (socket: Duplex, departure = this.#knocking.get(socket)): void {
    if (!this.#knocking.has(socket)) socket.on('close', this.#onGone)
    this.#knocking.set(socket, departure)
  }

  #route (app: FastifyInstance, entrance: Gateway, url: string, path?: string): void {
    app.route({
      method: 'GET',
      url,
      exposeHeadRoute: false,
      schema: { hide: true } as object,
      preHandler: request => this.#admit(request, entrance, path),
      handler: async () => { throw new Failure(entrance.isDraining ? 'draining' : 'not-websocket') },
      wsHandler: (socket, request) => this.#enter(socket, this.#arrivals.get(request.raw), entrance)
    })
  }

  async #admit (request: FastifyRequest, entrance: Gateway, path?: string): Promise<void> {
    if (!request.ws) return
    const { socket } = request.raw as { socket?: Duplex }
    const departure = new AbortController()
    // one that is gone has closed already: a hook of the host may have taken long
    if (socket?.destroyed) departure.abort(new Failure('departed'))
    else if (socket) this.#expect(socket, departure)
    try {
      this.#arrivals.set(request.raw, await entrance.admit(introductionOf(request, path), departure))
    } catch (error) {
      // OCPP-J, 3.2 and 3.3: the handshake is completed without a subprotocol, and the connection closed at once
      if (path === undefined || (error as Failure).reason !== 'bad-protocol') throw error
      this.#arrivals.set(request.raw, undefined)
    }
  }

  #enter (socket: WebSocket, arrival: AdmittedDevice | undefined, entrance: Gateway): void {
    if (!arrival) return socket.close(closeCodes['no-protocol'].code, closeCodes['no-protocol'].message)
    const line = new WebSocketConnection(socket, this.#lines, this.#deflating)
    this.#knocking.delete(line.stream)
    line.stream.removeListener('close', this.#onGone)
    const session = line.session = entrance.open(arrival, line)
    line.hold() // until the welcome
    void entrance.enter(session).finally(() => line.release())
  }
}

/** Whatever the answer was, it was no upgrade. */
function onAnswered (this: ServerResponse): void {
  this.socket?.destroy()
}

function uncork (socket: Duplex): void {
  socket.uncork()
}

function introductionOf (request: FastifyRequest, path: string | undefined): ConnectRequest {
  const { deviceId = (request.query as Members).deviceId } = request.params as Members
  const offered = request.headers['sec-websocket-protocol']?.split(',').map(name => name.trim()) ?? []
  return {
    deviceId,
    token: tokenOf(request.headers.authorization) ?? offered.find(name => name.startsWith(BEARER))?.slice(BEARER.length),
    ...basicOf(request.headers.authorization, deviceId),
    protocols: offered.filter(name => !name.startsWith(BEARER)),
    path,
    ...callerOf(request),
    localAddress: (request.raw.socket as RawStream | undefined)?.localAddress, // an injected request has none
    request
  }
}
