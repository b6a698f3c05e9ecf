import { setFlagsFromString } from 'node:v8'
import { runInNewContext } from 'node:vm'
import type { FastifyBaseLogger } from 'fastify'
import type { Test } from 'tap'
import type { Answer, Owner, Request } from '../lib/cluster/backplane.ts'
import { Failure } from '../lib/protocol/errors.ts'
import '../lib/protocol/node-reasons.ts'

export interface LogLine {
  level: string
  fields: any
  words: string
}

/** A logger that records its lines. As pino does, it leaves out fields that are undefined. */
export function fakeLog (): FastifyBaseLogger & { lines: LogLine[] } {
  const lines: LogLine[] = []
  const at = (level: string) => (fields: object, words: string) => {
    lines.push({ level, fields: Object.fromEntries(Object.entries(fields).filter(([, value]) => value !== undefined)), words })
  }
  const levels = ['fatal', 'error', 'warn', 'info', 'debug', 'trace']
  const log = { lines, level: 'trace', silent () {}, child: () => log, ...Object.fromEntries(levels.map(level => [level, at(level)])) }
  return log as unknown as FastifyBaseLogger & { lines: LogLine[] }
}

/** Reproducible random numbers from 0 to 1 (mulberry32). */
export function random (seed: number): () => number {
  let state = seed
  return () => {
    state = (state + 0x6d2b79f5) | 0
    let mixed = Math.imul(state ^ (state >>> 15), 1 | state)
    mixed = (mixed + Math.imul(mixed ^ (mixed >>> 7), 61 | mixed)) ^ mixed
    return ((mixed ^ (mixed >>> 14)) >>> 0) / 4_294_967_296
  }
}

/** A promise that the test resolves or rejects. */
export interface Gate<T = void> {
  readonly opened: Promise<T>
  open (value: T): void
  fail (error: unknown): void
}

export function gate<T = void> (): Gate<T> {
  let open!: (value: T) => void
  let fail!: (error: unknown) => void
  const opened = new Promise<T>((resolve, reject) => {
    open = resolve
    fail = reject
  })
  return { opened, open, fail }
}

/** Waits until callbacks and promises that are ready have run. */
export async function turn (): Promise<void> {
  for (let round = 0; round < 3; round++) await new Promise(resolve => setImmediate(resolve))
}

export async function all<T> (items: AsyncIterable<T>): Promise<T[]> {
  const found: T[] = []
  for await (const item of items) found.push(item)
  return found
}

const UNTIL_TIMEOUT_MS = 120_000

/** Polls until a condition holds; a test that waits in vain fails by name. */
export async function until (holds: () => boolean | Promise<boolean>): Promise<void> {
  const deadline = performance.now() + UNTIL_TIMEOUT_MS
  while (!await holds()) {
    if (performance.now() > deadline) throw new Error(`after ${UNTIL_TIMEOUT_MS} ms still not true: ${holds}`)
    await new Promise(resolve => setTimeout(resolve, 2))
  }
}

/** How many of the objects are still in memory after a garbage collection. */
export function countKept (references: Array<WeakRef<object>>): number {
  setFlagsFromString('--expose-gc')
  runInNewContext('gc')()
  return references.filter(reference => reference.deref()).length
}

/** The reason of a `Failure`, or else the error itself. */
export async function reasonOf (work: Promise<unknown> | (() => unknown)): Promise<unknown> {
  try {
    await (typeof work === 'function' ? work() : work)
    return 'it did not fail'
  } catch (error) {
    return error instanceof Failure ? error.reason : error
  }
}

/** A fake connection that answers with its node name. */
export class Connection implements Owner {
  readonly presence: Owner['presence']
  yielded = 0
  /** Confirms that its device is alive. */
  confirm: () => Promise<void> = async () => {}
  reply: (request: Request, signal?: AbortSignal) => Answer | Promise<Answer> = () => ({ ok: true, value: this.presence.node })

  constructor (deviceId: string, node: string, since = Date.now()) {
    this.presence = { deviceId, node, since }
  }

  async answer (request: Request, signal?: AbortSignal): Promise<Answer> {
    return await this.reply(request, signal)
  }

  listensTo (): boolean {
    return true
  }

  confirmAlive (): Promise<void> {
    return this.confirm()
  }

  yield (): void {
    this.yielded++
  }
}

/** Advances the monotonic clock until the test ends, as a suspension of the process does. */
export function advanceClock (t: Pick<Test, 'teardown'>, milliseconds: number): void {
  const { now } = performance
  performance.now = () => now.call(performance) + milliseconds
  t.teardown(() => { performance.now = now })
}
