import { readFileSync } from 'node:fs'
import { join } from 'node:path'
import { jetstreamManager } from '@nats-io/jetstream'
import { connect } from '@nats-io/transport-node'
import { programOf, type EngineAccess } from './engine.ts'
import { LossWindows } from './loss-windows.ts'
import { Network } from './namespaces.ts'
import { NatsServer } from './nats.ts'
import { oneOf, SERVERS, serversOf, type PartitionEngine } from './partition-engine.ts'

const [CLIENTS, ROUTES, MONITOR] = [4222, 6222, 8222]
const STREAMS = ['KV_devices_devices', 'KV_devices_entries', 'devices_letters']
const SIMULTANEOUS_MS = 1_000
const HEALTH_TIMEOUT_MS = 2_000

const RESET = /^\[\d+\] (\S+) (\S+) .*Resetting stream cluster state for '\S+ > (\S+)'/gm

/** A cluster of three NATS servers. */
export class PartitionNats implements PartitionEngine {
  readonly title = 'NATS'
  readonly #network: Network
  readonly #logs: string
  readonly #servers = new Map<string, NatsServer>()

  private constructor (network: Network, logs: string) {
    this.#network = network
    this.#logs = logs
  }

  static async start (network: Network, logs: string): Promise<PartitionNats> {
    const engine = new PartitionNats(network, logs)
    await Promise.all(SERVERS.map(name => engine.#install(name)))
    return engine
  }

  server (name: string): NatsServer {
    return this.#servers.get(name)!
  }

  access (node: string): EngineAccess {
    return { engine: 'nats', options: { servers: serversOf(node).map(name => this.server(name).servers), replicas: 3, noRandomize: true } }
  }

  async serverOf (node: string): Promise<string> {
    return serversOf(node)[0]!
  }

  async pick (random: () => number): Promise<string> {
    return oneOf(SERVERS, random)
  }

  async unhealthy (): Promise<string[]> {
    const answers = await Promise.all(SERVERS.map(async name => {
      try {
        const response = await fetch(`http://${this.#network.address(name)}:${MONITOR}/healthz`, { signal: AbortSignal.timeout(HEALTH_TIMEOUT_MS) })
        return response.ok ? [] : [`${name}: ${await response.text()}`]
      } catch (error) {
        return [`${name}: ${String(error)}`]
      }
    }))
    return answers.flat()
  }

  async leftOver (): Promise<string[]> {
    const connection = await connect({ servers: this.server('s1').servers })
    try {
      const messages: Record<string, number> = {}
      let consumers = 0
      for await (const { config, state } of (await jetstreamManager(connection)).streams.list()) {
        messages[config.name] = state.messages
        consumers += state.consumer_count
      }
      return [
        ...STREAMS.filter(stream => messages[stream] !== 0).map(stream => `${messages[stream]} messages left in ${stream}`),
        ...(consumers === 0 ? [] : [`${consumers} consumers left`])
      ]
    } finally {
      await connection.close()
    }
  }

  /** A server that lags behind may fetch a stream anew. If all do so at the same time, an erase by this project was the cause. */
  wrong (): string[] {
    return [...this.#resets()].flatMap(([stream, servers]) => {
      const [first = [], ...others] = [...servers.values()]
      const isCommon = (time: number) => others.every(times => times.some(other => Math.abs(other - time) < SIMULTANEOUS_MS))
      return servers.size === SERVERS.length && first.some(isCommon) ? [`all NATS servers gave up ${stream} at once`] : []
    })
  }

  figures (): string {
    const all = [...this.#resets()].flatMap(([stream, servers]) => [...servers].map(([server, times]) => `${stream} on ${server} ${times.length} times`))
    return all.length === 0 ? 'NATS gave up no stream' : `NATS gave up ${all.join(', ')}`
  }

  losses (): LossWindows {
    return new LossWindows()
  }

  async remove (): Promise<void> {
    await Promise.all([...this.#servers.values()].map(server => server.remove()))
  }

  async #install (name: string): Promise<void> {
    const place = { address: this.#network.address(name), port: CLIENTS, under: Network.on(name) }
    const args = [
      '-n', name, '-m', String(MONITOR), '-l', join(this.#logs, `${name}.log`),
      '--cluster_name', 'partition', '--cluster', `nats://${place.address}:${ROUTES}`,
      '--routes', SERVERS.map(server => `nats://${this.#network.address(server)}:${ROUTES}`).join(',')
    ]
    this.#servers.set(name, await NatsServer.start(programOf('nats-server'), args, place))
  }

  /** When each server reset a stream and fetched it anew, in Unix milliseconds, by stream and server. */
  #resets (): Map<string, Map<string, number[]>> {
    const times = new Map<string, Map<string, number[]>>()
    for (const name of SERVERS) {
      for (const [, day, time, stream = ''] of readFileSync(join(this.#logs, `${name}.log`), 'utf8').matchAll(RESET)) {
        const servers = times.get(stream) ?? new Map<string, number[]>()
        times.set(stream, servers.set(name, [...servers.get(name) ?? [], Date.parse(`${day!.replaceAll('/', '-')}T${time}Z`)]))
      }
    }
    return times
  }
}
