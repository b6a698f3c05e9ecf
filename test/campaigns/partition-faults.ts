import { setTimeout as sleep } from 'node:timers/promises'
import { NODES, oneOf, SERVERS } from './partition-engine.ts'
import type { Site } from './partition-site.ts'

/** A fault in progress; `end` repairs it. */
export interface Fault {
  what: string
  end: () => Promise<void>
}

type Begin = (site: Site, random: () => number) => Promise<Fault>

const MIN_FAULT_MS = 2_000
const [MIN_LOSS_PERCENT, MAX_LOSS_PERCENT] = [10, 40]

/** The kinds of faults of any engine, by name. */
const kinds: Record<string, Begin> = {
  /** A node loses all servers. */
  'node-engine': async (site, random) => {
    const node = oneOf(NODES, random)
    return cut(site, `${node} cut from ${site.engine.title}`, both([node], SERVERS))
  },
  /** A node loses the server that it uses. */
  'node-server': async (site, random) => {
    const node = oneOf(NODES, random)
    const server = await site.engine.serverOf(node)
    return cut(site, `${node} cut from ${server}`, both([node], [server]))
  },
  /** A server loses the other servers, and no node. */
  split: async (site, random) => {
    const server = await site.engine.pick(random)
    return cut(site, `${server} cut from the other servers`, both([server], others(server)))
  },
  'one-way': async (site, random) => {
    const [one, rest] = await oneAndServers(site, random)
    const outward = random() < 0.5
    const pairs = both([one], rest).filter(([from]) => (from === one) === outward)
    return cut(site, `nothing ${outward ? 'from' : 'to'} ${one} ${outward ? 'to' : 'from'} ${rest.join(', ')}`, pairs)
  },
  loss: async (site, random) => {
    const percent = Math.round(MIN_LOSS_PERCENT + random() * (MAX_LOSS_PERCENT - MIN_LOSS_PERCENT))
    const [one, rest] = await oneAndServers(site, random)
    return cut(site, `${percent} % lost between ${one} and ${rest.join(', ')}`, both([one], rest), percent)
  },
  'kill-node': async (site, random) => {
    const node = oneOf(NODES, random)
    await site.killNode(node)
    return { what: `${node} killed`, end: async () => await site.startNode(node) }
  },
  'pause-node': async (site, random) => {
    const node = oneOf(NODES, random)
    site.pauseNode(node)
    return { what: `${node} paused`, end: async () => site.resumeNode(node) }
  },
  'kill-server': async (site, random) => {
    const name = await site.engine.pick(random)
    await site.engine.server(name).stop('SIGKILL')
    return { what: `${name} killed`, end: async () => await site.engine.server(name).start() }
  },
  'pause-server': async (site, random) => {
    const name = await site.engine.pick(random)
    await site.engine.server(name).hold()
    return { what: `${name} paused`, end: async () => site.engine.server(name).release() }
  },
  /** All servers stop and start. */
  outage: async (site, random) => {
    const signal = random() < 0.5 ? 'SIGTERM' : 'SIGKILL'
    await Promise.all(SERVERS.map(name => site.engine.server(name).stop(signal)))
    return { what: `${site.engine.title} down after ${signal}`, end: async () => { await Promise.all(SERVERS.map(name => site.engine.server(name).start())) } }
  },
  /** The nodes are closed and restarted, one after the other. */
  deploy: async site => {
    for (const node of NODES) {
      await site.stopNode(node)
      await site.startNode(node)
    }
    return { what: 'rolling deploy', end: async () => {} }
  }
}

/** The kinds of faults of an engine with a master. */
const masterKinds: Record<string, Begin> = {
  failover: async site => {
    const master = await site.engine.serverOf(NODES[0]!)
    await site.engine.failover!()
    return { what: `a replica takes over from ${master}`, end: async () => {} }
  }
}

/** The names of the kinds of faults that an engine can have. */
export function kindsOf (engine: string): string[] {
  return Object.keys(engine === 'redis' ? { ...kinds, ...masterKinds } : kinds)
}

/** Causes a fault, waits for up to `longest` milliseconds, and repairs it; resolves with its description. */
export async function inflict (kind: string, site: Site, longest: number, random: () => number): Promise<string> {
  const began = performance.now()
  const { what, end } = await (kinds[kind] ?? masterKinds[kind])!(site, random)
  if (kind !== 'deploy') await sleep(MIN_FAULT_MS + random() * (longest - MIN_FAULT_MS))
  await end()
  return `${kind}: ${what} for ${((performance.now() - began) / 1_000).toFixed(1)} s`
}

/** A random sequence of kinds; every kind occurs before any repeats. */
export function sequence (count: number, among: string[], random: () => number): string[] {
  const chosen: string[] = []
  while (chosen.length < count) {
    const left = [...among]
    while (left.length > 0) chosen.push(...left.splice(Math.floor(random() * left.length), 1))
  }
  return chosen.slice(0, count)
}

async function cut (site: Site, what: string, pairs: Array<[from: string, to: string]>, percent?: number): Promise<Fault> {
  for (const [from, to] of pairs) site.network.drop(from, to, percent)
  return { what, end: async () => site.network.heal() }
}

function both (some: readonly string[], rest: readonly string[]): Array<[string, string]> {
  return some.flatMap(one => rest.flatMap((other): Array<[string, string]> => [[one, other], [other, one]]))
}

function others (server: string): string[] {
  return SERVERS.filter(name => name !== server)
}

/** A node and all servers, or a server and the others. */
async function oneAndServers (site: Site, random: () => number): Promise<[one: string, servers: string[]]> {
  if (random() < 0.5) return [oneOf(NODES, random), SERVERS]
  const server = await site.engine.pick(random)
  return [server, others(server)]
}
