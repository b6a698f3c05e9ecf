import { mkdtemp, readFile, rm } from 'node:fs/promises'
import { createServer, type Server } from 'node:http'
import { once } from 'node:events'
import type { AddressInfo } from 'node:net'
import { tmpdir } from 'node:os'
import { join, normalize } from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import type { FastifyInstance } from 'fastify'
import WebSocket from 'ws'
import type { Status } from '../../lib/client/index.ts'
import { reasons, closeCodes, type CloseReason } from '../../lib/protocol/errors.ts'
import devices from '../../lib/index.ts'
import { diskMailbox } from '../../lib/storage/disk/index.ts'
import type { Session } from '../../lib/connection/session.ts'
import { launch } from '../browser.ts'
import { programAt } from '../programs.ts'
import { root } from '../root.ts'
import { request, until } from '../support.ts'
import { seededRandom, command, settled, Verdict, type Outcome } from './campaign.ts'
import { Host, quietApp, countByName, type HostedApp } from './host.ts'
import { Proxy } from './proxy.ts'
import { Traffic, type Calls, type TrafficReport, type TrafficOptions } from './traffic.ts'

export interface Size extends Record<string, number> {
  cuts: number
  seed: number
}

/** Controls the device, in this process or in a browser. */
interface DeviceDriver {
  ask (command: string, params?: unknown): Promise<any>
  /** Heap in use in bytes, where it can be measured. */
  heap? (): Promise<number>
  /** Timers and sockets in addition to those at the start, where they can be counted. */
  resources? (): Record<string, number>
  close (): Promise<void>
}

const SEED = 12
/** The share of cuts with a slow recovery, and of cuts that do not wait for the connection to be restored. */
const SLOW_CUT_SHARE = 0.3
const UNCONNECTED_SHARE = 0.15
const MAX_PAUSE_MS = 250
const INTERVAL_MS = 8
const RESEND_SHARE = 0.2
const PENDING_CALLS = 20
const QUIET_MS = 2_000
const MAX_GROWTH = { factor: 1.5, bytes: 2_000_000 }

/** Close reasons after which the device reconnects, and their reason texts. */
const reconnectReasons: Partial<Record<CloseReason, string | undefined>> = {
  leaving: 'retry=30', internal: undefined, overloaded: undefined, expired: undefined, slow: undefined, 'no-pong': undefined, flood: undefined, away: undefined
}
/** Close reasons after which it does not. */
const finalReasons: CloseReason[] = ['unauthenticated', 'forbidden', 'no-protocol', 'replaced']

/** What a cut acts on. */
interface Scene {
  host: Host
  proxy: Proxy
  driver: DeviceDriver
}

type Cut = (scene: Scene) => unknown

const closeWith = (name: CloseReason): Cut => ({ host }) => host.ask('end', { deviceId: 'd', closeReason: name, reason: reconnectReasons[name] })

const cuts: Record<string, Cut> = {
  ...Object.fromEntries(Object.keys(reconnectReasons).map(name => [name, closeWith(name as CloseReason)])),
  reset: ({ proxy }) => proxy.reset(),
  fin: ({ proxy }) => proxy.finish(),
  async 'two resets' ({ proxy }) {
    proxy.reset()
    await sleep(15)
    proxy.reset()
  }
}

/** Cuts that only the heartbeat of the device detects, and restarts of the gateway. */
const slowCuts: Record<string, Cut> = {
  async silence ({ proxy, driver }) {
    const { connections } = await driver.ask('tally')
    proxy.blackhole()
    // between two looks at a browser it may have connected again
    await until(async () => (await driver.ask('status')).state !== 'connected' || (await driver.ask('tally')).connections > connections)
  },
  async 'silence where it connects' ({ proxy }) {
    const { swallowedCount } = proxy
    proxy.isDeaf = true
    proxy.reset()
    await until(() => proxy.swallowedCount > swallowedCount)
    proxy.isDeaf = false
  },
  restart: ({ host }) => host.ask('restart')
}

/** Cuts of every kind during traffic in both directions, with the device in this process. */
export async function cutsInNode (size: Size): Promise<Outcome> {
  const before = resources()
  return await campaign('node', size, [], async options => {
    const traffic = new Traffic(options, WebSocket)
    return {
      ask: async (command, params) => await (traffic as any)[command](params),
      resources: () => Object.fromEntries(Object.entries(resources()).map(([name, count]) => [name, count - before[name]!])),
      async close () { traffic.close() }
    }
  })
}

function resources (): Record<string, number> {
  const { Timeout = 0, TCPSocketWrap = 0 } = countByName(process.getActiveResourcesInfo())
  return { Timeout, TCPSocketWrap }
}

/** The same with the device in a browser. */
export async function cutsInChromium (size: Size, path: string): Promise<Outcome> {
  const wrong: string[] = []
  const endings: Array<() => unknown> = []
  const files = await serveFiles()
  const origin = `http://127.0.0.1:${(files.address() as AddressInfo).port}`
  try {
    const teardown = (ending: () => unknown) => { endings.push(ending) }
    const browser = await launch({ teardown, fail: (what: string) => { wrong.push(what) } } as unknown as Parameters<typeof launch>[0], path)
    const outcome = await campaign('chromium', size, [origin], async options => {
      const page = await browser.newPage()
      await page.goto(`${origin}/?${new URLSearchParams({ url: options.url, seed: String(options.seed) })}`)
      await page.waitForFunction('globalThis.traffic')
      const devtools = await page.context().newCDPSession(page)
      return {
        ask: async (command, params) => await page.evaluate(`traffic[${JSON.stringify(command)}](${JSON.stringify(params)})`),
        async heap () {
          await devtools.send('HeapProfiler.collectGarbage')
          return (await devtools.send('Runtime.getHeapUsage')).usedSize
        },
        close: () => page.close()
      }
    })
    return { line: outcome.line, wrong: [...outcome.wrong, ...wrong] }
  } finally {
    for (const ending of endings) await ending()
    files.close()
  }
}

async function campaign (where: string, { cuts: count, seed }: Size, origins: string[], begin: (options: TrafficOptions) => Promise<DeviceDriver>): Promise<Outcome> {
  const verdict = new Verdict()
  const folder = await mkdtemp(join(tmpdir(), 'cuts-'))
  const host = await Host.start(import.meta.url, { folder, origins })
  const proxy = await Proxy.start(Number(new URL(host.url).port))
  const driver = await begin({ url: proxy.url, seed })
  const serverTraffic = new ServerTraffic(host.url, seededRandom(seed + 1))
  const random = seededRandom(seed)
  const made: Record<string, number> = {}
  let heap: number | undefined

  const began = Date.now()
  for (let cut = 0; cut < count; cut++) {
    const kinds = Object.entries(random() < SLOW_CUT_SHARE ? slowCuts : cuts)
    const [name, make] = kinds[Math.floor(random() * kinds.length)]!
    if (random() > UNCONNECTED_SHARE) await until(async () => (await driver.ask('status')).state === 'connected')
    await sleep(random() * MAX_PAUSE_MS)
    await make({ host, proxy, driver })
    made[name] = (made[name] ?? 0) + 1
    if (cut === Math.floor(count / 2)) heap = await driver.heap?.()
  }
  const took = Date.now() - began
  await serverTraffic.stop()
  const device = await driver.ask('finish') as TrafficReport
  await until(() => host.ask('has'))

  const letters = await settled(async () => (await driver.ask('tally')).letters, serverTraffic.letters)
  verdict.same('letters shown', letters, serverTraffic.letters)
  verdict.same('letters that wait', await settled(() => host.ask('waiting'), 0), 0)
  verdict.same('what came otherwise', (await driver.ask('tally')).wrong, [])
  verifySettled(verdict, 'calls of the device', device.calls)
  verifySettled(verdict, 'publishes of the device', device.published)
  verifySettled(verdict, 'calls to the device', serverTraffic.calls)

  await verifySubscriptions(host, driver, verdict)
  await verifyResources(host, proxy, driver, verdict)
  const grown = await driver.heap?.()
  if (heap !== undefined) verdict.within('bytes after the second half', grown!, heap * MAX_GROWTH.factor + MAX_GROWTH.bytes)
  const { sockets: { made: sockets }, connections } = await driver.ask('tally') as TrafficReport
  const stops = await verifyFinalReasons(host, driver, verdict)

  await driver.close()
  await proxy.stop()
  verdict.same('uncaught errors', host.faults, [])
  verdict.same('error log', await host.ask('errors'), {})
  verdict.same('exit', await host.stop(), { code: 0, signal: null })
  await rm(folder, { recursive: true })
  return {
    line: `cuts (${where}): ${count} in ${took} ms (seed ${seed}): ${JSON.stringify(made)}; ${connections} connections, ${sockets} WebSockets; ` +
      `${letters} letters (${serverTraffic.retries} retries), each once and in order; calls of the device ${formatCalls(device.calls)}, publishes ${formatCalls(device.published)}, ` +
      `calls to it ${formatCalls(serverTraffic.calls)}; heard ${JSON.stringify(device.heard)}; stopped by ${stops.join(', ')}` +
      (heap === undefined ? '' : `; heap ${heap} at half, ${grown} in the end`),
    wrong: verdict.wrong
  }
}

function verifySettled (verdict: Verdict, what: string, { made, settled, outcomes }: Calls): void {
  const kinds = new Set(['ok', 'dropped', 'timeout', 'busy', 'offline'])
  verdict.same(`${what} that did not settle`, made - settled, 0)
  verdict.same(`${what} by outcome`, Object.values(outcomes).reduce((sum, one) => sum + one, 0), made)
  verdict.same(`outcomes of ${what} that are none`, Object.keys(outcomes).filter(outcome => !kinds.has(outcome)), [])
  verdict.holds(`none of the ${what} was answered`, outcomes.ok! > 0)
}

function formatCalls ({ made, outcomes }: Calls): string {
  return `${made} ${JSON.stringify(outcomes)}`
}

/** After the last cut: publications arrive once for each subscription, and not after unsubscribing. */
async function verifySubscriptions (host: Host, driver: DeviceDriver, verdict: Verdict): Promise<void> {
  const wanted = ['kept/+', 'kept/a/#']
  verdict.same('filters in the end', await settled(async () => (await host.ask('topics')).toSorted(), wanted), wanted)
  const once = { 'kept/+': 2, 'kept/a/#': 1, 'toggled/#': 0 }
  const { heard: before } = await driver.ask('tally') as TrafficReport
  for (const topic of ['toggled/x', 'kept/a', 'kept/b']) await host.ask('broadcast', { topic, n: 'last' })
  const gain = async () => {
    const { heard: after } = await driver.ask('tally') as TrafficReport
    const filters = new Set([...Object.keys(once), ...Object.keys(after)]) // a short run may have heard nothing of one
    return Object.fromEntries([...filters].toSorted().map(filter => [filter, (after[filter] ?? 0) - (before[filter] ?? 0)]))
  }
  await settled(gain, once)
  verdict.same('the answer after them', (await request(host, 'POST', '/devices/d/calls/twice', { n: 1 })).body, 2)
  verdict.same('heard in the end', await gain(), once)
}

async function verifyResources (host: Host, proxy: Proxy, driver: DeviceDriver, verdict: Verdict): Promise<void> {
  proxy.resetBlackholed() // a browser waits a minute for the close frame of the other side, and has no option to shorten this
  verdict.same('WebSockets that are open', await settled(async () => (await driver.ask('tally')).sockets.open, 1), 1)
  verdict.same('connections through the network', await settled(async () => proxy.size, 1), 1)
  // its heartbeat timer; its socket and two of the proxy
  const held = { Timeout: 1, TCPSocketWrap: 3 }
  if (driver.resources) verdict.same('timers and sockets', await settled(async () => driver.resources!(), held), held)
  const one = { sessions: 1, topics: 2, inFlight: 0, connections: 1 }
  verdict.same('what the gateway holds', await settled(() => host.ask('held'), one), one)
}

/** After a final close reason the client reports the reason, settles its calls, and does not reconnect. */
async function verifyFinalReasons (host: Host, driver: DeviceDriver, verdict: Verdict): Promise<string[]> {
  const pending = driver.ask('pending', PENDING_CALLS)
  await until(async () => (await host.ask('held')).inFlight === PENDING_CALLS)
  const first = finalReasons.map(async name => [name, await driver.ask('stopped', `stop-${name}`)] as [CloseReason, Status])
  for (const name of finalReasons) {
    await until(() => host.ask('has', `stop-${name}`))
    await host.ask('end', { deviceId: `stop-${name}`, closeReason: name })
  }
  verdict.same('status of DELETE', (await request(host, 'DELETE', '/devices/d')).status, 204)
  await until(async () => (await driver.ask('status')).state === 'stopped')
  const stops: Array<[CloseReason, Status]> = [...await Promise.all(first), ['removed', await driver.ask('status')]]
  for (const [name, status] of stops) {
    const { code, message: reason } = closeCodes[name]
    verdict.same(`status after ${code}`, status, { state: 'stopped', code, reason })
  }
  verdict.same('calls in flight', await pending, { dropped: PENDING_CALLS })
  const { sockets: { made } } = await driver.ask('tally') as TrafficReport
  await sleep(QUIET_MS)
  verdict.same('WebSockets after the final close', (await driver.ask('tally')).sockets, { made, open: 0 })
  return stops.map(([, { code }]) => String(code))
}

/** Traffic of the application over REST: letters, calls and broadcasts, also while connections are cut. */
class ServerTraffic {
  letters = 0
  retries = 0
  readonly calls: Calls = { made: 0, settled: 0, outcomes: {} }
  readonly #gateway: { url: string }
  readonly #random: () => number
  readonly #loops: Promise<unknown>
  #running = true

  constructor (url: string, random: () => number) {
    this.#gateway = { url }
    this.#random = random
    this.#loops = Promise.all([this.#write(), this.#call(), this.#broadcast()])
  }

  async stop (): Promise<void> {
    this.#running = false
    await this.#loops
  }

  /** Sends each letter until it is acknowledged, and some of them again. */
  async #write (): Promise<void> {
    for (; this.#running; this.letters++) {
      while (await this.#post(this.letters) !== 202 || this.#random() < RESEND_SHARE) this.retries++
      await sleep(this.#random() * INTERVAL_MS)
    }
  }

  async #post (letter: number): Promise<number> {
    try {
      const { status, body } = await request(this.#gateway, 'POST', '/devices/d/messages?ttl=3600', { letter }, { 'idempotency-key': `letter-${letter}` })
      return status === 200 && body.status === 'delivered' ? 202 : status // the device may have acknowledged before the retry
    } catch { // the gateway is restarting
      await sleep(INTERVAL_MS)
      return 0
    }
  }

  async #call (): Promise<void> {
    const underway: Array<Promise<void>> = []
    for (let n = 0; this.#running; n++) {
      underway.push(this.#callOnce(n))
      await sleep(this.#random() * 4 * INTERVAL_MS)
    }
    await Promise.all(underway)
  }

  async #callOnce (n: number): Promise<void> {
    this.calls.made++
    const outcome = await request(this.#gateway, 'POST', '/devices/d/calls/twice?timeout=1', { n }).then(({ status, body }) => {
      if (status === 200) return body === 2 * n ? 'ok' : `wrong result ${body}`
      return outcomeOf[status] ?? `${status} ${body.code}`
    }, () => 'offline')
    this.calls.settled++
    this.calls.outcomes[outcome] = (this.calls.outcomes[outcome] ?? 0) + 1
  }

  async #broadcast (): Promise<void> {
    for (let n = 0; this.#running; n++) {
      const topic = ['kept/a', 'kept/b', 'toggled/x'][n % 3]!
      await request(this.#gateway, 'POST', `/broadcast?topic=${encodeURIComponent(topic)}`, { n: `sent ${n}` }).catch(() => {})
      await sleep(this.#random() * 2 * INTERVAL_MS)
    }
  }
}

const outcomeOf: Record<number, string> = { 404: 'offline', 429: 'busy', 502: 'dropped', 503: 'offline', 504: 'timeout' }

/** Serves the page and the built modules. */
async function serveFiles (): Promise<Server> {
  const page = `<!doctype html><title>cuts</title><link rel="icon" href="data:,"><script type="module">
    import { Traffic } from '/test/campaigns/traffic.js'
    const { url, seed } = Object.fromEntries(new URLSearchParams(location.search))
    globalThis.traffic = new Traffic({ url, seed: Number(seed) }, WebSocket)
  </script>`
  const server = createServer(async (request, response) => {
    const { pathname } = new URL(request.url!, 'http://localhost')
    if (pathname === '/') return void response.setHeader('content-type', 'text/html').end(page)
    try {
      const text = await readFile(join(root, 'dist', normalize(pathname)))
      response.setHeader('content-type', 'text/javascript').end(text)
    } catch {
      response.writeHead(404).end()
    }
  })
  await once(server.listen(0, '127.0.0.1'), 'listening')
  return server
}

// The gateway.

/** Errors that Fastify logs for REST calls that a cut fails. */
const expectedErrors = new Set<string>(Object.values(reasons).filter(({ status }) => status >= 500).map(({ message }) => message))
/** Short, so that idle connections of REST callers are closed before connections are counted. */
const KEEP_ALIVE_MS = 1_000

async function prepare ({ folder, origins }: { folder: string, origins: string[] }): Promise<HostedApp> {
  const errors: string[] = []
  const open = async () => await gateway(errors, folder, origins)
  let app = await open()
  const first = app
  const session = (deviceId = 'd') => app.devices.get(deviceId) as Session | undefined
  const commands = {
    has: (deviceId?: string) => session(deviceId) !== undefined,
    waiting: async () => (await app.devices.describe('d')).waiting,
    topics: () => [...session()?.topics ?? []],
    broadcast: ({ topic, n }: { topic: string, n: string }) => app.devices.broadcast({ n }, { topic }),
    end: ({ deviceId, closeReason, reason }: { deviceId: string, closeReason: CloseReason, reason?: string }) => session(deviceId)?.end(closeReason, reason),
    async held () {
      const connections = await new Promise(resolve => app.server.getConnections((_error, count) => resolve(count)))
      return { sessions: app.devices.size, topics: session()?.topics.size, inFlight: session()?.peer.inFlight, connections }
    },
    async restart () {
      const { port } = app.server.address() as AddressInfo
      await app.close()
      app = await open()
      await app.listen({ port, host: '127.0.0.1' })
    },
    errors: () => countByName(errors.filter(words => !expectedErrors.has(words))),
    close: () => app.close()
  }
  return { app: first, commands }
}

async function gateway (errors: string[], folder: string, origins: string[]): Promise<FastifyInstance> {
  const app = quietApp(errors)
  await app.register(devices, {
    mailbox: await diskMailbox({ path: folder }),
    origins,
    rate: 1_000_000,
    burst: 1_000_000,
    attempts: 1_000_000,
    pingInterval: 250,
    pongTimeout: 250,
    closeTimeout: 200,
    drainTimeout: 600,
    retrySpread: 50
  })
  app.server.keepAliveTimeout = KEEP_ALIVE_MS
  app.devices.handle('echo', async params => {
    await sleep(1)
    return params
  })
  app.devices.handle('never', () => new Promise(() => {}))
  app.devices.handle('note', () => {})
  return app
}

await command(import.meta.url, { cuts: 200, seed: SEED }, async size => {
  const node = await cutsInNode(size)
  const path = programAt('chromium')
  if (!path) return { line: `${node.line}\ncuts (chromium): this machine has none`, wrong: node.wrong }
  const chromium = await cutsInChromium(size, path)
  return { line: `${node.line}\n${chromium.line}`, wrong: [...node.wrong, ...chromium.wrong] }
}, prepare)
