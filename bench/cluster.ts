import type { Broker } from './broker.ts'
import { Child } from './child.ts'
import type { Server } from './server.ts'

const NODES = 3

/** Three nodes and the broker between them, each in a process of its own. Devices connect to the first node. */
export class Cluster implements Server {
  readonly port: number
  readonly otherPort: number
  readonly between: Broker
  readonly #nodes: Child[]

  private constructor (between: Broker, nodes: Child[], [port, otherPort]: number[]) {
    this.between = between
    this.#nodes = nodes
    this.port = port!
    this.otherPort = otherPort!
  }

  /** Runs a module on each node. */
  static async start (between: Broker, module: URL): Promise<Cluster> {
    const nodes: Child[] = []
    for (let node = 0; node < NODES; node++) {
      nodes.push(await Child.start(module, between.address))
    }
    return new Cluster(between, nodes, await Promise.all(nodes.map(node => node.ask('port'))))
  }

  get pids (): number[] {
    return this.#nodes.map(({ pid }) => pid)
  }

  get broker (): number {
    return this.between.pid
  }

  async end (): Promise<void> {
    for (const node of this.#nodes) await node.end()
    await this.between.remove()
  }
}
