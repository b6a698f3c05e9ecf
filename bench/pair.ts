import type { Candidate } from './candidates.ts'
import { Child } from './child.ts'
import type { Fanout, LoadSettings, Measured, Rest } from './load.ts'
import type { Usage } from './meter.ts'
import type { Server } from './server.ts'

/** A server and its load generator, each in a process of its own. */
export class Pair {
  readonly candidate: Candidate
  readonly server: Server
  readonly #load: Child

  private constructor (candidate: Candidate, server: Server, load: Child) {
    this.candidate = candidate
    this.server = server
    this.#load = load
  }

  static async open (candidate: Candidate): Promise<Pair> {
    const server = await candidate.start()
    const settings: LoadSettings = { dialect: candidate.dialect, port: server.port, otherPort: server.otherPort, server: { pids: server.pids, broker: server.broker } }
    return new Pair(candidate, server, await Child.start(new URL('./load.js', import.meta.url), settings))
  }

  /** Connects devices; the topics are assigned in turn. */
  connect (count: number, topics?: string[]): Promise<Usage> {
    return this.#load.ask('connect', { count, topics })
  }

  fanout (fanout: Fanout): Promise<Measured> {
    return this.#load.ask('fanout', fanout)
  }

  rest (rest: Rest): Promise<Measured> {
    return this.#load.ask('rest', rest)
  }

  echo (echo: { width: number, seconds: number, size: number }): Promise<Measured> {
    return this.#load.ask('echo', echo)
  }

  stall (count: number): Promise<void> {
    return this.#load.ask('stall', { count })
  }

  async close (): Promise<void> {
    await this.#load.end()
    await this.server.end()
  }
}
