import { lstat, unlink } from 'node:fs/promises'
import { connect, createServer, type AddressInfo, type ListenOptions, type Server, type Socket as RawSocket } from 'node:net'
import { setTimeout as sleep } from 'node:timers/promises'
import { createServer as createTlsServer, type TLSSocket } from 'node:tls'
import type { Transport, TransportContext } from '../../gateway/transport.ts'
import { closeCodes } from '../../protocol/errors.ts'
import { closeNotice } from '../../protocol/close-notice.ts'
import { TcpHandshake, type TcpHandshakeHost } from './handshake.ts'
import { tcpSettingsOf, type TcpOptions, type TcpSettings } from './options.ts'

const CLOSE_POLL_INTERVAL_MS = 10

export type { TcpOptions } from './options.ts'

/** Accepts devices over TCP, TLS or a Unix socket: one JSON-RPC message a line, the first of which is `connect`. */
export function tcp (options: TcpOptions): TcpTransport {
  return new TcpTransport(options)
}

/** What `tcp()` returns; pass it to the option `transports`. */
export class TcpTransport implements Transport, TcpHandshakeHost {
  readonly #settings: TcpSettings
  #server: Server | undefined
  /** Every connection, including those in the middle of a TLS handshake. */
  readonly #sockets = new Set<RawSocket>()
  /** Handshakes that have not been admitted. */
  readonly #pending = new Set<TcpHandshake>()
  readonly #admitted = new Set<TcpHandshake>()

  constructor (options: TcpOptions) {
    this.#settings = tcpSettingsOf(options)
  }

  /** The address it listens on, a path for a Unix socket; null while it does not listen. */
  get address (): AddressInfo | string | null {
    return this.#server?.address() ?? null
  }

  get isLocal (): boolean {
    return this.#settings.path !== undefined
  }

  async open (context: TransportContext): Promise<void> {
    const { tls, maxUnknown } = this.#settings
    const common = { allowHalfOpen: true, noDelay: true }
    const server = this.#server = tls
      ? createTlsServer({ handshakeTimeout: context.limits.admissionTimeout, ...tls, ...common })
      : createServer(common)
    server.on('connection', socket => {
      this.#sockets.add(socket)
      socket.once('close', () => this.#sockets.delete(socket))
      if (this.#sockets.size - this.#admitted.size > maxUnknown) this.#refuseOverload(socket, context)
      else if (!tls) this.#accept(socket, context)
    })
    server.on('secureConnection', (socket: RawSocket) => this.#accept(socket, context))
    // Node does not close a connection whose TLS handshake fails or times out
    server.on('tlsClientError', (_error: Error, socket: TLSSocket) => {
      context.gateway.refused('protocol', { address: socket.remoteAddress })
      socket.destroy()
    })
    // not `onListen`: Fastify would not report that the port is taken
    context.app.addHook('onReady', async () => {
      await this.#listen(server)
      server.on('error', error => context.app.log.error({ err: error }, 'TCP server error'))
    })
  }

  async close (deadline: number): Promise<void> {
    this.#server?.close()
    for (const handshake of this.#pending) handshake.abort()
    while (this.#sockets.size > 0 && Date.now() < deadline) await sleep(CLOSE_POLL_INTERVAL_MS)
    for (const socket of this.#sockets) socket.destroy()
  }

  onAdmitted (handshake: TcpHandshake): void {
    this.#pending.delete(handshake)
    this.#admitted.add(handshake)
  }

  onClosed (handshake: TcpHandshake): void {
    this.#pending.delete(handshake)
    this.#admitted.delete(handshake)
  }

  #accept (socket: RawSocket, context: TransportContext): void {
    const address = socket.remoteAddress
    // a TCP connection that has already ended has no address, and must not be taken for a local one
    if (address === undefined && !this.isLocal) return this.#refuseLost(socket, context)
    this.#pending.add(new TcpHandshake(socket, address, context, this))
  }

  #refuseLost (socket: RawSocket, { gateway }: TransportContext): void {
    gateway.refused('lost', { address: undefined })
    socket.on('error', () => {})
    socket.destroy()
  }

  #refuseOverload (socket: RawSocket, { gateway, codec }: TransportContext): void {
    gateway.refused('overloaded', { address: socket.remoteAddress })
    if (this.#settings.tls) return void socket.destroy()
    socket.on('error', () => {})
    socket.end(`${codec.encode(closeNotice(closeCodes.overloaded.code, closeCodes.overloaded.message)) as string}\n`)
    socket.destroySoon()
  }

  async #listen (server: Server): Promise<void> {
    const { port, host, path } = this.#settings
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

/** Whether the path is a socket that a killed process left behind: connecting to it is refused. */
async function isStaleSocket (path: string): Promise<boolean> {
  const stats = await lstat(path).catch(() => undefined)
  if (!stats?.isSocket()) return false
  return await new Promise(resolve => {
    const socket = connect(path)
    socket.once('connect', () => { socket.destroy(); resolve(false) })
    socket.once('error', ({ code }: NodeJS.ErrnoException) => resolve(code === 'ECONNREFUSED'))
  })
}
