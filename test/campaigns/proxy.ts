import { once } from 'node:events'
import { connect, createServer, type AddressInfo, type Server, type Socket } from 'node:net'

interface ProxiedConnection {
  client: Socket
  gateway: Socket
  isBlackholed: boolean
}

/** A TCP proxy between clients and a server that simulates network faults. */
export class Proxy {
  /** New connections are accepted, but not forwarded. */
  isDeaf = false
  /** Number of such connections. */
  swallowedCount = 0
  /** Delay of all data, in either direction. */
  delayMs = 0
  /** Called with the data of clients, before it is forwarded. */
  onClientData: ((said: string) => void) | undefined
  readonly #server: Server
  readonly #pairs = new Set<ProxiedConnection>()

  private constructor (server: Server, port: number) {
    this.#server = server
    server.on('connection', client => this.#accept(client, port))
  }

  static async start (port: number): Promise<Proxy> {
    const proxy = new Proxy(createServer({ allowHalfOpen: true, noDelay: true }).listen(0, '127.0.0.1'), port)
    await once(proxy.#server, 'listening')
    return proxy
  }

  get url (): string {
    return `http://127.0.0.1:${(this.#server.address() as AddressInfo).port}`
  }

  /** Number of connections with an open side. */
  get size (): number {
    return this.#pairs.size
  }

  /** Ends both sides with a TCP reset. */
  reset (): void {
    for (const { client, gateway } of this.#pairs) for (const socket of [client, gateway]) reset(socket)
  }

  /** Sends FIN to both sides, possibly within a message. */
  finish (): void {
    for (const { client, gateway, isBlackholed } of this.#pairs) if (!isBlackholed) for (const socket of [client, gateway]) socket.end()
  }

  /** Drops all further data of the open connections, without closing them. */
  blackhole (): void {
    for (const pair of this.#pairs) pair.isBlackholed = true
  }

  /** Resets the connections that are blackholed. */
  resetBlackholed (): void {
    for (const { client, gateway, isBlackholed } of this.#pairs) if (isBlackholed) for (const socket of [client, gateway]) reset(socket)
  }

  async stop (): Promise<void> {
    this.reset()
    this.#server.close()
    await once(this.#server, 'close')
  }

  #accept (client: Socket, port: number): void {
    if (this.isDeaf) return this.#swallow(client)
    const pair = { client, gateway: connect({ port, host: '127.0.0.1', allowHalfOpen: true, noDelay: true }), isBlackholed: false }
    this.#pairs.add(pair)
    client.on('data', data => this.onClientData?.(data.toString('latin1')))
    this.#forward(pair, client, pair.gateway)
    this.#forward(pair, pair.gateway, client)
  }

  #swallow (client: Socket): void {
    this.swallowedCount++
    client.resume().on('error', () => {}).on('end', () => client.end())
  }

  #forward (pair: ProxiedConnection, from: Socket, to: Socket): void {
    from.on('data', data => this.#later(() => { if (!pair.isBlackholed && to.writable) to.write(data) }))
    from.on('end', () => this.#later(() => pair.isBlackholed ? from.end() : to.end()))
    from.on('error', () => { if (!pair.isBlackholed) reset(to) })
    from.on('close', () => {
      this.#later(() => { if (!pair.isBlackholed) to.end() })
      if (from.destroyed && to.destroyed) this.#pairs.delete(pair)
    })
  }

  #later (act: () => void): void {
    if (this.delayMs > 0) setTimeout(act, this.delayMs)
    else act()
  }
}

/** A socket that is ending cannot be reset: libuv refuses, and its handle would keep the process alive. */
function reset (socket: Socket): void {
  if (socket.writableEnded) socket.destroy()
  else socket.resetAndDestroy()
}
