import { once } from 'node:events'
import type { AddressInfo } from 'node:net'
import { setTimeout as sleep } from 'node:timers/promises'
import Fastify, { type FastifyInstance } from 'fastify'
import devices, { Failure, type Options } from '../../lib/index.ts'
import { tcp } from '../../lib/transports/tcp/index.ts'
import { certificate } from '../certificates.ts'
import { connect, type TestDevice } from '../support.ts'
import { command, settled, Verdict, type Outcome } from './campaign.ts'
import { Host, quietApp, countByName, type HostedApp } from './host.ts'
import { namespacesRefused } from './namespaces.ts'
import { forkNeighbour } from './neighbour.ts'
import { stranger, type Counts, type Target } from './stranger.ts'

interface Size extends Record<string, number> {
  requests: number
  seed: number
}

/** What an application observed. */
interface Observations {
  refusals: Counts
  /** Requests that no check refused. */
  passed: string[]
  /** Effects of requests, and on the connected device. */
  done: Counts
}

const VICTIM = 'victim'
const MAX_REFUSAL_MS = 5

/** Unauthorized requests and upgrades from another machine, whose connections end at any time and in any way: none is carried out. */
export async function intruder ({ requests, seed }: Size): Promise<Outcome> {
  const why = namespacesRefused()
  if (why) return { line: `intruder: skipped, it ${why}`, wrong: [] }
  const verdict = new Verdict()
  const host = await Host.start(import.meta.url)
  const { child, here } = await forkNeighbour(stranger)
  const targets: Target[] = await host.ask('targets')
  const before = await host.ask('held')
  const resources = await host.ask('resources')

  child.send({ host: here, targets, requests, seed })
  const [ended] = await Promise.race([once(child, 'message') as Promise<[Counts]>, host.ended.then(() => [{}] as [Counts])])
  const gone = once(child, 'exit')
  child.disconnect()
  await gone

  verdict.same('what the server holds', await settled(async () => await host.ask('held'), before), before)
  verdict.same('listeners, timers, sockets', await settled(async () => await host.ask('resources'), resources), resources)
  const observations: Record<string, Observations> = await host.ask('observations')
  for (const [name, { passed, done }] of Object.entries(observations)) {
    verdict.same(`${name}: requests that were not refused`, passed, [])
    verdict.same(`${name}: what was carried out`, Object.entries(done).filter(([, count]) => count !== 0), [])
  }
  const addresses: Counts = await host.ask('addresses')
  verdict.same('requests from this machine', addresses.loopback ?? 0, 0)
  verdict.holds('some came from another machine', (addresses.other ?? 0) > 0)
  verdict.holds('some had lost their address', (addresses.none ?? 0) > 0)
  verdict.same('uncaught errors', host.faults, [])
  verdict.same('exit', await host.stop(), { code: 0, signal: null })

  const refused = Object.entries(observations).map(([name, { refusals }]) => `${name} ${JSON.stringify(refusals)}`)
  const carriedOut = Object.values(observations).reduce((sum, { passed, done }) => sum + passed.length + done.admitted!, 0)
  return {
    line: `intruder: ${requests} requests, upgrades and lines from another machine (seed ${seed}), ended by ${JSON.stringify(ended)}; carried out ${carriedOut}; ` +
      `addresses ${JSON.stringify(addresses)}; refused: ${refused.join(', ')}; ${host.faults.length} uncaught`,
    wrong: verdict.wrong
  }
}

// The server.

/** The timeouts that docs/security.md recommends, but shorter. */
const shortTimeouts = { requestTimeout: 1_500, keepAliveTimeout: 500 }
const checks = { headersTimeout: 1_000, connectionsCheckingInterval: 100 }

const takesTime = () => sleep(Math.random() * MAX_REFUSAL_MS)
const isVictim = ({ token }: { token: string | undefined }) => token === VICTIM

/** Each application has one refusal under test; no other check would refuse the requests. */
const applications: Record<string, { options?: Options, server?: object, headers?: string[] }> = {
  'protected mode': {},
  'protected mode behind trusted proxies': { server: { trustProxy: true } },
  'protected mode over TLS': { server: { https: { ...checks, key: certificate('server.key'), cert: certificate('server.pem') } } },
  'guard and authenticate': { options: { guard: () => false, authenticate: isVictim } },
  'slow guard and authenticate': {
    options: {
      guard: async () => { await takesTime(); return false },
      authenticate: async request => { await takesTime(); return isVictim(request) }
    }
  },
  'guard and authenticate that fail': {
    options: {
      guard: () => { throw undefined }, // eslint-disable-line
      authenticate: async request => isVictim(request) || await Promise.reject(new Failure('forbidden'))
    }
  },
  origins: { options: { guard: false, authenticate: false }, headers: ['Origin: https://stranger.example'] }
}

/** An application, and a device connected to it from this machine. */
class ApplicationUnderTest {
  readonly #name: string
  readonly #app: FastifyInstance
  readonly #entry = tcp({ port: 0, host: '0.0.0.0' })
  readonly #passed: string[] = []
  readonly #done = { called: 0, events: 0 }
  #victim!: TestDevice
  #generation = 0

  constructor (name: string, addresses: Array<string | undefined>) {
    this.#name = name
    this.#app = Fastify({ ...shortTimeouts, http: checks, ...applications[name]!.server }) as unknown as FastifyInstance
    // Not read earlier: Node caches the address once it has been read.
    this.#app.addHook('onError', async ({ raw }) => { addresses.push(raw.socket.remoteAddress) })
    this.#app.addHook('preHandler', async ({ method, url }) => { if (!url.startsWith('/ws')) this.#passed.push(`${method} ${url}`) })
  }

  async open (): Promise<void> {
    const app = this.#app
    await app.register(devices, { admissionTimeout: 1_000, ...applications[this.#name]!.options, transports: [this.#entry] })
    await app.listen({ port: 0, host: '0.0.0.0' })
    const url = `${this.#isSecure ? 'https' : 'http'}://127.0.0.1:${this.#port}`
    this.#victim = await connect(url, VICTIM, { headers: { authorization: `Bearer ${VICTIM}` }, rejectUnauthorized: false })
    this.#victim.handle('run', () => { this.#done.called++ })
    this.#generation = app.devices.get(VICTIM)!.generation
    for (const event of ['connected', 'disconnected', 'message'] as const) app.devices.on(event, () => { this.#done.events++ })
  }

  get targets (): Target[] {
    const { headers = [] } = applications[this.#name]!
    const http: Target = { port: this.#port, kind: this.#isSecure ? 'https' : 'http', headers }
    // browsers cannot open TCP connections, so there is no Origin to check
    return headers.length > 0 ? [http] : [http, { port: portOf(this.#entry.address), kind: 'lines', headers }]
  }

  get observations (): Observations {
    const { admissions, refusals, letters } = this.#app.devices.stats()
    const victim = this.#app.devices.get(VICTIM)
    const took = victim?.generation === this.#generation ? 0 : 1
    const done = { admitted: admissions - 1, took, heard: this.#victim.seen.length - 1, letters: Object.keys(letters).length, topics: victim?.topics.size ?? 0, ...this.#done }
    return { refusals, passed: this.#passed, done }
  }

  async held (): Promise<{ sessions: number, connections: number }> {
    const connections = await new Promise<number>(resolve => this.#app.server.getConnections((_error, count) => resolve(count)))
    return { sessions: this.#app.devices.size, connections }
  }

  get listeners (): number {
    const { server } = this.#app
    return server.eventNames().reduce((sum, name) => sum + server.listenerCount(name), 0)
  }

  async close (): Promise<void> {
    await this.#victim.close()
    await this.#app.close()
  }

  get #port (): number {
    return portOf(this.#app.server.address())
  }

  get #isSecure (): boolean {
    return 'https' in (applications[this.#name]!.server ?? {})
  }
}

function portOf (address: unknown): number {
  return (address as AddressInfo).port
}

function sumOf<Key extends string> (items: Array<Record<Key, number>>, key: Key): number {
  return items.reduce((sum, item) => sum + item[key], 0)
}

async function prepare (): Promise<HostedApp> {
  const app = quietApp()
  const addresses: Array<string | undefined> = []
  const servers = Object.keys(applications).map(name => new ApplicationUnderTest(name, addresses))
  for (const server of servers) await server.open()
  app.addHook('onClose', async () => { for (const server of servers) await server.close() })
  const commands = {
    targets: () => servers.flatMap(({ targets }) => targets),
    held: async () => {
      const held = await Promise.all(servers.map(server => server.held()))
      return { sessions: sumOf(held, 'sessions'), connections: sumOf(held, 'connections') }
    },
    resources: () => ({ listeners: servers.reduce((sum, { listeners }) => sum + listeners, 0), ...countByName(process.getActiveResourcesInfo()) }),
    observations: () => Object.fromEntries(servers.map(({ observations }, at) => [Object.keys(applications)[at], observations])),
    addresses: () => countByName(addresses.map(address => address === undefined ? 'none' : address.startsWith('127.') ? 'loopback' : 'other'))
  }
  return { app, commands }
}

await command(import.meta.url, { requests: 20_000, seed: 20_260_101 }, intruder, prepare)
