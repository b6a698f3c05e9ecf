import { mkdirSync, readFileSync } from 'node:fs'
import { join } from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import { settled } from './campaign.ts'
import { Host } from './host.ts'
import { Network } from './namespaces.ts'
import { NODES, SERVERS, type PartitionEngine } from './partition-engine.ts'
import { PartitionNats } from './partition-nats.ts'
import type { NodeSettings } from './partition-node.ts'
import { PartitionRedis } from './partition-redis.ts'

const PORT = 3_000
/** A server that lags behind may never catch up while much is erased (NATS 2.9); the other two servers are then sufficient. */
const HEALTHY_TIMEOUT_MS = 30_000
/** `drainTimeout`, and tolerance for a busy machine. */
const LEAVE_TIMEOUT_MS = 10_000
const POLL_INTERVAL_MS = 200
const WARN_LEVEL = 40

const engines: Record<string, (network: Network, logs: string) => Promise<PartitionEngine>> = {
  nats: (network, logs) => PartitionNats.start(network, logs),
  redis: (network, logs) => PartitionRedis.start(network, logs)
}

/** Three servers of an engine and three nodes, each in a network namespace of its own. */
export class Site {
  readonly network: Network
  readonly engine: PartitionEngine
  readonly wrong: string[] = []
  readonly #logs: string
  readonly #nodes = new Map<string, Host>()
  readonly #faults: string[][] = []
  /** Intervals in which a node was paused, dead or leaving. */
  readonly #disturbed = new Map<string, Array<[from: number, to: number]>>(NODES.map(name => [name, []]))

  private constructor (network: Network, engine: PartitionEngine, logs: string) {
    this.network = network
    this.engine = engine
    this.#logs = logs
  }

  static async build (engine: string, logs: string): Promise<Site> {
    mkdirSync(logs, { recursive: true })
    const network = new Network([...SERVERS, ...NODES])
    const site = new Site(network, await engines[engine]!(network, logs), logs)
    await site.healthy()
    for (const name of NODES) await site.startNode(name)
    return site
  }

  url (node: string): string {
    return `http://${this.network.address(node)}:${PORT}`
  }

  node (name: string): Host {
    return this.#nodes.get(name)!
  }

  async startNode (name: string): Promise<void> {
    const settings: NodeSettings = { name, access: this.engine.access(name), log: join(this.#logs, `${name}.log`) }
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

  /** Waits, with a timeout, until every server is healthy; resolves with a description. */
  async healthy (): Promise<string> {
    const began = performance.now()
    const bad = await settled(async () => await this.#unhealthy(), [], HEALTHY_TIMEOUT_MS)
    const after = `after ${((performance.now() - began) / 1_000).toFixed(1)} s`
    return bad.length === 0 ? `${this.engine.title} well ${after}` : `${this.engine.title} not well ${after} (${bad.join('; ')})`
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

  async close (): Promise<void> {
    for (const name of NODES) await this.stopNode(name)
    this.wrong.push(...await this.engine.leftOver(false))
    await this.engine.remove()
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
    return await this.engine.unhealthy()
  }
}
