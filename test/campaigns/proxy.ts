import { once } from 'node:events'
import { connect, createServer, type AddressInfo, type Server, type Socket } from 'node:net'

interface Pair {
  client: Socket
  gateway: Socket
  silent: boolean
}

/** Stands between a client and its server, a device and its gateway above all, and does to their connections what a network does. */
export class Proxy {
  /** Connections that come from now on are accepted, and nothing of them goes further. */
  deaf = false
  /** How many came meanwhile. */
  swallowed = 0
  /** Milliseconds that everything takes on its way, in either direction. */
  delay = 0
  /** Sees what clients say, before it goes further. */
  watch: ((said: string) => void) | undefined
  readonly #server: Server
  readonly #pairs = new Set<Pair>()

  private constructor (server: Server, port: number) {
    this.#server = server
    server.on('connection', client => this.#join(client, port))
  }

  static async start (port: number): Promise<Proxy> {
    const proxy = new Proxy(createServer({ allowHalfOpen: true, noDelay: true }).listen(0, '127.0.0.1'), port)
    await once(proxy.#server, 'listening')
    return proxy
  }

  get url (): string {
    return `http://127.0.0.1:${(this.#server.address() as AddressInfo).port}`
  }

  /** Connections of which a side is still open. */
  get size (): number {
    return this.#pairs.size
  }

  /** Ends both sides with a TCP reset. */
  reset (): void {
    for (const { client, gateway } of this.#pairs) for (const socket of [client, gateway]) socket.resetAndDestroy()
  }

  /** Ends both sides in the middle of whatever they say. */
  finish (): void {
    for (const { client, gateway, silent } of this.#pairs) if (!silent) for (const socket of [client, gateway]) socket.end()
  }

  /** Swallows what either side says from now on, and says nothing of it. */
  hush (): void {
    for (const pair of this.#pairs) pair.silent = true
  }

  /** What fell silent is given up, as a network does in the end. */
  bury (): void {
    for (const { client, gateway, silent } of this.#pairs) if (silent) for (const socket of [client, gateway]) socket.resetAndDestroy()
  }

  async stop (): Promise<void> {
    this.reset()
    this.#server.close()
    await once(this.#server, 'close')
  }

  #join (client: Socket, port: number): void {
    if (this.deaf) return this.#swallow(client)
    const pair = { client, gateway: connect({ port, host: '127.0.0.1', allowHalfOpen: true, noDelay: true }), silent: false }
    this.#pairs.add(pair)
    client.on('data', data => this.watch?.(data.toString('latin1')))
    this.#pass(pair, client, pair.gateway)
    this.#pass(pair, pair.gateway, client)
  }

  #swallow (client: Socket): void {
    this.swallowed++
    client.resume().on('error', () => {}).on('end', () => client.end())
  }

  #pass (pair: Pair, from: Socket, to: Socket): void {
    from.on('data', data => this.#later(() => { if (!pair.silent && to.writable) to.write(data) }))
    from.on('end', () => this.#later(() => pair.silent ? from.end() : to.end()))
    from.on('error', () => { if (!pair.silent) to.resetAndDestroy() })
    from.on('close', () => {
      this.#later(() => { if (!pair.silent) to.end() })
      if (from.destroyed && to.destroyed) this.#pairs.delete(pair)
    })
  }

  #later (act: () => void): void {
    if (this.delay > 0) setTimeout(act, this.delay)
    else act()
  }
}
