import { spawn, type ChildProcess } from 'node:child_process'
import { once } from 'node:events'
import { mkdtempSync, readFileSync, rmSync } from 'node:fs'
import { connect } from 'node:net'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import type { Test } from 'tap'
import { until } from '../fakes.ts'
import { freePort } from './port.ts'

const STOP_TIMEOUT_MS = 5_000
const START_TIMEOUT_MS = 60_000

/** Where a server runs, if not on the loopback address: its address and port, and the command prefix that starts a program there. */
export interface NatsHost {
  address: string
  port: number
  under: string[]
}

/** A nats-server with its own port and storage folder, both kept over restarts. */
export class NatsServer {
  readonly port: number
  readonly folder = mkdtempSync(join(tmpdir(), 'nats-'))
  readonly address: string
  readonly #command: string[]
  #process: ChildProcess | undefined

  private constructor (path: string, args: string[], { address, port, under }: NatsHost) {
    this.address = address
    this.port = port
    this.#command = [...under, path, '-a', address, '-p', String(port), '-js', '-sd', this.folder, '-l', this.#logFile, ...args]
  }

  static async start (path: string, args: string[] = [], place?: NatsHost): Promise<NatsServer> {
    const server = new NatsServer(path, args, place ?? { address: '127.0.0.1', port: await freePort(), under: [] })
    await server.start()
    return server
  }

  get servers (): string {
    return `${this.address}:${this.port}`
  }

  /** The content of its log file. */
  get log (): string {
    return readFileSync(this.#logFile, 'utf8')
  }

  get #logFile (): string {
    return join(this.folder, 'nats-server.log')
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
    if (ended !== undefined) throw new Error(`nats-server ended with ${ended}`)
    if (performance.now() > deadline) throw new Error('nats-server does not answer')
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
    const { pid } = this.#process!
    this.#process!.kill('SIGSTOP')
    await until(() => / T /.test(readFileSync(`/proc/${pid}/stat`, 'latin1')))
  }

  /** Resumes the process. */
  release (): void {
    this.#process!.kill('SIGCONT')
  }

  /** Kills the process and removes its folder. */
  async remove (): Promise<void> {
    await this.stop('SIGKILL')
    rmSync(this.folder, { recursive: true, force: true })
  }

  /** Whether it sends its greeting; another program on the port may stay silent. */
  async #answers (): Promise<boolean> {
    const socket = connect(this.port, this.address).setTimeout(STOP_TIMEOUT_MS)
    const hasAnswered = await new Promise<boolean>(resolve => {
      socket.once('data', () => resolve(true))
      socket.once('close', () => resolve(false))
      socket.once('timeout', () => resolve(false))
      socket.on('error', () => {})
    })
    socket.destroy()
    return hasAnswered
  }
}

/** A server that is removed when the test ends. */
export async function natsServer (t: Pick<Test, 'teardown'>, path: string, args?: string[]): Promise<NatsServer> {
  const server = await NatsServer.start(path, args)
  t.teardown(() => server.remove())
  return server
}

/** A cluster of three servers that is removed when the test ends. */
export async function natsCluster (t: Pick<Test, 'teardown'>, path: string): Promise<NatsServer[]> {
  const routes = (await Promise.all(Array.from({ length: 3 }, freePort))).map(port => `nats://127.0.0.1:${port}`)
  return await Promise.all(routes.map((route, at) => {
    return natsServer(t, path, ['-n', `s${at}`, '--cluster_name', 'test', '--cluster', route, '--routes', routes.join()])
  }))
}
