import { lstat, unlink } from 'node:fs/promises'
import { connect, createServer, type AddressInfo, type ListenOptions, type Server, type Socket as RawSocket } from 'node:net'
import { setTimeout as sleep } from 'node:timers/promises'
import { createServer as createTlsServer, type TLSSocket, type TlsOptions } from 'node:tls'
import { Type, type Static } from '@sinclair/typebox'
import type { Transport, TransportContext } from '../../gateway/transport.ts'
import { closeCodes } from '../../protocol/errors.ts'
import { closeNotice } from '../../protocol/close-notice.ts'
import { complete, Count, Part } from '../../gateway/options.ts'
import { TcpHandshake, type TcpHandshakeHost } from './handshake.ts'

/** A longer one is cut short by some systems, silently. */
const MAX_PATH = 103
const LOOK_AGAIN = 10

const TcpOptionsSchema = Type.Object({
  port: Type.Optional(Type.Integer({ minimum: 0, maximum: 65_535, description: 'Where it listens; 0 takes a free one' })),
  host: Type.String({ default: '127.0.0.1', minLength: 1, description: 'Loopback unless told otherwise' }),
  path: Type.Optional(Type.String({ minLength: 1, maxLength: MAX_PATH, description: 'A Unix socket, in place of `port` and `host`' })),
  tls: Type.Optional(Part<TlsOptions>('As `node:tls` takes them; with `requestCert` the certificate of a device goes to `authenticate`')),
  maxUnknown: Count(1_000, 'Connections at a time that have not been let in')
}, { additionalProperties: false })

type TcpSettings = Static<typeof TcpOptionsSchema>
export type TcpOptions = Partial<TcpSettings>

/** Devices over TCP, TLS or a Unix socket: one JSON-RPC message a line, the first of which is `connect`. */
export function tcp (options: TcpOptions): TcpTransport {
  return new TcpTransport(options)
}

export class TcpTransport implements Transport, TcpHandshakeHost {
  readonly #options: TcpSettings
  #server: Server | undefined
  /** Every connection, those in the middle of a TLS handshake too. */
  readonly #sockets = new Set<RawSocket>()
  readonly #unknown = new Set<TcpHandshake>()
  readonly #known = new Set<TcpHandshake>()

  constructor (options: TcpOptions) {
    if ((options.port === undefined) === (options.path === undefined)) throw new Error('tcp() needs one of the options "port" and "path"')
    this.#options = complete('tcp()', TcpOptionsSchema, options)
  }

  /** Where it listens: a path, where that is a Unix socket; null while it does not. */
  get address (): AddressInfo | string | null {
    return this.#server?.address() ?? null
  }

  get isLocal (): boolean {
    return this.#options.path !== undefined
  }

  async open (ground: TransportContext): Promise<void> {
    const { tls, maxUnknown } = this.#options
    const common = { allowHalfOpen: true, noDelay: true }
    const server = this.#server = tls
      ? createTlsServer({ handshakeTimeout: ground.limits.admissionTimeout, ...tls, ...common })
      : createServer(common)
    server.on('connection', socket => {
      this.#sockets.add(socket)
      socket.once('close', () => this.#sockets.delete(socket))
      if (this.#sockets.size - this.#known.size > maxUnknown) this.#turnAway(socket, ground)
      else if (!tls) this.#receive(socket, ground)
    })
    server.on('secureConnection', (socket: RawSocket) => this.#receive(socket, ground))
    // who does not finish the handshake in time, or does it wrong, is not hung up on by itself
    server.on('tlsClientError', (_error: Error, socket: TLSSocket) => {
      ground.gateway.refused('protocol', { address: socket.remoteAddress })
      socket.destroy()
    })
    // with `onListen` nobody would hear that the port is taken
    ground.app.addHook('onReady', async () => {
      await this.#listen(server)
      server.on('error', error => ground.app.log.error({ err: error }, 'the TCP door failed'))
    })
  }

  async close (deadline: number): Promise<void> {
    this.#server?.close()
    for (const newcomer of this.#unknown) newcomer.leave()
    while (this.#sockets.size > 0 && Date.now() < deadline) await sleep(LOOK_AGAIN)
    for (const socket of this.#sockets) socket.destroy()
  }

  letIn (newcomer: TcpHandshake): void {
    this.#unknown.delete(newcomer)
    this.#known.add(newcomer)
  }

  ended (newcomer: TcpHandshake): void {
    this.#unknown.delete(newcomer)
    this.#known.delete(newcomer)
  }

  #receive (socket: RawSocket, ground: TransportContext): void {
    const address = socket.remoteAddress
    // one that has gone already has no address either, and must not pass for a neighbour
    if (address === undefined && !this.isLocal) return this.#miss(socket, ground)
    this.#unknown.add(new TcpHandshake(socket, address, ground, this))
  }

  #miss (socket: RawSocket, { gateway }: TransportContext): void {
    gateway.refused('vanished', { address: undefined })
    socket.on('error', () => {})
    socket.destroy()
  }

  #turnAway (socket: RawSocket, { gateway, codec }: TransportContext): void {
    gateway.refused('overloaded', { address: socket.remoteAddress })
    if (this.#options.tls) return void socket.destroy()
    socket.on('error', () => {})
    socket.end(`${codec.encode(closeNotice(closeCodes.overloaded.code, closeCodes.overloaded.message)) as string}\n`)
    socket.destroySoon()
  }

  async #listen (server: Server): Promise<void> {
    const { port, host, path } = this.#options
    if (path === undefined) return await listen(server, { port: port!, host })
    if (await isStaleSocket(path)) await unlink(path)
    await listen(server, { path })
  }
}

function listen (server: Server, options: ListenOptions): Promise<void> {
  return new Promise((resolve, reject) => {
    server.once('error', reject)
    server.listen(options, () => {
      server.removeListener('error', reject)
      resolve()
    })
  })
}

/** Whether it is a socket that a process left behind when it was killed: nobody listens there. */
async function isStaleSocket (path: string): Promise<boolean> {
  const found = await lstat(path).catch(() => undefined)
  if (!found?.isSocket()) return false
  return await new Promise(resolve => {
    const socket = connect(path)
    socket.once('connect', () => { socket.destroy(); resolve(false) })
    socket.once('error', ({ code }: NodeJS.ErrnoException) => resolve(code === 'ECONNREFUSED'))
  })
}
