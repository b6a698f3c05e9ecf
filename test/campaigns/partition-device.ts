import WebSocket from 'ws'
import { connect, type Client, type ConnectOptions } from '../../lib/client/index.ts'

/** Picks a gateway at random, also one that is down. */
export interface Gateways {
  pick (): { name: string, url: string }
}

/** A device that moves from gateway to gateway, with or without the client of this project. */
export interface Device {
  readonly id: string
  readonly seen: Sightings
  /** The gateway it is connected to, as far as it knows. */
  readonly at: string | undefined
  /** Final close codes. The device reconnects all the same, so that the campaign can continue. */
  readonly stops: string[]
  /** Replaces its connection: with a reset, or silently. */
  move (silently: boolean): void
  close (): void
}

/** The content of a message of the campaign; its member identifies it. */
export type Content = { letter: number } | { once: string }

export const TOPIC = 'partition/all'
/** Short, so that the judge waits for the server and not for the device. */
const BACKOFF = { minDelay: 200, maxDelay: 1_500 }
const HANDSHAKE_TIMEOUT_MS = 3_000
const ABNORMAL_CODE = 1006
/** Longer than a server takes to close a silent connection. */
const FORGOTTEN_AFTER_MS = 45_000

/** What the application on a device received. */
export class Sightings {
  readonly letters: number[] = []
  /** Number of deliveries of each message, call and broadcast. */
  readonly times = new Map<string, number>()

  take (content: Content): void {
    if ('letter' in content) this.letters.push(content.letter)
    else this.times.set(content.once, (this.times.get(content.once) ?? 0) + 1)
  }
}

/** A WebSocket that can be abandoned silently, as when a device changes its network and the server is not notified. */
class Mobile extends WebSocket {
  #isLeft = false

  /** Emits `close` to the device and stops reading, but leaves the connection open. */
  vanish (): void {
    if (this.readyState !== WebSocket.OPEN) return this.terminate()
    this.#isLeft = true
    this.pause()
    this.emit('close', ABNORMAL_CODE, Buffer.alloc(0))
    setTimeout(() => super.terminate(), FORGOTTEN_AFTER_MS).unref()
  }

  override terminate (): void {
    if (!this.#isLeft) super.terminate()
  }
}

/** A device that uses the client of this project. */
export class ClientDevice implements Device {
  readonly id: string
  readonly seen = new Sightings()
  readonly stops: string[] = []
  readonly #gateways: Gateways
  /** Ids of the messages received by earlier clients that stopped; a new client does not know them. */
  readonly #before = new Set<string>()
  readonly #shown = new Set<string>()
  #client!: Client
  #socket: Mobile | undefined
  #gateway = ''

  constructor (id: string, gateways: Gateways) {
    this.id = id
    this.#gateways = gateways
    this.#begin()
  }

  get at (): string | undefined {
    return this.#client.status.state === 'connected' ? this.#gateway : undefined
  }

  move (silently: boolean): void {
    if (silently) this.#socket?.vanish()
    else this.#socket?.terminate()
  }

  close (): void {
    this.#client.close()
  }

  #begin (): void {
    const client = connect('ws://anywhere/ws', { deviceId: this.id, ...BACKOFF, timeout: HANDSHAKE_TIMEOUT_MS, WebSocket: this.#roaming() })
    client.on('message', ({ id, data }) => {
      if (this.#before.has(id)) return
      this.#shown.add(id)
      this.seen.take(data)
    })
    client.handle('work', (params: { once: string }) => {
      this.seen.take(params)
      return params.once
    })
    client.subscribe(TOPIC, () => {})
    client.on('status', ({ state, code, reason }) => {
      if (state !== 'stopped' || code === 1000) return
      this.stops.push(`${this.id} at ${this.#gateway}: ${code} ${reason}`)
      for (const id of this.#shown) this.#before.add(id)
      this.#begin()
    })
    client.on('error', () => {})
    this.#client = client
  }

  #roaming (): NonNullable<ConnectOptions['WebSocket']> {
    const begin = (url: string, protocols: string[]) => {
      const { name, url: gateway } = this.#gateways.pick()
      this.#gateway = name
      this.#socket = new Mobile(`${gateway.replace('http', 'ws')}/ws${new URL(url).search}`, protocols)
      return this.#socket
    }
    return new Proxy(Mobile, { construct: (_Mobile, [url, protocols]) => begin(url, protocols) }) as unknown as NonNullable<ConnectOptions['WebSocket']>
  }
}

/** A device without the client: a bare WebSocket and the minimum that the protocol requires. */
export class BareDevice implements Device {
  readonly id: string
  readonly seen = new Sightings()
  readonly stops: string[] = []
  readonly #gateways: Gateways
  /** Ids of the letters received; duplicates are acknowledged and dropped. */
  readonly #shown = new Set<string>()
  #socket!: Mobile
  #gateway = ''
  #isWelcome = false
  #isClosed = false

  constructor (id: string, gateways: Gateways) {
    this.id = id
    this.#gateways = gateways
    this.#begin()
  }

  get at (): string | undefined {
    return this.#isWelcome ? this.#gateway : undefined
  }

  move (silently: boolean): void {
    if (silently) this.#socket.vanish()
    else this.#socket.terminate()
  }

  close (): void {
    this.#isClosed = true
    this.#socket.close()
  }

  #begin (): void {
    const { name, url } = this.#gateways.pick()
    const socket = new Mobile(`${url.replace('http', 'ws')}/ws?deviceId=${this.id}`, { handshakeTimeout: HANDSHAKE_TIMEOUT_MS })
    this.#gateway = name
    this.#socket = socket
    socket.on('error', () => {})
    socket.on('message', (frame: Buffer) => { if (socket === this.#socket) this.#receive(JSON.parse(frame.toString())) })
    socket.on('close', (code: number, reason: Buffer) => {
      if (socket !== this.#socket) return
      this.#isWelcome = false
      if (this.#isClosed) return
      if (code >= 4500) this.stops.push(`${this.id} at ${name}: ${code} ${reason.toString()}`)
      setTimeout(() => { if (!this.#isClosed && socket === this.#socket) this.#begin() }, Math.random() * 2 * BACKOFF.minDelay)
    })
  }

  #receive ({ id, method, params }: { id?: unknown, method?: string, params?: any }): void {
    if (method === 'welcome') {
      this.#isWelcome = true
      this.#send({ id: 'topics', method: 'subscribe', params: { topics: [TOPIC] } })
    } else if (method === 'work') {
      this.seen.take(params)
      this.#send({ id, result: params.once })
    } else if (method === 'message') {
      if (!this.#shown.has(params.id)) this.seen.take(params.data)
      this.#shown.add(params.id)
      if (id !== undefined) this.#send({ id, result: {} })
    }
  }

  #send (message: object): void {
    this.#socket.send(JSON.stringify({ jsonrpc: '2.0', ...message }))
  }
}
