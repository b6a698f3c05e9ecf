import { stat, unlink } from 'node:fs/promises'
import { setTimeout as sleep } from 'node:timers/promises'
import { connect, createServer, type AddressInfo, type Server, type Socket as RawSocket } from 'node:net'
import { createServer as createTlsServer, type TLSSocket, type TlsOptions } from 'node:tls'
import type { Door, Ground } from '../door.ts'
import { goodbyes } from '../errors.ts'
import { farewell } from '../farewell.ts'
import { Newcomer, type Host } from './newcomer.ts'

export interface TcpOptions {
  port?: number
  /** Loopback unless told otherwise. */
  host?: string
  /** A Unix socket, in place of `port` and `host`. */
  path?: string
  /** As `node:tls` takes them; with `requestCert` the certificate of a device goes to `authenticate`. */
  tls?: TlsOptions
  /** Connections at a time that have not been let in. */
  maxUnknown?: number
}

const LOOPBACK = '127.0.0.1'
const MAX_UNKNOWN = 1_000
const LOOK_AGAIN = 10

/** Devices over TCP, TLS or a Unix socket: one JSON-RPC message a line, the first of which is `connect`. */
export function tcp (options: TcpOptions): TcpDoor {
  return new TcpDoor(options)
}

export class TcpDoor implements Door, Host {
  readonly #options: TcpOptions
  #server: Server | undefined
  /** Every connection, those in the middle of a TLS handshake too. */
  readonly #sockets = new Set<RawSocket>()
  readonly #unknown = new Set<Newcomer>()
  readonly #known = new Set<Newcomer>()

  constructor (options: TcpOptions) {
    if ((options.port === undefined) === (options.path === undefined)) throw new Error('tcp() needs the option "port" or the option "path"')
    this.#options = options
  }

  /** Where it listens: a path, where that is a Unix socket; null while it does not. */
  get address (): AddressInfo | string | null {
    return this.#server?.address() ?? null
  }

  async open (ground: Ground): Promise<void> {
    const { tls, maxUnknown = MAX_UNKNOWN } = this.#options
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
      ground.entrance.refused('protocol', { address: socket.remoteAddress })
      socket.destroy()
    })
    server.on('error', error => ground.app.log.error({ err: error }, 'the TCP door failed'))
    // with `onListen` nobody would hear that the port is taken
    ground.app.addHook('onReady', async () => {
      await this.#clear()
      await this.#listen(server)
    })
  }

  async close (deadline: number): Promise<void> {
    this.#server?.close()
    for (const newcomer of this.#unknown) newcomer.leave()
    while (this.#sockets.size > 0 && Date.now() < deadline) await sleep(LOOK_AGAIN)
    for (const socket of this.#sockets) socket.destroy()
  }

  letIn (newcomer: Newcomer): void {
    this.#unknown.delete(newcomer)
    this.#known.add(newcomer)
  }

  ended (newcomer: Newcomer): void {
    this.#unknown.delete(newcomer)
    this.#known.delete(newcomer)
  }

  #receive (socket: RawSocket, ground: Ground): void {
    // one that has gone already has no address either, and must not pass for a neighbour
    const address = this.#options.path === undefined ? String(socket.remoteAddress) : undefined
    this.#unknown.add(new Newcomer(socket, address, ground, this))
  }

  #turnAway (socket: RawSocket, { entrance, codec }: Ground): void {
    entrance.refused('overloaded', { address: socket.remoteAddress })
    if (this.#options.tls) return void socket.destroy()
    socket.on('error', () => {})
    socket.end(`${codec.encode(farewell(goodbyes.overloaded.code, goodbyes.overloaded.message)) as string}\n`)
    socket.destroySoon()
  }

  /** Takes away a Unix socket behind which nobody is: a process that was killed could not. */
  async #clear (): Promise<void> {
    const { path } = this.#options
    if (path !== undefined && await isAbandoned(path)) await unlink(path)
  }

  #listen (server: Server): Promise<void> {
    const { port, host = LOOPBACK, path } = this.#options
    return new Promise((resolve, reject) => {
      server.once('error', reject)
      server.listen(path === undefined ? { port, host } : { path }, () => {
        server.removeListener('error', reject)
        resolve()
      })
    })
  }
}

/** Whether nobody listens there any more. Any other file refuses connections too, and is not ours to take away. */
async function isAbandoned (path: string): Promise<boolean> {
  const file = await stat(path).catch(() => undefined)
  if (!file?.isSocket()) return false
  return await new Promise(resolve => {
    const socket = connect(path, () => {
      socket.destroy()
      resolve(false)
    })
    socket.on('error', ({ code }: NodeJS.ErrnoException) => resolve(code === 'ECONNREFUSED'))
  })
}
