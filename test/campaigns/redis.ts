import { mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { connect } from 'node:net'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import type { Test } from 'tap'
import { freePort } from './port.ts'
import { ServerProcess, type ServerHost } from './server-process.ts'

const ANSWER_TIMEOUT_MS = 5_000

/**
 * A redis-server with its own port and folder, both kept over restarts. It appends to a file that it syncs with each write, unless `args` say otherwise.
 * `CONFIG REWRITE` changes its configuration file, so that a replica is one after a restart as well.
 */
export class RedisServer extends ServerProcess {
  readonly port: number
  readonly folder: string
  readonly address: string

  private constructor (path: string, args: string[], { address, port, under }: ServerHost) {
    const folder = mkdtempSync(join(tmpdir(), 'redis-'))
    const file = join(folder, 'redis.conf')
    const settings = ['--bind', address, '--port', String(port), '--dir', folder, '--logfile', logIn(folder), '--save', '', '--appendonly', 'yes', '--appendfsync', 'always']
    writeFileSync(file, '')
    super([...under, path, file, ...settings, ...args], () => answers(port, address))
    this.folder = folder
    this.address = address
    this.port = port
  }

  static async start (path: string, args: string[] = [], place?: ServerHost): Promise<RedisServer> {
    const server = new RedisServer(path, args, place ?? { address: '127.0.0.1', port: await freePort(), under: [] })
    await server.start()
    return server
  }

  get url (): string {
    return `redis://${this.address}:${this.port}`
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

/** A server that is removed when the test ends. */
export async function redisServer (t: Pick<Test, 'teardown'>, path: string, args?: string[]): Promise<RedisServer> {
  const server = await RedisServer.start(path, args)
  t.teardown(() => server.remove())
  return server
}

/** Whether a server answers with other than that it still reads its files. */
export async function answers (port: number, address: string): Promise<boolean> {
  const socket = connect(port, address).setTimeout(ANSWER_TIMEOUT_MS)
  const answer = await new Promise<string>(resolve => {
    socket.once('connect', () => socket.write('PING\r\n'))
    socket.once('data', data => resolve(data.toString()))
    socket.once('close', () => resolve(''))
    socket.once('timeout', () => resolve(''))
    socket.on('error', () => {})
  })
  socket.destroy()
  return answer !== '' && !answer.startsWith('-LOADING')
}

function logIn (folder: string): string {
  return join(folder, 'redis-server.log')
}
