import { connect, type Client, type ConnectOptions, type Status } from '../../lib/client/index.ts'
import { seededRandom } from './seeded-random.ts'

// The device of the campaign "cuts". It runs in Node and in a browser, so it uses only what both have.

type SocketClass = NonNullable<ConnectOptions['WebSocket']>
type Socket = InstanceType<SocketClass>

export interface TrafficOptions {
  url: string
  seed: number
}

/** Outcomes of calls: "ok" or a reason. Each call is counted once. */
export interface Calls {
  made: number
  settled: number
  outcomes: Record<string, number>
}

export interface TrafficReport {
  letters: number
  /** Unexpected messages. */
  wrong: string[]
  calls: Calls
  published: Calls
  notices: number
  /** WebSockets created so far, and those still open. */
  sockets: { made: number, open: number }
  connections: number
  /** Publications received, by filter. */
  heard: Record<string, number>
}

const RECONNECT = { minDelay: 10, maxDelay: 100, timeout: 1_500 }
const MAX_HANDLING_MS = 3
const INTERVAL_MS = 6
const NEVER = 'never'

/** A device with traffic in both directions. */
export class Traffic {
  readonly #url: string
  readonly #random: () => number
  readonly #WebSocket: SocketClass
  readonly #open = new Set<Socket>()
  readonly #device: Client
  readonly #broadcasts = new Set<string>()
  readonly #tally: TrafficReport = {
    letters: 0, wrong: [], calls: calls(), published: calls(), notices: 0, sockets: { made: 0, open: 0 }, connections: 0, heard: {}
  }
  #leave: (() => void) | undefined
  #running = true
  #loops: Promise<unknown>

  constructor ({ url, seed }: TrafficOptions, WebSocket: SocketClass) {
    this.#url = url
    this.#random = seededRandom(seed)
    this.#WebSocket = this.#counted(WebSocket)
    this.#device = this.#connect('d')
    this.#device.handle('twice', async ({ n }) => {
      await sleep(this.#random() * MAX_HANDLING_MS)
      return n * 2
    })
    this.#device.on('message', ({ data, topic }) => topic === undefined ? this.#letter(data.letter) : undefined)
    this.#device.on('status', ({ state }) => { if (state === 'connected') this.#tally.connections++ })
    for (const filter of ['kept/+', 'kept/a/#']) this.#device.subscribe(filter, ({ data, topic }) => this.#heard(filter, data.n, topic!))
    this.#loops = Promise.all([this.#call(), this.#publish(), this.#toggle()])
  }

  tally (): TrafficReport {
    this.#tally.sockets.open = this.#open.size
    return structuredClone(this.#tally)
  }

  status (): Status {
    return this.#device.status
  }

  /** Stops the traffic; resolves once all calls are settled. */
  async finish (): Promise<TrafficReport> {
    this.#running = false
    await this.#loops
    while (this.#tally.calls.settled + this.#tally.published.settled < this.#tally.calls.made + this.#tally.published.made) await sleep(INTERVAL_MS)
    return this.tally()
  }

  /** Makes calls that are never answered; resolves with their outcomes once all have ended. */
  async pending (count: number): Promise<Record<string, number>> {
    const pending = calls()
    await Promise.all(Array.from({ length: count }, () => this.#settled(pending, this.#device.call(NEVER, undefined, { timeout: 60_000 }), () => false)))
    return pending.outcomes
  }

  /** Connects one more device; resolves with its status once it has stopped. */
  async stopped (deviceId: string): Promise<Status> {
    const device = this.#connect(deviceId)
    return await new Promise(resolve => device.on('status', status => { if (status.state === 'stopped') resolve(status) }))
  }

  close (): void {
    this.#device.close()
  }

  #connect (deviceId: string): Client {
    return connect(`${this.#url}/ws`, { deviceId, ...RECONNECT, WebSocket: this.#WebSocket })
  }

  #counted (WebSocket: SocketClass): SocketClass {
    const made = (socket: Socket) => {
      this.#tally.sockets.made++
      this.#open.add(socket)
      socket.addEventListener('close', () => this.#open.delete(socket))
      return socket
    }
    return new Proxy(WebSocket, { construct: (Real, [url, protocols]) => made(new Real(url, protocols)) })
  }

  async #letter (number: number): Promise<void> {
    if (number !== this.#tally.letters) this.#wrong(`letter ${number} came in place of ${this.#tally.letters}`)
    this.#tally.letters = number + 1
    await sleep(this.#random() * MAX_HANDLING_MS)
  }

  #heard (filter: string, number: string, topic: string): void {
    const once = `${filter} ${topic} ${number}`
    if (this.#broadcasts.has(once)) this.#wrong(`"${once}" came twice`)
    this.#broadcasts.add(once)
    if (this.#broadcasts.size > 1_000) this.#broadcasts.delete(this.#broadcasts.values().next().value!)
    this.#tally.heard[filter] = (this.#tally.heard[filter] ?? 0) + 1
  }

  #wrong (what: string): void {
    if (this.#tally.wrong.push(what) > 20) this.#tally.wrong.pop()
  }

  async #call (): Promise<void> {
    for (let n = 0; this.#running; n++) {
      void this.#settled(this.#tally.calls, this.#device.call('echo', { n }), (result: any) => result.n === n)
      if (this.#device.notify('note', { n })) this.#tally.notices++
      await sleep(this.#random() * INTERVAL_MS)
    }
  }

  async #publish (): Promise<void> {
    for (let n = 0; this.#running; n++) {
      void this.#settled(this.#tally.published, this.#device.publish('kept/own', { n: `own ${n}` }), () => true)
      await sleep(this.#random() * 4 * INTERVAL_MS)
    }
  }

  /** Subscribes and unsubscribes, sometimes both at once. */
  async #toggle (): Promise<void> {
    while (this.#running) {
      const leave = this.#device.subscribe('toggled/#', ({ data, topic }) => {
        if (this.#leave !== leave) this.#wrong(`"${topic}" arrived after unsubscribing`)
        this.#heard('toggled/#', data.n, topic!)
      })
      this.#leave = leave
      if (this.#random() < 0.7) await sleep(this.#random() * 4 * INTERVAL_MS)
      leave()
      this.#leave = undefined
      await sleep(this.#random() * INTERVAL_MS)
    }
  }

  async #settled (calls: Calls, call: Promise<unknown>, isRight: (result: unknown) => boolean): Promise<void> {
    calls.made++
    const outcome = await call.then(result => isRight(result) ? 'ok' : `wrong result ${JSON.stringify(result)}`, error => error.reason ?? String(error))
    calls.settled++
    calls.outcomes[outcome] = (calls.outcomes[outcome] ?? 0) + 1
  }
}

function calls (): Calls {
  return { made: 0, settled: 0, outcomes: {} }
}

function sleep (milliseconds: number): Promise<void> {
  return new Promise(resolve => setTimeout(resolve, milliseconds))
}
