import { fork, type ChildProcess } from 'node:child_process'
import { once } from 'node:events'
import type { AddressInfo } from 'node:net'
import { fileURLToPath } from 'node:url'
import Fastify, { type FastifyInstance } from 'fastify'

/** What a host answers to. */
export type Commands = Record<string, (params: any) => unknown>

/** What stands in the process of a host. */
export interface Served {
  app: FastifyInstance
  commands: Commands
}

export type Prepare = (settings: any) => Promise<Served>

export interface Exit {
  code: number | null
  signal: string | null
}

/** A host at rest: what it holds, and what keeps its process alive. */
export interface Rest {
  heap: number
  listeners: number
  /** How many of each kind there are, as `process.getActiveResourcesInfo()` names them: `Timeout` are the timers. */
  resources: Record<string, number>
}

type Word = { url: string } | { fault: string } | { id: number, value?: unknown, error?: string }

const LISTENING = { port: 0, host: '127.0.0.1' }

/** A server in a process of its own, so that its heap, its timers and its end are its own. */
export class Host {
  url = ''
  /** What nobody caught in the process. */
  readonly faults: string[] = []
  readonly ended: Promise<Exit>
  readonly #child: ChildProcess
  readonly #asked = new Map<number, { resolve: (value: any) => void, reject: (error: Error) => void }>()
  #lastId = 0

  private constructor (child: ChildProcess) {
    this.#child = child
    this.ended = once(child, 'exit').then(([code, signal]) => this.#gone({ code, signal }))
    child.on('message', word => this.#heard(word as Word))
  }

  /** Runs a module, whose `command` has a `prepare`, as a host. */
  static async start (module: string, settings: object = {}): Promise<Host> {
    const child = fork(fileURLToPath(module), ['serve', JSON.stringify(settings)], { execArgv: [...process.execArgv, '--expose-gc'] })
    const host = new Host(child)
    await Promise.race([once(child, 'message'), host.ended])
    if (!host.url) throw new Error(`The host did not start: ${host.faults.join('; ')}`)
    return host
  }

  async ask (command: string, params?: unknown): Promise<any> {
    const id = ++this.#lastId
    return await new Promise((resolve, reject) => {
      this.#asked.set(id, { resolve, reject })
      this.#child.send({ id, command, params }, error => { if (error) reject(error) })
    })
  }

  /** Ends the process the hard way, holds it still, or lets it go on. */
  signal (name: 'SIGKILL' | 'SIGSTOP' | 'SIGCONT'): void {
    this.#child.kill(name)
  }

  /** Closes the server; resolves when the process has ended by itself. */
  async stop (): Promise<Exit> {
    await this.ask('close')
    return await this.ended
  }

  #heard (word: Word): void {
    if ('url' in word) this.url = word.url
    else if ('fault' in word) this.faults.push(word.fault)
    else this.#answered(word)
  }

  #answered ({ id, value, error }: { id: number, value?: unknown, error?: string }): void {
    const asked = this.#asked.get(id)!
    this.#asked.delete(id)
    if (error === undefined) asked.resolve(value)
    else asked.reject(new Error(error))
  }

  #gone (exit: Exit): Exit {
    for (const { reject } of this.#asked.values()) reject(new Error(`The host ended with ${exit.code ?? exit.signal}: ${this.faults.join('; ')}`))
    return exit
  }
}

/** An application whose error log counts as faults of the host. */
export function quiet (errors: string[] = []): FastifyInstance {
  const stream = { write: (line: string) => { errors.push(JSON.parse(line).msg) } }
  return Fastify({ routerOptions: { maxParamLength: 128 }, logger: { level: 'error', stream } }) as FastifyInstance
}

/** The other side: what the forked process does. Nothing but the open server keeps it alive. */
export async function serve (prepare: Prepare): Promise<void> {
  for (const event of ['uncaughtException', 'unhandledRejection'] as const) {
    process.on(event, (error: unknown) => { say({ fault: `${event}: ${(error as Error)?.stack ?? String(error)}` }) })
  }
  const { app, commands } = await prepare(JSON.parse(process.argv[3]!))
  await app.listen(LISTENING)
  const known: Commands = { rest: () => rest(app), close: () => app.close(), ...commands }
  process.on('message', ({ id, command, params }: { id: number, command: string, params: unknown }) => {
    void answer(id, async () => await known[command]!(params))
  })
  process.once('disconnect', () => process.exit(1))
  process.channel!.unref()
  say({ url: `http://127.0.0.1:${(app.server.address() as AddressInfo).port}` })
}

async function answer (id: number, work: () => Promise<unknown>): Promise<void> {
  try {
    say({ id, value: await work() })
  } catch (error) {
    say({ id, error: String((error as Error).stack) })
  }
}

function say (word: Word): void {
  process.send!(word)
}

async function rest (app: FastifyInstance): Promise<Rest> {
  // twice, with a turn between: what waits for a finalizer goes with the second
  globalThis.gc!()
  await new Promise(resolve => setImmediate(resolve))
  globalThis.gc!()
  const { server } = app
  const listeners = server.eventNames().reduce((sum, name) => sum + server.listenerCount(name), 0)
  return { heap: process.memoryUsage().heapUsed, listeners, resources: tally(process.getActiveResourcesInfo()) }
}

/** How often each name is there. */
export function tally (names: string[]): Record<string, number> {
  const counts: Record<string, number> = {}
  for (const name of names.toSorted()) counts[name] = (counts[name] ?? 0) + 1
  return counts
}
