import { rmSync } from 'node:fs'
import { join } from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import { NatsServer } from '../test/campaigns/nats.ts'
import { Child } from './child.ts'
import type { Server } from './server.ts'

const NODES = 3
/** Long enough for every node to notice that NATS is down. */
const OUTAGE_MS = 500

/** Three nodes and a nats-server, each in a process of its own. Devices connect to the first node. */
export class Cluster implements Server {
  readonly port: number
  readonly otherPort: number
  readonly #nats: NatsServer
  readonly #nodes: Child[]

  private constructor (nats: NatsServer, nodes: Child[], [port, otherPort]: number[]) {
    this.#nats = nats
    this.#nodes = nodes
    this.port = port!
    this.otherPort = otherPort!
  }

  /** Runs a module on each node. */
  static async start (natsServer: string, module: URL): Promise<Cluster> {
    const nats = await NatsServer.start(natsServer)
    const nodes: Child[] = []
    for (let node = 0; node < NODES; node++) {
      nodes.push(await Child.start(module, { servers: nats.servers }))
    }
    return new Cluster(nats, nodes, await Promise.all(nodes.map(node => node.ask('port'))))
  }

  get pids (): number[] {
    return this.#nodes.map(({ pid }) => pid)
  }

  get broker (): number {
    return this.#nats.pid
  }

  get servers (): string {
    return this.#nats.servers
  }

  /** Restarts NATS, with or without its stored data; resolves once it answers. */
  async restart ({ empty }: { empty: boolean }): Promise<void> {
    await this.#nats.stop()
    if (empty) rmSync(join(this.#nats.folder, 'jetstream'), { recursive: true })
    await sleep(OUTAGE_MS)
    await this.#nats.start()
  }

  async end (): Promise<void> {
    for (const node of this.#nodes) await node.end()
    await this.#nats.remove()
  }
}
