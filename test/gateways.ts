import { spawn, type ChildProcess } from 'node:child_process'
import { once } from 'node:events'
import { createServer } from 'node:http'
import type { AddressInfo } from 'node:net'
import { join } from 'node:path'
import type { Test } from 'tap'
import { freePort } from './campaigns/port.ts'
import { until } from './fakes.ts'
import { root } from './root.ts'

/** A process of `fastify-devices serve` that keeps its port over restarts. */
export class Gateway {
  readonly name: string
  readonly address: string
  /** How often it was started. */
  starts = 0
  readonly #env: NodeJS.ProcessEnv
  #process: ChildProcess | undefined

  private constructor (name: string, port: number, env: NodeJS.ProcessEnv) {
    this.name = name
    this.address = `127.0.0.1:${port}`
    this.#env = { ...process.env, NODE_OPTIONS: '', ...env, PORT: String(port) }
  }

  static async start (t: Pick<Test, 'teardown'>, name: string, env: NodeJS.ProcessEnv): Promise<Gateway> {
    const gateway = new Gateway(name, await freePort(), env)
    t.teardown(() => gateway.stop('SIGKILL'))
    gateway.#start()
    await until(() => gateway.isReady())
    return gateway
  }

  /** As a service manager does: resolves when the old process has ended and a new one is started. */
  async restart (): Promise<void> {
    await this.stop('SIGTERM')
    this.#start()
  }

  async stop (signal: NodeJS.Signals): Promise<void> {
    const child = this.#process!
    if (child.exitCode !== null || child.signalCode !== null) return
    child.kill(signal)
    await once(child, 'exit')
  }

  async isReady (): Promise<boolean> {
    return (await fetch(`http://${this.address}/readyz`).catch(() => undefined))?.ok === true
  }

  #start (): void {
    this.starts++
    this.#process = spawn(process.execPath, [join(root, 'dist/lib/cli/index.js'), 'serve'], { env: this.#env, stdio: ['ignore', 'ignore', 'inherit'] })
  }
}

/** A program that runs until the test ends. */
export function startProgram (t: Pick<Test, 'teardown'>, path: string, args: string[], env: NodeJS.ProcessEnv = {}): void {
  const child = spawn(path, args, { env: { ...process.env, ...env }, stdio: 'ignore' })
  t.teardown(async () => {
    if (child.exitCode !== null || child.signalCode !== null) return
    child.kill('SIGTERM')
    await once(child, 'exit')
  })
}

/** A port at which a `POST` with the name of a gateway restarts it. */
export async function restartPort (t: Pick<Test, 'teardown'>, gateways: Gateway[]): Promise<number> {
  const server = createServer(async (request, response) => {
    let name = ''
    for await (const chunk of request) name += chunk
    await gateways.find(gateway => gateway.name === name)!.restart()
    response.end()
  })
  t.teardown(() => server.close())
  server.listen(0, '127.0.0.1')
  await once(server, 'listening')
  return (server.address() as AddressInfo).port
}

/** Replaces texts of a configuration; each must be there. */
export function replaced (text: string, replacements: Array<[from: string, to: string]>): string {
  return replacements.reduce((text, [from, to]) => {
    if (!text.includes(from)) throw new Error(`There is no "${from}"`)
    return text.replaceAll(from, to)
  }, text)
}
