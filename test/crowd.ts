import type { Gateway, Transport, TransportContext } from '../lib/gateway/transport.ts'
import type { Session } from '../lib/connection/session.ts'

type Socket = Parameters<Gateway['open']>[1]

/** A transport whose devices are within the process and answer nothing: ten thousand of them connect in a second. */
export class Crowd implements Transport {
  readonly #name: string | undefined
  #gateway!: Gateway
  readonly sessions: Session[] = []

  /** Without a name, its sockets do not say of which transport they are. */
  constructor (name?: string) {
    this.#name = name
  }

  async open ({ gateway }: TransportContext): Promise<void> {
    this.#gateway = gateway
  }

  async close (): Promise<void> {
    this.leave()
  }

  async connect (deviceId: string): Promise<Session> {
    const request = { deviceId, token: undefined, protocols: [], address: '127.0.0.1', isLocal: true, localAddress: undefined, headers: {} }
    const socket: Socket = {
      ...(this.#name !== undefined && { transport: this.#name }), isOpen: true, sent: 0, buffered: 0, send () {}, onDrain (listener) { listener() }, close () {}
    }
    const session = this.#gateway.open(await this.#gateway.admit(request, new AbortController()), socket)
    await this.#gateway.enter(session)
    this.sessions.push(session)
    return session
  }

  /** All of them lose their connections. */
  leave (): void {
    for (const session of this.sessions.splice(0)) session.closed(1006, 'lost')
  }
}
