import { spawn, type ChildProcess } from 'node:child_process'
import { once } from 'node:events'
import { mkdtempSync, readFileSync, rmSync } from 'node:fs'
import { connect } from 'node:net'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import type { Test } from 'tap'
import { until } from '../fakes.ts'
import { freePort } from './port.ts'

const SILENT = 5_000
const PATIENCE = 60_000

/** Where a server runs, if not beside us: its own address and port, and the words that start a program there. */
export interface Place {
  address: string
  port: number
  under: string[]
}

/** A nats-server of our own: on a port of its own, with a folder of its own, which it finds again when it is started again. */
export class NatsServer {
  readonly port: number
  readonly folder = mkdtempSync(join(tmpdir(), 'nats-'))
  readonly address: string
  readonly #command: string[]
  #process: ChildProcess | undefined

  private constructor (path: string, args: string[], { address, port, under }: Place) {
    this.address = address
    this.port = port
    this.#command = [...under, path, '-a', address, '-p', String(port), '-js', '-sd', this.folder, '-l', this.#logFile, ...args]
  }

  static async start (path: string, args: string[] = [], place?: Place): Promise<NatsServer> {
    const server = new NatsServer(path, args, place ?? { address: '127.0.0.1', port: await freePort(), under: [] })
    await server.start()
    return server
  }

  get servers (): string {
    return `${this.address}:${this.port}`
  }

  /** What it has written down of itself. */
  get log (): string {
    return readFileSync(this.#logFile, 'utf8')
  }

  get #logFile (): string {
    return join(this.folder, 'nats-server.log')
  }

  /** Of its process, while it runs. */
  get pid (): number {
    return this.#process!.pid!
  }

  async start (): Promise<void> {
    const [program, ...args] = this.#command
    const child = spawn(program!, args, { stdio: 'ignore' })
    this.#process = child
    let ended: unknown
    child.once('exit', (code, signal) => { ended = code ?? signal })
    const late = performance.now() + PATIENCE
    await until(async () => ended !== undefined || performance.now() > late || await this.#answers())
    if (ended !== undefined) throw new Error(`nats-server ended with ${ended}`)
    if (performance.now() > late) throw new Error('nats-server does not answer')
  }

  async stop (signal: NodeJS.Signals = 'SIGTERM'): Promise<void> {
    const child = this.#process
    this.#process = undefined
    if (!child || child.exitCode !== null || child.signalCode !== null) return
    const exited = once(child, 'exit')
    child.kill(signal)
    const stuck = setTimeout(() => child.kill('SIGKILL'), SILENT)
    await exited
    clearTimeout(stuck)
  }

  /** Holds it still; resolves when it is. */
  async hold (): Promise<void> {
    const { pid } = this.#process!
    this.#process!.kill('SIGSTOP')
    await until(() => / T /.test(readFileSync(`/proc/${pid}/stat`, 'latin1')))
  }

  /** Lets it go on. */
  release (): void {
    this.#process!.kill('SIGCONT')
  }

  /** Stops it for good. */
  async remove (): Promise<void> {
    await this.stop('SIGKILL')
    rmSync(this.folder, { recursive: true, force: true })
  }

  /** Whether it says who it is; what else may listen there may say nothing. */
  async #answers (): Promise<boolean> {
    const socket = connect(this.port, this.address).setTimeout(SILENT)
    const says = await new Promise<boolean>(resolve => {
      socket.once('data', () => resolve(true))
      socket.once('close', () => resolve(false))
      socket.once('timeout', () => resolve(false))
      socket.on('error', () => {})
    })
    socket.destroy()
    return says
  }
}

/** A server that goes when the test ends. */
export async function natsServer (t: Pick<Test, 'teardown'>, path: string, args?: string[]): Promise<NatsServer> {
  const server = await NatsServer.start(path, args)
  t.teardown(() => server.remove())
  return server
}

/** Three servers that keep records together; they go when the test ends. */
export async function natsCluster (t: Pick<Test, 'teardown'>, path: string): Promise<NatsServer[]> {
  const routes = (await Promise.all(Array.from({ length: 3 }, freePort))).map(port => `nats://127.0.0.1:${port}`)
  return await Promise.all(routes.map((route, at) => {
    return natsServer(t, path, ['-n', `s${at}`, '--cluster_name', 'test', '--cluster', route, '--routes', routes.join()])
  }))
}
