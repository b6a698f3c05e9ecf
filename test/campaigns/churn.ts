import { once } from 'node:events'
import type { Socket } from 'node:net'
import fastifyWebsocket from '@fastify/websocket'
import type { FastifyInstance } from 'fastify'
import WebSocket from 'ws'
import devices, { localBackplane, type Backplane } from '../../lib/index.ts'
import { command, lanes, settled, Verdict, type Outcome } from './campaign.ts'
import { Host, quietApp, type IdleState, type HostedApp } from './host.ts'

/** The state that a server keeps for connected devices; it must all be released. */
interface ServerState {
  sessions: number
  owners: number
  topics: number
  calls: number
  handlers: number
  connections: number
}

type Sample = [cycles: number, heap: number]

interface Slope {
  slope: number
  error: number
}

const EMPTY: ServerState = { sessions: 0, owners: 0, topics: 0, calls: 0, handlers: 0, connections: 0 }
const names = ['plugin', 'bare'] as const

const WIDTH = 20
/** Minimum cycles between two heap samples, and the number of samples in a long run. */
const MIN_CYCLES_PER_SAMPLE = 250
const SAMPLES = 20
/**
 * In the long form, enough for bounded memory to reach its bound: the last disconnects of 10,000 devices, in a map that doubles its capacity for
 * the last time at 16,384 entries. Three of five devices are admitted.
 */
const WARM_UP_SHARE = 0.6
/** Below the smallest possible leak: a map entry takes at least 24 bytes, a session over 1,000. */
const MIN_LEAK_BYTES = 16
/** From this number of cycles on, the slope distinguishes such a leak from the noise of the garbage collector. */
const MIN_CYCLES_FOR_SLOPE = 40_000
const WRONG_TOKEN = 'wrong'

/** Connects and disconnects in every way, with this plugin and with bare `@fastify/websocket`, and compares their heap growth. */
export async function churn ({ cycles }: { cycles: number }): Promise<Outcome> {
  const verdict = new Verdict()
  const [plugin, bare] = await Promise.all([ServerUnderTest.start('plugin'), ServerUnderTest.start('bare')])
  const share = Math.max(MIN_CYCLES_PER_SAMPLE, Math.ceil(cycles / SAMPLES))
  // alternating, so that other load on this machine affects both
  for (let from = 0; from < cycles; from += share) {
    for (const subject of [plugin, bare]) await subject.run(from, Math.min(from + share, cycles), verdict)
  }
  for (const subject of [plugin, bare]) await subject.stop(verdict)

  const [ours, theirs] = [plugin.slope(), bare.slope()]
  const more = ours.slope - theirs.slope
  // Three standard errors: noise alone exceeds them in one run of several hundred.
  const allowance = MIN_LEAK_BYTES + 3 * Math.hypot(ours.error, theirs.error)
  if (cycles >= MIN_CYCLES_FOR_SLOPE) verdict.within('bytes leaked per cycle, beyond those of bare', more, allowance)
  return {
    line: `churn: ${cycles} cycles; heap slope ${formatSlope(ours)} with the plugin, ${formatSlope(theirs)} bare, difference ${more.toFixed(1)} bytes per cycle ` +
      `(allowed ${allowance.toFixed(1)}); heap after warm-up and at the end ${plugin.span()} plugin, ${bare.span()} bare; ` +
      'sessions, owners, topics, calls, handlers, connections at the end ' + Object.values(plugin.held).join(', '),
    wrong: verdict.wrong
  }
}

/** One of the two servers, and its heap samples. */
class ServerUnderTest {
  readonly #name: string
  readonly #host: Host
  readonly #before: IdleState
  readonly #samples: Sample[] = []
  held: ServerState = EMPTY

  private constructor (name: string, host: Host, before: IdleState) {
    this.#name = name
    this.#host = host
    this.#before = before
  }

  static async start (name: typeof names[number]): Promise<ServerUnderTest> {
    const host = await Host.start(import.meta.url, { name })
    return new ServerUnderTest(name, host, await host.ask('rest'))
  }

  /** Runs the cycles `from` to `to`, then takes a sample at rest. */
  async run (from: number, to: number, verdict: Verdict): Promise<void> {
    await lanes(to - from, WIDTH, number => cycle(this.#host.url, from + number))
    this.held = await settled(() => this.#host.ask('held'), EMPTY)
    verdict.same(`${this.#name} holds after ${to} cycles`, this.held, EMPTY)
    const { heap }: IdleState = await this.#host.ask('rest')
    this.#samples.push([to, heap])
  }

  async stop (verdict: Verdict): Promise<void> {
    const { listeners, resources } = this.#before
    const quietly = await settled(async () => {
      const { heap, ...rest }: IdleState = await this.#host.ask('rest')
      return rest
    }, { listeners, resources })
    verdict.same(`listeners and resources of ${this.#name}`, quietly, { listeners, resources })
    verdict.same(`errors of ${this.#name}`, [...this.#host.faults, ...await this.#host.ask('errors')], [])
    verdict.same(`exit of ${this.#name}`, await this.#host.stop(), { code: 0, signal: null })
  }

  slope (): Slope {
    return fitLine(this.#warm)
  }

  span (): string {
    const [first, last] = [this.#warm[0]!, this.#warm.at(-1)!]
    return `${kib(first[1])} to ${kib(last[1])} KiB`
  }

  get #warm (): Sample[] {
    return this.#samples.slice(Math.floor(this.#samples.length * WARM_UP_SHARE))
  }
}

/** One device. Two of five are refused; the others connect, subscribe, leave a call of each side open, and disconnect. */
async function cycle (url: string, number: number): Promise<void> {
  const ways = [leaveCleanly, terminate, reset, refusedForId, refusedForToken]
  await ways[number % ways.length]!(url.replace('http', 'ws'), number)
}

async function leaveCleanly (url: string, number: number): Promise<void> {
  const socket = await connectDevice(url, number)
  socket.close(1000)
  await once(socket, 'close')
}

async function terminate (url: string, number: number): Promise<void> {
  const socket = await connectDevice(url, number)
  socket.terminate()
  await once(socket, 'close')
}

async function reset (url: string, number: number): Promise<void> {
  const socket = await connectDevice(url, number)
  tcpOf(socket).resetAndDestroy()
  await once(socket, 'close')
}

async function refusedForId (url: string, number: number): Promise<void> {
  await refused(new WebSocket(`${url}/ws?deviceId=no%20id${number}`), 400)
}

async function refusedForToken (url: string, number: number): Promise<void> {
  await refused(new WebSocket(`${url}/ws?deviceId=${idOf(number)}`, { headers: { authorization: `Bearer ${WRONG_TOKEN}` } }), 401)
}

/** Both servers answer `subscribe` last, so the call before it is in progress by then. */
async function connectDevice (url: string, number: number): Promise<WebSocket> {
  const socket = new WebSocket(`${url}/ws?deviceId=${idOf(number)}`, { perMessageDeflate: false })
  socket.on('error', () => {})
  socket.once('open', () => {
    socket.send('{"jsonrpc":"2.0","id":"l","method":"linger"}')
    socket.send(`{"jsonrpc":"2.0","id":"s","method":"subscribe","params":{"topics":["churn/${number % 100}","all/#"]}}`)
  })
  await new Promise<void>((resolve, reject) => {
    socket.on('message', (data: Buffer) => { if (data.includes('"id":"s"')) resolve() })
    socket.once('close', code => reject(new Error(`A device that must be admitted was closed with ${code}`)))
  })
  return socket
}

/** Ids have one length, so that every device takes the same memory. */
function idOf (number: number): string {
  return `device-${String(number).padStart(9, '0')}`
}

async function refused (socket: WebSocket, wanted: number): Promise<void> {
  socket.on('error', () => {})
  const [, response] = await once(socket, 'unexpected-response')
  if (response.statusCode !== wanted) throw new Error(`Refused with ${response.statusCode}, and must be ${wanted}`)
  response.resume()
  await once(response, 'close')
}

function tcpOf (socket: WebSocket): Socket {
  return (socket as WebSocket & { _socket: Socket })._socket
}

/** Least-squares slope and its standard error. */
function fitLine (samples: Sample[]): Slope {
  const mean = (values: number[]) => values.reduce((sum, value) => sum + value, 0) / values.length
  const [x, y] = [mean(samples.map(([cycles]) => cycles)), mean(samples.map(([, heap]) => heap))]
  const spread = samples.reduce((sum, [cycles]) => sum + (cycles - x) ** 2, 0)
  const slope = samples.reduce((sum, [cycles, heap]) => sum + (cycles - x) * (heap - y), 0) / spread
  const left = samples.reduce((sum, [cycles, heap]) => sum + (heap - y - slope * (cycles - x)) ** 2, 0)
  return { slope, error: Math.sqrt(left / (samples.length - 2) / spread) }
}

function formatSlope ({ slope, error }: Slope): string {
  return `${slope.toFixed(1)} ± ${error.toFixed(1)}`
}

function kib (bytes: number): string {
  return (bytes / 1_024).toFixed(0)
}

// The servers.

async function prepare ({ name }: { name: typeof names[number] }): Promise<HostedApp> {
  const errors: string[] = []
  const app = quietApp(errors)
  const held = name === 'plugin' ? await withPlugin(app) : await withoutPlugin(app)
  const commands = {
    held: async (): Promise<ServerState> => ({ ...EMPTY, ...held(), connections: await connections(app) }),
    errors: () => errors
  }
  return { app, commands }
}

async function withPlugin (app: FastifyInstance): Promise<() => Partial<ServerState>> {
  const counts = { owners: 0, topics: 0, calls: 0, handlers: 0 }
  const own = await countingBackplane(counts)
  await app.register(devices, { authenticate: ({ token }) => token !== WRONG_TOKEN, authorizeTopic: () => true, backplane: own })
  const watchedByItself = counts.topics
  app.devices.handle('linger', async (_params, { signal }) => {
    counts.handlers++
    await once(signal, 'abort')
    counts.handlers--
  })
  app.devices.on('connected', async device => {
    counts.calls++
    await device.call('never', {}).catch(() => {})
    counts.calls--
  })
  return () => ({ ...counts, sessions: app.devices.size, topics: counts.topics - watchedByItself })
}

/** A backplane that counts owners and watched topics. */
function countingBackplane (counts: { owners: number, topics: number }): Backplane {
  const backplane = localBackplane()
  return {
    ...backplane,
    async own (deviceId, owner) {
      const ownership = await backplane.own(deviceId, owner)
      counts.owners++
      return { generation: ownership.generation, release: async () => { counts.owners--; await ownership.release() } }
    },
    watch (filter, listener) {
      const unwatch = backplane.watch(filter, listener)
      counts.topics++
      return () => { counts.topics--; unwatch() }
    }
  }
}

async function withoutPlugin (app: FastifyInstance): Promise<() => Partial<ServerState>> {
  await app.register(fastifyWebsocket)
  app.get('/ws', {
    websocket: true,
    preHandler: async (request, reply) => {
      if (!/^[\w-]+$/.test((request.query as { deviceId: string }).deviceId)) return await reply.code(400).send({ code: 'ID_INVALID' })
      if (request.headers.authorization === `Bearer ${WRONG_TOKEN}`) return await reply.code(401).send({ code: 'UNAUTHENTICATED' })
    }
  }, socket => {
    socket.send('{"jsonrpc":"2.0","method":"welcome"}')
    socket.on('message', (data: Buffer) => socket.send(data.toString()))
    socket.on('error', () => {})
  })
  return () => ({ sessions: app.websocketServer.clients.size })
}

async function connections (app: FastifyInstance): Promise<number> {
  return await new Promise(resolve => app.server.getConnections((_error, count) => resolve(count)))
}

await command(import.meta.url, { cycles: 50_000 }, churn, prepare)
