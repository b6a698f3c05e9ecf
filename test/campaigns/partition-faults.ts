import { setTimeout as sleep } from 'node:timers/promises'
import { NODES, SERVERS, type Site } from './partition-site.ts'

/** A fault in progress; `end` repairs it. */
export interface Fault {
  what: string
  end: () => Promise<void>
}

type Begin = (site: Site, random: () => number) => Promise<Fault>

const MIN_FAULT_MS = 2_000
const [MIN_LOSS_PERCENT, MAX_LOSS_PERCENT] = [10, 40]

/** Every kind of fault, by its name. */
export const kinds: Record<string, Begin> = {
  /** A node loses all NATS servers. */
  'node-nats': async (site, random) => {
    const node = oneOf(NODES, random)
    return cut(site, `${node} cut from NATS`, both([node], SERVERS))
  },
  /** A node loses its own NATS server, and may use another. */
  'node-server': async (site, random) => {
    const node = oneOf(NODES, random)
    const server = SERVERS[NODES.indexOf(node)]!
    return cut(site, `${node} cut from ${server}`, both([node], [server]))
  },
  /** A NATS server loses the other servers; each node keeps its own server. */
  split: async (site, random) => {
    const server = oneOf(SERVERS, random)
    return cut(site, `${server} cut from the other NATS servers`, both([server], others(server)))
  },
  'one-way': async (site, random) => {
    const [one, rest] = random() < 0.5 ? (node => [node, SERVERS] as const)(oneOf(NODES, random)) : (server => [server, others(server)] as const)(oneOf(SERVERS, random))
    const outward = random() < 0.5
    const pairs = both([one], rest).filter(([from]) => (from === one) === outward)
    return cut(site, `nothing ${outward ? 'from' : 'to'} ${one} ${outward ? 'to' : 'from'} ${rest.join(', ')}`, pairs)
  },
  loss: async (site, random) => {
    const percent = Math.round(MIN_LOSS_PERCENT + random() * (MAX_LOSS_PERCENT - MIN_LOSS_PERCENT))
    const [one, rest] = random() < 0.5 ? (node => [node, SERVERS] as const)(oneOf(NODES, random)) : (server => [server, others(server)] as const)(oneOf(SERVERS, random))
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
  'kill-nats': async (site, random) => {
    const name = oneOf(SERVERS, random)
    await site.server(name).stop('SIGKILL')
    return { what: `${name} killed`, end: async () => await site.server(name).start() }
  },
  'pause-nats': async (site, random) => {
    const name = oneOf(SERVERS, random)
    await site.server(name).hold()
    return { what: `${name} paused`, end: async () => site.server(name).release() }
  },
  /** All NATS servers stop and start. */
  outage: async (site, random) => {
    const signal = random() < 0.5 ? 'SIGTERM' : 'SIGKILL'
    await Promise.all(SERVERS.map(name => site.server(name).stop(signal)))
    return { what: `NATS down after ${signal}`, end: async () => { await Promise.all(SERVERS.map(name => site.server(name).start())) } }
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

/** Causes a fault, waits for up to `longest` milliseconds, and repairs it; resolves with its description. */
export async function inflict (kind: string, site: Site, longest: number, random: () => number): Promise<string> {
  const began = performance.now()
  const { what, end } = await kinds[kind]!(site, random)
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

function oneOf (names: string[], random: () => number): string {
  return names[Math.floor(random() * names.length)]!
}
