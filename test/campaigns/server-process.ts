import { spawn, type ChildProcess } from 'node:child_process'
import { once } from 'node:events'
import { readFileSync } from 'node:fs'
import { until } from '../fakes.ts'

const STOP_TIMEOUT_MS = 5_000
const START_TIMEOUT_MS = 60_000

/** A server that runs as a process of its own. */
export class ServerProcess {
  readonly #command: string[]
  /** Whether the server can be used. */
  readonly #answers: () => Promise<boolean>
  #process: ChildProcess | undefined

  constructor (command: string[], answers: () => Promise<boolean>) {
    this.#command = command
    this.#answers = answers
  }

  /** The process id, while it runs. */
  get pid (): number {
    return this.#process!.pid!
  }

  async start (): Promise<void> {
    const [program, ...args] = this.#command
    const child = spawn(program!, args, { stdio: 'ignore' })
    this.#process = child
    let ended: unknown
    child.once('exit', (code, signal) => { ended = code ?? signal })
    const deadline = performance.now() + START_TIMEOUT_MS
    await until(async () => ended !== undefined || performance.now() > deadline || await this.#answers())
    if (ended !== undefined) throw new Error(`${program} ended with ${ended}`)
    if (performance.now() > deadline) throw new Error(`${program} does not answer`)
  }

  async stop (signal: NodeJS.Signals = 'SIGTERM'): Promise<void> {
    const child = this.#process
    this.#process = undefined
    if (!child || child.exitCode !== null || child.signalCode !== null) return
    const exited = once(child, 'exit')
    child.kill(signal)
    const stuck = setTimeout(() => child.kill('SIGKILL'), STOP_TIMEOUT_MS)
    await exited
    clearTimeout(stuck)
  }

  /** Suspends the process; resolves once it is stopped. */
  async hold (): Promise<void> {
    const { pid } = this
    this.#process!.kill('SIGSTOP')
    await until(() => / T /.test(readFileSync(`/proc/${pid}/stat`, 'latin1')))
  }

  /** Resumes the process. */
  release (): void {
    this.#process!.kill('SIGCONT')
  }
}

/** Where a server runs, if not on the loopback address: its address and port, and the command prefix that starts a program there. */
export interface ServerHost {
  address: string
  port: number
  under: string[]
}
