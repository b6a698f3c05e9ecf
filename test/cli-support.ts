import { spawn, type ChildProcess } from 'node:child_process'
import { once } from 'node:events'
import { createServer, type IncomingMessage, type ServerResponse } from 'node:http'
import type { AddressInfo } from 'node:net'
import { join } from 'node:path'
import { PassThrough, Writable } from 'node:stream'
import type { Test } from 'tap'
import { run } from '../lib/cli/program.ts'
import { until } from './fakes.ts'
import { root } from './root.ts'

/** The program, as `npx fastify-devices` runs it. */
export const program = join(root, 'dist/lib/cli/index.js')

type Teardown = Pick<Test, 'teardown'>

export interface RunOptions {
  /** The whole input; without it the input stays open. */
  input?: string | Uint8Array
  env?: Record<string, string>
  /** Input and output are a terminal. */
  isTerminal?: boolean
  /** What a write to a stream fails with. */
  broken?: (stream: 'stdout' | 'stderr') => Error | undefined
  /** Nothing takes the output. */
  isStuck?: boolean
}

/** A command in this process. */
export interface Command {
  readonly code: Promise<number>
  /** What it has printed so far. */
  readonly stdout: string
  readonly stderr: string
  /** The records that it has printed so far. */
  readonly records: any[]
  /** It takes its input. */
  readonly isReading: boolean
  type (line: string): void
  interrupt (signal: 'SIGINT' | 'SIGTERM'): void
  /** Resolves once a record matches. */
  record (matches: (record: any) => boolean): Promise<any>
}

/** Starts a command in this process; ends it when the test ends. */
export function start (t: Teardown, words: string[], { input, env = {}, isTerminal = false, broken, isStuck = false }: RunOptions = {}): Command {
  const printed = { stdout: '', stderr: '' }
  const sink = (name: keyof typeof printed) => new Writable({
    write (chunk, _encoding, done) {
      const error = broken?.(name)
      if (!error) printed[name] += String(chunk)
      if (!isStuck) done(error)
    }
  })
  const stdin = Object.assign(new PassThrough(), { isTTY: isTerminal })
  if (input !== undefined) stdin.end(input)
  const controller = new AbortController()
  const code = run(words, { stdin, stdout: Object.assign(sink('stdout'), { isTTY: isTerminal }), stderr: sink('stderr'), env, signal: controller.signal })
  const command: Command = {
    code,
    get stdout () { return printed.stdout },
    get stderr () { return printed.stderr },
    get records () { return printed.stdout.split('\n').filter(line => line !== '').map(line => JSON.parse(line)) },
    get isReading () { return stdin.readableFlowing !== null },
    type: line => { stdin.write(`${line}\n`) },
    interrupt: signal => controller.abort(signal),
    async record (matches) {
      let isOver = false
      void code.then(() => { isOver = true })
      await until(() => isOver || command.records.some(matches))
      return command.records.find(matches) ?? (() => { throw new Error(`The command has ended: ${command.stderr}`) })()
    }
  }
  t.teardown(async () => {
    controller.abort('SIGTERM')
    await code
  })
  return command
}

/** Runs a command in this process to its end. */
export async function cli (t: Teardown, words: string[], options: RunOptions = {}): Promise<{ code: number, stdout: string, stderr: string, records: any[] }> {
  const command = start(t, words, { input: '', ...options })
  const code = await command.code
  const { stdout, stderr } = command
  return { code, stdout, stderr, get records () { return command.records } }
}

/** A program and what it has printed so far. */
export interface Running {
  readonly child: ChildProcess
  readonly printed: string
  readonly exited: Promise<number | null>
}

/** Runs a program in a process of its own; ends it when the test ends. */
export function launch (t: Teardown, file: string, args: string[], env: Record<string, string> = {}): Running {
  const { TOKEN: _, NO_COLOR: __, ...inherited } = process.env
  const child = spawn(file, args, { env: { ...inherited, TERM: 'xterm', PORT: '0', ...env }, stdio: ['pipe', 'pipe', 'pipe'] })
  let printed = ''
  for (const stream of [child.stdout, child.stderr]) stream.on('data', chunk => { printed += String(chunk) })
  child.stdin.on('error', () => {})
  const exited = once(child, 'close').then(([code]) => code as number | null)
  t.teardown(async () => {
    child.kill()
    await exited
  })
  return { child, exited, get printed () { return printed } }
}

/** Runs the command line in a pseudo-terminal. */
export function inTerminal (t: Teardown, script: string, words: string[], env: Record<string, string> = {}): Running {
  const quoted = [process.execPath, program, ...words].map(word => `'${word.replaceAll("'", "'\\''")}'`).join(' ')
  return launch(t, script, ['-qec', `exec ${quoted}`, '/dev/null'], { SHELL: '/bin/sh', ...env })
}

/** A server that answers as a gateway would not. */
export async function impostor (t: Teardown, answer: (request: IncomingMessage, response: ServerResponse) => void): Promise<string> {
  const server = createServer(answer)
  server.listen(0, '127.0.0.1')
  await once(server, 'listening')
  t.teardown(() => {
    server.closeAllConnections()
    server.close()
  })
  return `http://127.0.0.1:${(server.address() as AddressInfo).port}`
}

/** Answers with JSON. */
export function answerJson (response: ServerResponse, body: unknown, status = 200): void {
  response.writeHead(status, { 'content-type': 'application/json; charset=utf-8' }).end(JSON.stringify(body))
}
