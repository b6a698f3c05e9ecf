import { mkdtempSync, readFileSync, rmSync } from 'node:fs'
import { connect } from 'node:net'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import type { Test } from 'tap'
import { freePort } from './port.ts'
import { ServerProcess, type ServerHost } from './server-process.ts'

const GREETING_TIMEOUT_MS = 5_000

/** A nats-server with its own port and storage folder, both kept over restarts. */
export class NatsServer extends ServerProcess {
  readonly port: number
  readonly folder: string
  readonly address: string

  private constructor (path: string, args: string[], { address, port, under }: ServerHost) {
    const folder = mkdtempSync(join(tmpdir(), 'nats-'))
    super([...under, path, '-a', address, '-p', String(port), '-js', '-sd', folder, '-l', logIn(folder), ...args], () => greets(port, address))
    this.folder = folder
    this.address = address
    this.port = port
  }

  static async start (path: string, args: string[] = [], place?: ServerHost): Promise<NatsServer> {
    const server = new NatsServer(path, args, place ?? { address: '127.0.0.1', port: await freePort(), under: [] })
    await server.start()
    return server
  }

  get servers (): string {
    return `${this.address}:${this.port}`
  }

  /** The content of its log file. */
  get log (): string {
    return readFileSync(logIn(this.folder), 'utf8')
  }

  /** Kills the process and removes its folder. */
  async remove (): Promise<void> {
    await this.stop('SIGKILL')
    rmSync(this.folder, { recursive: true, force: true })
  }
}

/** Whether a server sends its greeting; another program on the port may stay silent. */
async function greets (port: number, address: string): Promise<boolean> {
  const socket = connect(port, address).setTimeout(GREETING_TIMEOUT_MS)
  const hasAnswered = await new Promise<boolean>(resolve => {
    socket.once('data', () => resolve(true))
    socket.once('close', () => resolve(false))
    socket.once('timeout', () => resolve(false))
    socket.on('error', () => {})
  })
  socket.destroy()
  return hasAnswered
}

function logIn (folder: string): string {
  return join(folder, 'nats-server.log')
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
