import { fork, type ChildProcess } from 'node:child_process'
import { once } from 'node:events'
import { fileURLToPath } from 'node:url'

/** The commands of a child process. */
export type Commands = Record<string, (params: any) => unknown>

type Answer = { id: number, value?: unknown, error?: string }

/** A module in a process of its own, so that its CPU time and heap are measured alone. */
export class Child {
  readonly #process: ChildProcess
  readonly #ended: Promise<unknown>
  readonly #pending = new Map<number, { resolve: (value: any) => void, reject: (error: Error) => void }>()
  #lastId = 0

  private constructor (process: ChildProcess) {
    this.#process = process
    process.on('message', answer => this.#settle(answer as Answer))
    this.#ended = once(process, 'exit').then(([code, signal]) => {
      for (const { reject } of this.#pending.values()) reject(new Error(`A process ended with ${code ?? signal}`))
    })
  }

  /** Forks a module, and resolves once it answers. */
  static async start (module: URL, settings: object = {}): Promise<Child> {
    const child = new Child(fork(fileURLToPath(module), [JSON.stringify(settings)], { execArgv: [...process.execArgv, '--expose-gc'] }))
    await child.ask('ready')
    return child
  }

  get pid (): number {
    return this.#process.pid!
  }

  async ask (command: string, params: unknown = {}): Promise<any> {
    const id = ++this.#lastId
    return await new Promise((resolve, reject) => {
      this.#pending.set(id, { resolve, reject })
      this.#process.send({ id, command, params })
    })
  }

  /** Disconnects the IPC channel, at which the child exits. */
  async end (): Promise<void> {
    if (this.#process.connected) this.#process.disconnect()
    await this.#ended
  }

  #settle ({ id, value, error }: Answer): void {
    const { resolve, reject } = this.#pending.get(id)!
    this.#pending.delete(id)
    if (error === undefined) resolve(value)
    else reject(new Error(error))
  }
}

/** In the child: the settings given to `Child.start`. */
export function childSettings (): any {
  return JSON.parse(process.argv[2] ?? '{}')
}

/** In the child: serves the commands. */
export function serveCommands (commands: Commands): void {
  const known: Commands = { ready: () => true, ...commands }
  process.on('message', async ({ id, command, params }: { id: number, command: string, params: unknown }) => {
    try {
      process.send!({ id, value: await known[command]!(params) })
    } catch (error) {
      process.send!({ id, error: String((error as Error).stack) })
    }
  })
  process.once('disconnect', () => process.exit())
}
