import type { FastifyBaseLogger } from 'fastify'
import { Failure } from '../lib/protocol/errors.ts'
import '../lib/protocol/vocabulary.ts'

export interface LogLine {
  level: string
  fields: any
  words: string
}

/** A logger that keeps what it is told. */
export function fakeLog (): FastifyBaseLogger & { lines: LogLine[] } {
  const lines: LogLine[] = []
  const at = (level: string) => (fields: unknown, words: string) => { lines.push({ level, fields, words }) }
  const levels = ['fatal', 'error', 'warn', 'info', 'debug', 'trace']
  const log = { lines, level: 'trace', silent () {}, child: () => log, ...Object.fromEntries(levels.map(level => [level, at(level)])) }
  return log as unknown as FastifyBaseLogger & { lines: LogLine[] }
}

/** Numbers from 0 to 1 that are the same in every run. */
export function random (seed: number): () => number {
  let state = seed
  return () => {
    state = (state + 0x6d2b79f5) | 0
    let mixed = Math.imul(state ^ (state >>> 15), 1 | state)
    mixed = (mixed + Math.imul(mixed ^ (mixed >>> 7), 61 | mixed)) ^ mixed
    return ((mixed ^ (mixed >>> 14)) >>> 0) / 4_294_967_296
  }
}

/** A door in the way of whoever waits for it, until the test opens it. */
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

/** Lets everything that is ready to run do so. */
export async function turn (): Promise<void> {
  for (let round = 0; round < 3; round++) await new Promise(resolve => setImmediate(resolve))
}

export async function all<T> (items: AsyncIterable<T>): Promise<T[]> {
  const found: T[] = []
  for await (const item of items) found.push(item)
  return found
}

/** Waits until a condition holds, without a guess at how long that takes. */
export async function until (holds: () => boolean | Promise<boolean>): Promise<void> {
  while (!await holds()) await new Promise(resolve => setTimeout(resolve, 2))
}

/** The reason for which something failed; where that is no reason of ours, the error itself. */
export async function reasonOf (work: Promise<unknown> | (() => unknown)): Promise<unknown> {
  try {
    await (typeof work === 'function' ? work() : work)
    return 'it did not fail'
  } catch (error) {
    return error instanceof Failure ? error.reason : error
  }
}
