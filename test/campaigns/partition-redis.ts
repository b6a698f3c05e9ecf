import { programOf, type EngineAccess, type EngineServer } from './engine.ts'
import type { LossWindows } from './loss-windows.ts'
import { Network } from './namespaces.ts'
import { oneOf, SERVERS, serversOf, type PartitionEngine } from './partition-engine.ts'
import { SentinelGroup } from './sentinel.ts'

const [SERVER_PORT, SENTINEL_PORT] = [6379, 26379]
/** A master that has lost both replicas refuses writes, because they would be lost. */
const MIN_REPLICAS = 1
/** The highest generation and the position of the last letter; both only grow. */
const COUNTERS = ['devices:generation', 'devices:position']
const NODES_KEY = 'devices:nodes'
/** Faults of the master are the interesting ones, so it is chosen more often than by chance. */
const MASTER_SHARE = 0.5

/** A Redis master with two replicas, and a Sentinel beside each of the three. */
export class PartitionRedis implements PartitionEngine {
  readonly title = 'Redis'
  readonly #group: SentinelGroup

  private constructor (group: SentinelGroup) {
    this.#group = group
  }

  static async start (network: Network, logs: string): Promise<PartitionRedis> {
    const places = SERVERS.map(name => {
      const [address, under] = [network.address(name), Network.on(name)]
      return { name, logs, server: { address, port: SERVER_PORT, under }, sentinel: { address, port: SENTINEL_PORT, under } }
    })
    return new PartitionRedis(await SentinelGroup.start(programOf('redis-server'), places, { minReplicas: MIN_REPLICAS }))
  }

  /** The server and its Sentinel, which share a machine. */
  server (name: string): EngineServer {
    const both = [this.#group.server(name), this.#group.sentinel(name)]
    return {
      start: async () => { for (const one of both) await one.start() },
      stop: async signal => { await Promise.all(both.map(one => one.stop(signal))) },
      hold: async () => { for (const one of both) await one.hold() },
      release: () => { for (const one of both) one.release() }
    }
  }

  access (node: string): EngineAccess {
    return { engine: 'redis', options: this.#group.options(serversOf(node)[0]) }
  }

  async serverOf (): Promise<string> {
    return await this.#group.master() ?? SERVERS[0]!
  }

  async pick (random: () => number): Promise<string> {
    return random() < MASTER_SHARE ? await this.serverOf() : oneOf(SERVERS, random)
  }

  async unhealthy (): Promise<string[]> {
    return await this.#group.unhealthy()
  }

  /** Keys without a time to live: receipts expire. */
  async leftOver (hasNodes: boolean): Promise<string[]> {
    const kept = hasNodes ? [...COUNTERS, NODES_KEY] : COUNTERS
    const keys = (await this.#group.lastingKeys()).filter(key => !kept.includes(key))
    return keys.length === 0 ? [] : [`${keys.length} keys left (${keys.slice(0, 10).join(', ')})`]
  }

  wrong (): string[] {
    return []
  }

  figures (): string {
    return `${this.#group.failovers().length} failovers of Redis`
  }

  losses (): LossWindows {
    return this.#group.losses()
  }

  async failover (): Promise<void> {
    await this.#group.failover()
  }

  async remove (): Promise<void> {
    await this.#group.remove()
  }
}
