import { mkdtemp, rm } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import { Agreement } from './agreement.ts'
import { command, settled, Verdict, type Outcome } from './campaign.ts'
import { prepareNode } from './cluster.ts'
import { programOf } from './engine.ts'
import { Host } from './host.ts'
import { LetterDevice, LetterFlow } from './letter-flow.ts'
import { describeLosses } from './letter-tally.ts'
import { freePort } from './port.ts'
import { SentinelGroup, type GroupPlace } from './sentinel.ts'
import type { ServerHost } from './server-process.ts'

interface Size extends Record<string, number> {
  devices: number
  /** How often a Sentinel is asked to replace the master. */
  failovers: number
  /** How often the master is killed. */
  kills: number
  /** Milliseconds, from when the new master is known, within which no node uses the old one, each device has one owner, and every node accepts letters. */
  within: number
}

const NODES = ['n1', 'n2']
/** The third place has a Sentinel only. */
const SERVERS = ['s1', 's2']
const SENTINELS = [...SERVERS, 's3']
/** The only replica is the new master, so that a master must accept writes without one. */
const MIN_REPLICAS = 0
const FLOW_MS = 1_000
const POLL_INTERVAL_MS = 50
const TIMEOUT_MS = 60_000

/** The master of Redis is replaced while letters flow: devices keep their connections and their owners, and generations never fall. */
export async function failover ({ devices: count, failovers, kills, within }: Size): Promise<Outcome> {
  const verdict = new Verdict()
  const logs = await mkdtemp(join(tmpdir(), 'failover-'))
  const group = await SentinelGroup.start(programOf('redis-server'), await places(logs), { minReplicas: MIN_REPLICAS })
  const hosts = new Map<string, Host>()
  for (const name of NODES) hosts.set(name, await Host.start(import.meta.url, { name, access: { engine: 'redis', options: group.options() } }))
  const urls = [...hosts.values()].map(({ url }) => url)
  const devices = Array.from({ length: count }, (_, at) => new LetterDevice(`device-${at}`, urls[at % urls.length]!))
  try {
    const agreement = new Agreement(() => hosts, count)
    await agreement.settled(performance.now())
    let disconnections = 0
    for (const { client } of devices) client.on('status', ({ state }) => { if (state !== 'connected') disconnections++ })
    const flow = new LetterFlow(devices, () => urls)
    const slowest: Record<string, { known: number, moved: number, owned: number, accepting: number }> = {}
    const faults = [...Array.from({ length: failovers }, () => 'failover'), ...Array.from({ length: kills }, () => 'kill')]
    for (const kind of faults) {
      await sleep(FLOW_MS)
      const began = performance.now()
      const old = await replaceMaster(group, kind)
      const known = performance.now()
      const [moved, owned, accepting] = await Promise.all([left(group, old, known), agreement.settled(known), accepted(urls, devices, known)])
      verdict.within(`milliseconds until no node uses the old master after a ${kind}`, moved, within)
      verdict.within(`milliseconds until each device has one owner after a ${kind}`, owned, within)
      verdict.within(`milliseconds until every node accepts letters after a ${kind}`, accepting, within)
      const before = slowest[kind] ?? { known: 0, moved: 0, owned: 0, accepting: 0 }
      slowest[kind] = { known: longest(before.known, known - began), moved: longest(before.moved, moved), owned: longest(before.owned, owned), accepting: longest(before.accepting, accepting) }
      if (kind === 'kill') await group.server(old).start()
      verdict.same(`what is missing after a ${kind}`, await settled(() => group.unhealthy(), [], TIMEOUT_MS), [])
    }
    await flow.stop()
    const { lost, twice, unexpected, outOfOrder, ...tally } = await flow.tally(() => group.losses())
    await agreement.settled(performance.now())
    verdict.same('letters that no node accepted', flow.refused, 0)
    verdict.same('what must not be', { lost, twice, unexpected, outOfOrder }, { lost: 0, twice: 0, unexpected: 0, outOfOrder: 0 })
    verdict.same('devices that lost their connection', disconnections, 0)
    verdict.same('devices whose generation fell', [...agreement.fallen], [])
    verdict.same('failovers', group.failovers().length, faults.length)
    verdict.same('uncaught errors', [...hosts.values()].flatMap(({ faults }) => faults), [])
    return {
      line: `failover: ${NODES.length} nodes, ${count} devices, ${failovers} failovers of Redis and ${kills} kills of its master; milliseconds at most until the new master is known, and from then until the nodes have ` +
        `left the old one, each device has one owner, and every node accepts letters ${JSON.stringify(slowest)}; ${tally.acknowledged} letters acknowledged to their senders, ${tally.seen} seen, lost ${lost}, twice ${twice}, ` +
        `unexpected ${unexpected}, out of order ${outOfOrder}${describeLosses(tally)}; ${disconnections} devices lost their connection`,
      wrong: verdict.wrong
    }
  } finally {
    for (const { client } of devices) client.close()
    for (const host of hosts.values()) await host.kill()
    await group.remove()
    await rm(logs, { recursive: true, force: true })
  }
}

async function places (logs: string): Promise<GroupPlace[]> {
  return await Promise.all(SENTINELS.map(async name => {
    const place: GroupPlace = { name, logs, sentinel: await freePlace() }
    if (SERVERS.includes(name)) place.server = await freePlace()
    return place
  }))
}

async function freePlace (): Promise<ServerHost> {
  return { address: '127.0.0.1', port: await freePort(), under: [] }
}

/** Resolves with the old master once the Sentinels know the new one. */
async function replaceMaster (group: SentinelGroup, kind: string): Promise<string> {
  const old = (await group.master())!
  if (kind === 'kill') await group.server(old).stop('SIGKILL')
  else await group.failover()
  for (const until = performance.now() + TIMEOUT_MS; performance.now() < until; await sleep(POLL_INTERVAL_MS)) {
    const master = await group.master()
    if (master !== undefined && master !== old) return old
  }
  throw new Error(`${old} is still the master after a ${kind}`)
}

/** Milliseconds from `began` until no node is connected to a server. */
async function left (group: SentinelGroup, server: string, began: number): Promise<number> {
  await settled(() => group.connections(server), 0, TIMEOUT_MS)
  return performance.now() - began
}

/** Milliseconds from `began` until every node accepts a letter. */
async function accepted (urls: string[], devices: LetterDevice[], began: number): Promise<number> {
  const accepts = async () => (await Promise.all(urls.map(url => accept(url, devices[0]!)))).every(ok => ok)
  await settled(accepts, true, TIMEOUT_MS)
  return performance.now() - began
}

/** Whether a node accepts a letter. Its content is no number, so it is not counted as one of the flow. */
async function accept (url: string, { id }: LetterDevice): Promise<boolean> {
  try {
    const response = await fetch(`${url}/devices/${id}/messages?ttl=60`, {
      method: 'POST', body: '{"probe":true}', headers: { 'content-type': 'application/json' }, signal: AbortSignal.timeout(1_000)
    })
    await response.arrayBuffer()
    return response.ok
  } catch {
    return false
  }
}

function longest (one: number, other: number): number {
  return Math.max(one, Math.round(other))
}

await command(import.meta.url, { devices: 100, failovers: 5, kills: 5, within: 2_000 }, failover, prepareNode)
