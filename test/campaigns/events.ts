import { setTimeout as sleep } from 'node:timers/promises'
import devices from '../../lib/index.ts'
import { EventReader, type ReceivedEvent } from '../event-reader.ts'
import { programAt } from '../programs.ts'
import { connect, until } from '../support.ts'
import { command, seededRandom, Verdict, type Outcome } from './campaign.ts'
import { openEngine, type EngineAccess } from './engine.ts'
import { Host, quietApp, type HostedApp } from './host.ts'
import { NatsServer } from './nats.ts'
import { Proxy } from './proxy.ts'

interface Size extends Record<string, number> {
  cuts: number
  /** With more than one, they are joined by NATS, and some of the cuts are of a node from NATS. */
  nodes: number
  seed: number
}

const READERS_PER_NODE = 2
const LANES_PER_NODE = 4
const MAX_MESSAGES = 5
const MAX_PAUSE_MS = 100
/** The share of cuts that separate a node from NATS, where there is more than one. */
const NATS_SHARE = 0.15
const SYNTHETIC_REASON = 'its node is gone or was cut off'

/** Readers of `GET /events` are cut, and nodes from NATS: a reader misses no event without a gap in its place, gets none twice, and each node's in order. */
export async function events ({ cuts, nodes: count, seed }: Size): Promise<Outcome> {
  const verdict = new Verdict()
  const random = seededRandom(seed)
  const server = count > 1 ? await NatsServer.start(programAt('nats-server')!) : undefined
  const nodes = await Promise.all(Array.from({ length: count }, (_, at) => Node.start(`n${at}`, server)))
  let readers: CutReader[] = []
  try {
    readers = await Promise.all(nodes.flatMap(({ host }) => Array.from({ length: READERS_PER_NODE }, () => CutReader.start(host.url))))
    await seenByAll('start', nodes, readers)
    const lanes = nodes.flatMap(({ host, name }) => Array.from({ length: LANES_PER_NODE }, (_, at) => new Lane(host.url, `${name}-lane${at}`, random)))
    const made: Record<string, number> = {}
    const began = Date.now()
    for (let cut = 0; cut < cuts; cut++) {
      await sleep(random() * MAX_PAUSE_MS)
      const node = nodes[Math.floor(random() * nodes.length)]!
      const isOfNats = count > 1 && random() < NATS_SHARE
      const kind = isOfNats ? await node.cut() : await readers[Math.floor(random() * readers.length)]!.cut(random)
      made[kind] = (made[kind] ?? 0) + 1
    }
    const took = Date.now() - began
    await Promise.all(lanes.map(lane => lane.stop()))
    await seenByAll('end', nodes, readers)
    const missing = readers.map(reader => judge(verdict, reader, lanes))
    const gaps = countBy(readers.flatMap(({ seen }) => seen.filter(({ type }) => type === 'gap').map(({ data }) => data.reason)))
    if (count === 1) verdict.same('gaps, though the buffer holds all', gaps, {})
    for (const { name, host } of nodes) verdict.same(`uncaught errors of ${name}`, host.faults, [])
    const did = lanes.reduce((sum, { expected }) => sum + expected.length, 0)
    return {
      line: `events: ${count} node(s), ${cuts} cuts in ${took} ms (seed ${seed}): ${JSON.stringify(made)}; ${readers.length} readers, ${readers.reduce((sum, { connections }) => sum + connections, 0)} connections; ` +
        `${did} events, of which the readers missed ${missing.join(', ')}, all in the place of a gap; gaps ${JSON.stringify(gaps)}`,
      wrong: verdict.wrong
    }
  } finally {
    await Promise.all(readers.map(reader => reader.stop()))
    await Promise.all(nodes.map(node => node.stop()))
    await server?.remove()
  }
}

/** A node, and its connection to NATS. */
class Node {
  readonly name: string
  readonly host: Host
  readonly #nats: Proxy | undefined

  private constructor (name: string, host: Host, nats: Proxy | undefined) {
    this.name = name
    this.host = host
    this.#nats = nats
  }

  static async start (name: string, server: NatsServer | undefined): Promise<Node> {
    const nats = server && await Proxy.start(server.port)
    return new Node(name, await Host.start(import.meta.url, { node: name, ...(nats && { access: { engine: 'nats', options: { servers: new URL(nats.url).host } } }) } satisfies Settings), nats)
  }

  async cut (): Promise<string> {
    this.#nats!.reset()
    return 'a node from NATS'
  }

  async stop (): Promise<void> {
    await this.host.kill()
    await this.#nats?.stop()
  }
}

/** A reader that comes back with the last id that it has. */
class CutReader {
  readonly seen: ReceivedEvent[] = []
  connections = 0
  readonly #proxy: Proxy
  #reader: EventReader | undefined
  #lastId: string | undefined
  #isRunning = true

  private constructor (proxy: Proxy) {
    this.#proxy = proxy
  }

  static async start (url: string): Promise<CutReader> {
    const reader = new CutReader(await Proxy.start(Number(new URL(url).port)))
    void reader.#follow()
    await until(() => reader.#reader?.lastId !== undefined)
    return reader
  }

  async cut (random: () => number): Promise<string> {
    const kind = random()
    if (kind < 0.4) {
      this.#proxy.reset()
      return 'reset'
    }
    if (kind < 0.8) {
      this.#proxy.finish()
      return 'fin'
    }
    this.#proxy.blackhole()
    await sleep(random() * MAX_PAUSE_MS)
    this.#reader?.cut()
    this.#proxy.resetBlackholed()
    return 'silence'
  }

  has (matches: (event: ReceivedEvent) => boolean): boolean {
    return this.seen.some(matches) || this.#reader?.events.some(matches) === true
  }

  async stop (): Promise<void> {
    this.#isRunning = false
    this.#reader?.cut()
    await this.#proxy.stop()
  }

  async #follow (): Promise<void> {
    while (this.#isRunning) {
      try {
        const reader = await EventReader.open(this.#proxy, { after: this.#lastId })
        this.connections++
        this.#reader = reader
        await reader.ended
        this.seen.push(...reader.events.splice(0))
        this.#lastId = reader.lastId ?? this.#lastId
      } catch { // it was cut before the response
        await sleep(5)
      }
    }
  }

  /** Moves what the open connection has received to `seen`. */
  collect (): void {
    this.seen.push(...this.#reader!.events.splice(0))
  }
}

/** One device after another connects, sends some messages and disconnects. */
class Lane {
  /** The keys of the events that this must cause, in order. */
  readonly expected: string[] = []
  readonly #done: Promise<void>
  #isRunning = true
  #sessions = 0

  constructor (url: string, name: string, random: () => number) {
    this.#done = this.#run(url, name, random)
  }

  async stop (): Promise<void> {
    this.#isRunning = false
    await this.#done
  }

  async #run (url: string, name: string, random: () => number): Promise<void> {
    while (this.#isRunning) {
      const deviceId = `${name}.${this.#sessions++}`
      const device = await connect(url, deviceId)
      this.expected.push(keyOf({ type: 'connected', deviceId }))
      for (let left = Math.floor(random() * (MAX_MESSAGES + 1)), n = 0; left > 0; left--, n++) {
        device.notify('message', { data: n })
        this.expected.push(keyOf({ type: 'message', deviceId, data: { message: n } }))
        if (random() < 0.5) await device.ask('ping')
      }
      await device.ask('ping')
      await device.close()
      this.expected.push(keyOf({ type: 'disconnected', deviceId }))
      await sleep(random() * MAX_PAUSE_MS / 4)
    }
  }
}

function keyOf ({ type, deviceId, data }: { type: string, deviceId: string, data?: any }): string {
  return type === 'message' ? `message ${data.message} of ${deviceId}` : `${type} of ${deviceId}`
}

/** Repeats a marker on each node until each reader has seen it. */
async function seenByAll (marker: string, nodes: Node[], readers: CutReader[]): Promise<void> {
  for (const { host, name } of nodes) {
    const device = await connect(host.url, `${marker}-${name}`)
    await until(async () => {
      device.notify('message', { data: marker })
      await device.ask('ping')
      await sleep(20)
      return readers.every(reader => reader.has(({ deviceId, data }) => deviceId === `${marker}-${name}` && data.message === marker))
    })
  }
  for (const reader of readers) reader.collect()
}

/** Returns how many events the reader missed. */
function judge (verdict: Verdict, { seen }: CutReader, lanes: Lane[]): number {
  const ids = new Set(seen.map(({ id }) => id))
  verdict.same('events that a reader got twice', seen.length - ids.size, 0)
  const gaps = seen.flatMap(({ type }, at) => type === 'gap' ? [at] : [])
  const isGapBetween = (from: number, to: number) => gaps.some(at => at > from && at < to)
  const places = new Map<string, number | 'late'>()
  for (const [at, event] of seen.entries()) {
    const key = keyOf(event)
    // what is known from the backplane only comes later than what follows it
    const isLate = event.type === 'disconnected' && event.data.reason === SYNTHETIC_REASON
    if (event.type !== 'gap' && !/^(start|end)-/.test(event.deviceId)) verdict.holds(`${key} came twice`, !places.has(key))
    places.set(key, isLate ? 'late' : at)
  }
  let missed = 0
  for (const { expected } of lanes) {
    let last = -1
    let missing: string | undefined
    for (const key of [...expected, undefined]) {
      const place = key === undefined ? seen.length : places.get(key)
      if (place === 'late') continue
      if (place === undefined) {
        missing ??= key
        missed++
        continue
      }
      verdict.holds(`${key} is out of order`, place > last)
      if (missing !== undefined) verdict.holds(`${missing} is missing without a gap`, isGapBetween(last, place))
      missing = undefined
      last = place
    }
  }
  return missed
}

function countBy (names: string[]): Record<string, number> {
  const counts: Record<string, number> = {}
  for (const name of names.toSorted()) counts[name] = (counts[name] ?? 0) + 1
  return counts
}

// One node. Tests of `GET /events` use it too.

export interface Settings {
  node?: string
  /** What joins the node to others. */
  access?: EngineAccess
}

async function prepare ({ node, access }: Settings): Promise<HostedApp> {
  const app = quietApp()
  const connections = () => new Promise<number>(resolve => app.server.getConnections((_error, count) => resolve(count)))
  await app.register(devices, { rate: 1_000_000, burst: 1_000_000, ...(node !== undefined && { node }), ...(access && await openEngine(access)) })
  const commands = {
    connections,
    memory () {
      globalThis.gc!()
      const { heapUsed, external } = process.memoryUsage()
      return heapUsed + external
    }
  }
  return { app, commands }
}

await command(import.meta.url, { cuts: 200, nodes: 2, seed: 5 }, async size => {
  const alone = await events({ ...size, nodes: 1 })
  if (!programAt('nats-server')) return { line: `${alone.line}\nevents: this machine has no nats-server`, wrong: alone.wrong }
  const joined = await events(size)
  return { line: `${alone.line}\n${joined.line}`, wrong: [...alone.wrong, ...joined.wrong] }
}, prepare)
