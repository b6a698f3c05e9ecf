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
import { callerOf } from '../../gateway/caller.ts'
import { basicOf, tokenOf, type ConnectRequest } from '../../gateway/connect-request.ts'
import { registerOptions, type Settings } from '../../gateway/options.ts'
import type { AdmittedDevice } from '../../connection/session-host.ts'
import { compressedForm } from './deflate.ts'
import { WebSocketConnection, type RawStream } from './connection.ts'
import { UpgradeTracker } from './upgrade-tracker.ts'
import { forWebSocketOnly, ignoreOtherUpgrades } from './upgrades.ts'

type WebSocketSettings = Pick<Settings, 'prefix' | 'logLevel' | 'logSerializers' | 'path' | 'codecs' | 'maxMessage' | 'maxFragments' | 'closeTimeout' | 'compression'>

const MAX_BUFFERED_CHUNKS = 4_096
const MAX_PENDING_PONGS = 16
const CLOSE_POLL_INTERVAL_MS = 10
/** Prefix of the subprotocol that carries a token, because browsers cannot set headers. */
const BEARER = 'bearer.'

type RequestParams = Record<string, unknown>

/** Accepts devices over WebSocket. */
export class WebSocketTransport implements Transport {
  readonly #settings: WebSocketSettings
  readonly #server: WebSocketServer
  readonly #form: Form | undefined
  /** Devices by the request that was admitted; undefined for one that speaks no protocol of its path, which gets a close code after the handshake. */
  readonly #admitted = new WeakMap<IncomingMessage, AdmittedDevice | undefined>()
  readonly #connections = new Set<WebSocketConnection>()
  #upgrades!: UpgradeTracker

  constructor (settings: WebSocketSettings) {
    this.#settings = settings
    this.#form = settings.compression ? compressedForm(settings.compression.threshold) : undefined
    const limits: ServerOptions & Record<'maxPendingAutoPongs' | 'closeTimeout', number> = {
      noServer: true,
      clientTracking: false,
      maxPayload: settings.maxMessage,
      maxFragments: settings.maxFragments,
      maxBufferedChunks: MAX_BUFFERED_CHUNKS,
      maxPendingAutoPongs: MAX_PENDING_PONGS,
      closeTimeout: settings.closeTimeout,
      // `maxPayload` limits the inflated size; neither side retains a window between messages
      perMessageDeflate: settings.compression && { serverNoContextTakeover: true, clientNoContextTakeover: true },
      // echo the negotiated protocol only, never a token
      handleProtocols: (offered, request) => {
        const { subprotocol = '' } = this.#admitted.get(request)?.codec ?? {}
        return offered.has(subprotocol) && subprotocol
      }
    }
    this.#server = new WebSocketServer(limits)
  }

  /** Sends the upgrades that this plugin admitted to a WebSocket server with its limits, whoever registered `@fastify/websocket`. */
  async open ({ app, gateway }: TransportContext): Promise<void> {
    if (!app.hasDecorator('websocketServer')) {
      // a sibling scope has registered it already: a second upgrade listener would dispatch each upgrade twice
      const isListening = app.server.listeners('upgrade').some(({ name }) => name === 'onUpgrade')
      const options = { closeTimeout: this.#settings.closeTimeout, ...(isListening && { server: new EventEmitter() as Server }) }
      await app.register(fastifyWebsocket, { options })
    }
    const shared = app.websocketServer
    const handleUpgrade = shared.handleUpgrade.bind(shared)
    shared.handleUpgrade = (request: IncomingMessage, socket: Duplex, head: Buffer, done: (socket: WebSocket, request: IncomingMessage) => void) => {
      if (!this.#admitted.has(request)) return handleUpgrade(request, socket, head, done)
      // so that the upgrade response and the welcome, if it follows in the same turn of the event loop, leave in one write
      socket.cork()
      setImmediate(uncork, socket)
      this.#server.handleUpgrade(request, socket, head, done)
    }
    this.#upgrades = UpgradeTracker.of(app.server)
    const onUpgrade = forWebSocketOnly((request, socket) => this.#destroyIfRefused(request, socket))
    app.server.on('upgrade', onUpgrade)
    // as early as @fastify/websocket removes its listener: without one, Node answers upgrades as plain requests
    app.addHook('preClose', async () => { app.server.removeListener('upgrade', onUpgrade) })
    ignoreOtherUpgrades(app)
    await app.register(async scope => this.#addRoutes(scope, gateway), registerOptions(this.#settings))
  }

  #addRoutes (app: FastifyInstance, gateway: Gateway): void {
    for (const url of [this.#settings.path, `${this.#settings.path}/:deviceId`]) this.#route(app, gateway, url)
    const paths = new Set(this.#settings.codecs?.flatMap(({ path }) => path ?? []))
    for (const path of paths) this.#route(app, gateway, `${path}/:deviceId`, path)
  }

  /** Resolves when every connection has ended; cuts those that are left at the deadline. */
  async close (deadline: number): Promise<void> {
    while (this.#connections.size + this.#upgrades.size > 0 && Date.now() < deadline) await sleep(CLOSE_POLL_INTERVAL_MS)
    for (const connection of this.#connections) connection.cut()
    this.#upgrades.destroyAll()
  }

  /**
   * Destroys the socket of an upgrade once a plain response has been written. @fastify/websocket does so only where its own hooks ran,
   * not where a hook of the host or the router refused first.
   */
  #destroyIfRefused (request: IncomingMessage, socket: RawStream): void {
    if (!request.socket) return // `injectWS`: there is no connection, and its stream never closes by itself
    this.#upgrades.track(socket)
    socket._httpMessage?.on('finish', destroySocket)
  }

  #route (app: FastifyInstance, gateway: Gateway, url: string, path?: string): void {
    app.route({
      method: 'GET',
      url,
      exposeHeadRoute: false,
      schema: { hide: true } as object,
      config: { otel: false } as object, // a span of @fastify/otel ends with the response, which an upgrade does not have
      preHandler: request => this.#admit(request, gateway, path),
      handler: async () => { throw new Failure(gateway.isDraining ? 'draining' : 'not-websocket') },
      wsHandler: (socket, request) => this.#enter(socket, request, gateway)
    })
  }

  async #admit (request: FastifyRequest, gateway: Gateway, path?: string): Promise<void> {
    if (!request.ws) return
    const { socket } = request.raw as { socket?: Duplex }
    const departure = new AbortController()
    // a hook of the host may have taken so long that `close` has already fired
    if (socket?.destroyed) departure.abort(new Failure('departed'))
    else if (socket) this.#upgrades.track(socket, departure)
    try {
      this.#admitted.set(request.raw, await gateway.admit(connectRequestOf(request, path), departure))
    } catch (error) {
      // OCPP-J, 3.2 and 3.3: the handshake is completed without a subprotocol, and the connection closed at once
      if (path === undefined || (error as Failure).reason !== 'bad-protocol') throw error
      this.#admitted.set(request.raw, undefined)
    }
  }

  #enter (socket: WebSocket, { raw }: FastifyRequest, gateway: Gateway): void {
    const device = this.#admitted.get(raw)
    if (!device) return socket.close(closeCodes['no-protocol'].code, closeCodes['no-protocol'].message)
    const connection = new WebSocketConnection(socket, this.#connections, this.#form)
    this.#upgrades.release(connection.stream)
    if (!raw.socket) connection.stream.once('end', destroyStream)
    const session = connection.session = gateway.open(device, connection)
    connection.pause() // until the welcome
    void gateway.enter(session).finally(() => connection.resume())
  }
}

function destroySocket (this: ServerResponse): void {
  this.socket?.destroy()
}

/** The stream of `injectWS` does not close once both sides have ended it. */
function destroyStream (this: Duplex): void {
  this.destroy()
}

function uncork (socket: Duplex): void {
  socket.uncork()
}

function connectRequestOf (request: FastifyRequest, path: string | undefined): ConnectRequest {
  const { deviceId = (request.query as RequestParams).deviceId } = request.params as RequestParams
  const offered = request.headers['sec-websocket-protocol']?.split(',').map(name => name.trim()) ?? []
  return {
    deviceId,
    token: tokenOf(request.headers.authorization) ?? offered.find(name => name.startsWith(BEARER))?.slice(BEARER.length),
    ...basicOf(request.headers.authorization, deviceId),
    protocols: offered.filter(name => !name.startsWith(BEARER)),
    path,
    trace: (request.query as RequestParams).trace === '1',
    ...callerOf(request),
    localAddress: (request.raw.socket as RawStream | undefined)?.localAddress, // an injected request has none
    request
  }
}
