import { mkdirSync, readFileSync } from 'node:fs'
import { join } from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import { jetstreamManager } from '@nats-io/jetstream'
import { connect } from '@nats-io/transport-node'
import { programAt } from '../programs.ts'
import { settled } from './campaign.ts'
import { Host } from './host.ts'
import { Network } from './namespaces.ts'
import { NatsServer } from './nats.ts'
import type { NodeSettings } from './partition-node.ts'

/** Number of messages in each stream of NATS, and of consumers in all. */
export interface NatsState {
  messages: Record<string, number>
  consumers: number
}

export const SERVERS = ['s1', 's2', 's3']
export const NODES = ['n1', 'n2', 'n3']
const PORT = 3_000
const [CLIENTS, ROUTES, MONITOR] = [4222, 6222, 8222]
/** A server that lags behind may never catch up while much is erased (NATS 2.9); the other two servers are then sufficient. */
const HEALTHY_TIMEOUT_MS = 30_000
/** `drainTimeout`, and tolerance for a busy machine. */
const LEAVE_TIMEOUT_MS = 10_000
const POLL_INTERVAL_MS = 200
const WARN_LEVEL = 40

const RESET = /^\[\d+\] (\S+) (\S+) .*Resetting stream cluster state for '\S+ > (\S+)'/gm

/** Three NATS servers and three nodes, each in a network namespace of its own. */
export class Site {
  readonly network = new Network([...SERVERS, ...NODES])
  readonly wrong: string[] = []
  readonly #logs: string
  readonly #servers = new Map<string, NatsServer>()
  readonly #nodes = new Map<string, Host>()
  readonly #faults: string[][] = []
  /** Intervals in which a node was paused, dead or leaving. */
  readonly #disturbed = new Map<string, Array<[from: number, to: number]>>(NODES.map(name => [name, []]))

  private constructor (logs: string) {
    this.#logs = logs
    mkdirSync(logs, { recursive: true })
  }

  static async build (logs: string): Promise<Site> {
    const site = new Site(logs)
    await Promise.all(SERVERS.map(name => site.#install(name)))
    await site.healthy()
    for (const name of NODES) await site.startNode(name)
    return site
  }

  url (node: string): string {
    return `http://${this.network.address(node)}:${PORT}`
  }

  server (name: string): NatsServer {
    return this.#servers.get(name)!
  }

  node (name: string): Host {
    return this.#nodes.get(name)!
  }

  async startNode (name: string): Promise<void> {
    const settings: NodeSettings = { name, servers: serversOf(name).map(server => this.server(server).servers), log: join(this.#logs, `${name}.log`) }
    const host = Host.load(new URL('./partition-node.js', import.meta.url).href, Network.on(name))
    await host.begin(settings, PORT, this.network.address(name))
    this.#faults.push(host.faults)
    this.#nodes.set(name, host)
    this.#calm(name)
    void host.ended.then(exit => {
      if (this.#nodes.get(name) !== host) return
      this.#leaving(name)
      this.wrong.push(`${name} ended by itself with ${JSON.stringify(exit)}`)
    })
  }

  async killNode (name: string): Promise<void> {
    await this.#leaving(name).kill()
  }

  /** Closes a node as a deploy does. */
  async stopNode (name: string): Promise<void> {
    const host = this.#leaving(name)
    const exit = await Promise.race([host.stop().catch(String), sleep(LEAVE_TIMEOUT_MS, `nothing within ${LEAVE_TIMEOUT_MS} ms`, { ref: false })])
    if (JSON.stringify(exit) !== '{"code":0,"signal":null}') this.wrong.push(`${name} left with ${JSON.stringify(exit)}`)
    await host.kill()
  }

  pauseNode (name: string): void {
    this.#disturb(name)
    this.node(name).signal('SIGSTOP')
  }

  resumeNode (name: string): void {
    this.node(name).signal('SIGCONT')
    this.#calm(name)
  }

  /** Whether a node could not answer, all the time or for a part of it. */
  isDisturbed (name: string, from: number, to: number): boolean {
    return this.#disturbed.get(name)!.some(([begun, over]) => begun < to && over > from)
  }

  /** Starts the nodes that are not running. */
  async restartNodes (): Promise<void> {
    for (const name of NODES) if (!this.#nodes.has(name)) await this.startNode(name)
  }

  /** Waits, with a timeout, until every NATS server and its streams are healthy; resolves with a description. */
  async healthy (): Promise<string> {
    const began = performance.now()
    const bad = await settled(async () => await this.#unhealthy(), [], HEALTHY_TIMEOUT_MS)
    const after = `after ${((performance.now() - began) / 1_000).toFixed(1)} s`
    return bad.length === 0 ? `NATS well ${after}` : `NATS not well ${after} (${bad.join('; ')})`
  }

  async natsState (): Promise<NatsState> {
    const connection = await connect({ servers: this.server('s1').servers })
    try {
      const holding: NatsState = { messages: {}, consumers: 0 }
      for await (const { config, state } of (await jetstreamManager(connection)).streams.list()) {
        holding.messages[config.name] = state.messages
        holding.consumers += state.consumer_count
      }
      return holding
    } finally {
      await connection.close()
    }
  }

  /** Uncaught errors of the nodes. */
  get faults (): string[] {
    return this.#faults.flat()
  }

  /** Number of each warning and error in the logs of the nodes. */
  logged (): Record<string, number> {
    const counts: Record<string, number> = {}
    for (const line of NODES.flatMap(name => readFileSync(join(this.#logs, `${name}.log`), 'utf8').split('\n'))) {
      if (!line.startsWith('{')) continue
      const { level, msg, err } = JSON.parse(line) as { level: number, msg: string, err?: { message: string } }
      if (level < WARN_LEVEL) continue
      const what = err ? `${msg} (${err.message})` : msg
      counts[what] = (counts[what] ?? 0) + 1
    }
    return counts
  }

  /** When each NATS server reset a stream and fetched it anew, in Unix milliseconds, by stream and server. */
  resets (): Map<string, Map<string, number[]>> {
    const times = new Map<string, Map<string, number[]>>()
    for (const name of SERVERS) {
      for (const [, day, time, stream = ''] of readFileSync(join(this.#logs, `${name}.log`), 'utf8').matchAll(RESET)) {
        const servers = times.get(stream) ?? new Map<string, number[]>()
        times.set(stream, servers.set(name, [...servers.get(name) ?? [], Date.parse(`${day!.replaceAll('/', '-')}T${time}Z`)]))
      }
    }
    return times
  }

  async close (): Promise<void> {
    for (const name of NODES) await this.stopNode(name)
    await Promise.all([...this.#servers.values()].map(server => server.remove()))
  }

  async #install (name: string): Promise<void> {
    const place = { address: this.network.address(name), port: CLIENTS, under: Network.on(name) }
    const args = [
      '-n', name, '-m', String(MONITOR), '-l', join(this.#logs, `${name}.log`),
      '--cluster_name', 'partition', '--cluster', `nats://${place.address}:${ROUTES}`,
      '--routes', SERVERS.map(server => `nats://${this.network.address(server)}:${ROUTES}`).join(',')
    ]
    this.#servers.set(name, await NatsServer.start(programAt('nats-server')!, args, place))
  }

  #leaving (name: string): Host {
    const host = this.node(name)
    this.#nodes.delete(name)
    this.#disturb(name)
    return host
  }

  #disturb (name: string): void {
    this.#disturbed.get(name)!.push([performance.now(), Infinity])
  }

  #calm (name: string): void {
    const last = this.#disturbed.get(name)!.at(-1)
    if (last) last[1] = Math.min(last[1], performance.now())
  }

  async #unhealthy (): Promise<string[]> {
    await sleep(POLL_INTERVAL_MS)
    const answers = await Promise.all(SERVERS.map(async name => {
      try {
        const response = await fetch(`http://${this.network.address(name)}:${MONITOR}/healthz`, { signal: AbortSignal.timeout(2_000) })
        return response.ok ? [] : [`${name}: ${await response.text()}`]
      } catch (error) {
        return [`${name}: ${String(error)}`]
      }
    }))
    return answers.flat()
  }
}

/** All servers, that of the node first. */
function serversOf (node: string): string[] {
  const own = NODES.indexOf(node)
  return SERVERS.map((_, at) => SERVERS[(own + at) % SERVERS.length]!)
}
