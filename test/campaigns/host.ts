import { fork, type ChildProcess } from 'node:child_process'
import { once } from 'node:events'
import type { AddressInfo } from 'node:net'
import { fileURLToPath } from 'node:url'
import Fastify, { type FastifyInstance } from 'fastify'

/** The commands of a host. */
export type Commands = Record<string, (params: any) => unknown>

/** The application of a host, and its commands. */
export interface HostedApp {
  app: FastifyInstance
  commands: Commands
}

export type HostSetup = (settings: any) => Promise<HostedApp>

export interface Exit {
  code: number | null
  signal: string | null
}

/** An idle host: its heap, its listeners and its active resources. */
export interface IdleState {
  heap: number
  listeners: number
  /** Number of resources by kind, as `process.getActiveResourcesInfo()` names them; `Timeout` are the timers. */
  resources: Record<string, number>
}

type HostMessage = { url: string } | { fault: string } | { id: number, value?: unknown, error?: string }

interface StartMessage {
  settings: object
  /** 0 for a free port. */
  port: number
  address: string
}

/** A server in a process of its own, so that its heap, timers and exit can be observed. */
export class Host {
  url = ''
  /** Uncaught errors of the process. */
  readonly faults: string[] = []
  readonly ended: Promise<Exit>
  readonly #child: ChildProcess
  readonly #pending = new Map<number, { resolve: (value: any) => void, reject: (error: Error) => void }>()
  #lastId = 0

  private constructor (child: ChildProcess) {
    this.#child = child
    this.ended = once(child, 'exit').then(([code, signal]) => this.#rejectPending({ code, signal }))
    child.on('message', word => this.#receive(word as HostMessage))
  }

  /** Starts a host from a module that calls `command` with `prepare`. */
  static async start (module: string, settings: object = {}): Promise<Host> {
    const host = Host.load(module)
    await host.begin(settings)
    return host
  }

  /** A process that has loaded a module and waits for `begin`. `under` is a program, with arguments, that runs it, such as strace. */
  static load (module: string, under: string[] = []): Host {
    const [execPath, ...execArgv] = [...under, process.execPath, ...process.execArgv.filter(option => !option.startsWith('--import')), '--expose-gc']
    return new Host(fork(fileURLToPath(module), ['serve'], { execPath: execPath!, execArgv, env: uninstrumented() }))
  }

  /** Resolves once it listens. */
  async begin (settings: object = {}, port = 0, address = '127.0.0.1'): Promise<void> {
    const start: StartMessage = { settings, port, address }
    this.#child.send(start)
    await Promise.race([once(this.#child, 'message'), this.ended])
    if (!this.url) throw new Error(`The host did not start: ${this.faults.join('; ')}`)
  }

  async ask (command: string, params?: unknown): Promise<any> {
    const id = ++this.#lastId
    return await new Promise((resolve, reject) => {
      this.#pending.set(id, { resolve, reject })
      this.#child.send({ id, command, params }, error => { if (error) reject(error) })
    })
  }

  /** Kills, stops or continues the process. */
  signal (name: 'SIGKILL' | 'SIGSTOP' | 'SIGCONT'): void {
    this.#child.kill(name)
  }

  /** Closes the server; resolves when the process has ended by itself. */
  async stop (): Promise<Exit> {
    await this.ask('close')
    return await this.ended
  }

  /** Kills the process; resolves once it has exited. */
  async kill (): Promise<Exit> {
    this.#child.kill('SIGKILL')
    return await this.ended
  }

  #receive (word: HostMessage): void {
    if ('url' in word) this.url = word.url
    else if ('fault' in word) this.faults.push(word.fault)
    else this.#settle(word)
  }

  #settle ({ id, value, error }: { id: number, value?: unknown, error?: string }): void {
    const asked = this.#pending.get(id)!
    this.#pending.delete(id)
    if (error === undefined) asked.resolve(value)
    else asked.reject(new Error(error))
  }

  #rejectPending (exit: Exit): Exit {
    for (const { reject } of this.#pending.values()) reject(new Error(`The host ended with ${exit.code ?? exit.signal}: ${this.faults.join('; ')}`))
    return exit
  }
}

/** An application that logs errors only, to the given list. */
export function quietApp (errors: { push (error: string): unknown } = []): FastifyInstance {
  const stream = { write: (line: string) => { errors.push(JSON.parse(line).msg) } }
  return Fastify({ routerOptions: { maxParamLength: 128 }, logger: { level: 'error', stream } }) as FastifyInstance
}

/** In the forked process: serves the application and its commands. Only the open server keeps the process alive. */
export async function serve (prepare: HostSetup): Promise<void> {
  process.once('disconnect', () => process.exit(1))
  for (const event of ['uncaughtException', 'unhandledRejection'] as const) {
    process.on(event, (error: unknown) => reportFault(`${event}: ${(error as Error)?.stack ?? String(error)}`))
  }
  const [{ settings, port, address }] = await once(process, 'message') as [StartMessage]
  const { app, commands } = await prepare(settings)
  await app.listen({ port, host: address })
  const known: Commands = { rest: () => idleState(app), close: () => app.close(), ...commands }
  process.on('message', ({ id, command, params }: { id: number, command: string, params: unknown }) => {
    void answer(id, async () => await known[command]!(params))
  })
  process.channel!.unref()
  sendToParent({ url: `http://${address}:${(app.server.address() as AddressInfo).port}` })
}

/** Reports an error at once, since the process may end soon. */
export function reportFault (what: string): void {
  sendToParent({ fault: what })
}

async function answer (id: number, work: () => Promise<unknown>): Promise<void> {
  try {
    sendToParent({ id, value: await work() })
  } catch (error) {
    sendToParent({ id, error: String((error as Error).stack) })
  }
}

function sendToParent (word: HostMessage): void {
  process.send!(word)
}

async function idleState (app: FastifyInstance): Promise<IdleState> {
  // Twice, with a tick between: objects with a finalizer are freed by the second collection.
  globalThis.gc!()
  await new Promise(resolve => setImmediate(resolve))
  globalThis.gc!()
  const { server } = app
  const listeners = server.eventNames().reduce((sum, name) => sum + server.listenerCount(name), 0)
  return { heap: process.memoryUsage().heapUsed, listeners, resources: countByName(process.getActiveResourcesInfo()) }
}

/** Counts equal names. */
export function countByName (names: string[]): Record<string, number> {
  const counts: Record<string, number> = {}
  for (const name of names.toSorted()) counts[name] = (counts[name] ?? 0) + 1
  return counts
}

/** The environment without the hooks and the coverage of the test runner: a host runs as it would in production. */
function uninstrumented (): NodeJS.ProcessEnv {
  return { ...process.env, NODE_OPTIONS: '', _TAPJS_PROCESSINFO_COVERAGE_: '0' }
}
