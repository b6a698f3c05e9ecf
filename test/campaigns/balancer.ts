import { once } from 'node:events'
import { connect, createServer, type AddressInfo, type Server, type Socket } from 'node:net'

/** A TCP load balancer: forwards each connection to one of its servers in turn. */
export class Balancer {
  readonly #server: Server
  readonly #open = new Set<Socket>()
  readonly #ports = new Map<string, number>()
  #next = 0

  private constructor () {
    this.#server = createServer(socket => this.#forward(socket))
  }

  static async start (): Promise<Balancer> {
    const balancer = new Balancer()
    balancer.#server.listen(0, '127.0.0.1')
    await once(balancer.#server, 'listening')
    return balancer
  }

  get url (): string {
    return `http://127.0.0.1:${(this.#server.address() as AddressInfo).port}`
  }

  /** The addresses of its servers. */
  get urls (): string[] {
    return [...this.#ports.values()].map(port => `http://127.0.0.1:${port}`)
  }

  add (name: string, url: string): void {
    this.#ports.set(name, Number(new URL(url).port))
  }

  remove (name: string): void {
    this.#ports.delete(name)
  }

  close (): void {
    this.#server.close()
    for (const socket of this.#open) socket.destroy()
  }

  #forward (socket: Socket): void {
    const ports = [...this.#ports.values()]
    const port = ports[this.#next++ % ports.length]
    if (port === undefined) return void socket.destroy()
    const onward = connect(port, '127.0.0.1')
    for (const [one, other] of [[socket, onward], [onward, socket]] as const) {
      this.#open.add(one)
      one.on('error', () => other.destroy())
      one.on('close', () => {
        this.#open.delete(one)
        other.destroy()
      })
      one.pipe(other)
    }
  }
}
