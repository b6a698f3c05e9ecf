import { Redis } from 'ioredis'
import type { Test } from 'tap'
import type { Backplane } from '../lib/cluster/backplane.ts'
import { nats } from '../lib/nats/index.ts'
import { redis } from '../lib/redis/index.ts'
import type { Mailbox } from '../lib/storage/mailbox.ts'
import { programOf, type EngineAccess, type EngineServer } from './campaigns/engine.ts'
import { natsServer } from './campaigns/nats.ts'
import { redisServer } from './campaigns/redis.ts'
import { withProgram } from './programs.ts'

type Teardown = Pick<Test, 'teardown'>

export interface JoinOptions {
  prefix?: string
  startWithout?: boolean
  /** The maximum size of all letters. Redis is limited by its memory only: see `whileFull`. */
  maxBytes?: number
}

/** A server that joins nodes. It is removed when the test ends. */
export interface JoiningServer extends EngineServer {
  /** How a node reaches it; can be sent to the process of the node. */
  readonly access: EngineAccess
  /** The options of the plugin with which a node joins. */
  join (options?: JoinOptions): Promise<{ backplane: Backplane, mailbox: Mailbox }>
  /** Does some work while a letter larger than `maxBytes` does not fit. */
  whileFull<T> (work: () => Promise<T>): Promise<T>
}

/** An engine that joins nodes. */
export interface TestedEngine {
  /** Its name in messages. */
  readonly name: string
  /** The program of its server. */
  readonly program: string
  /** The health of the mailbox while the server is suspended. */
  readonly suspendedReason: string
  start (t: Teardown, args?: string[]): Promise<JoiningServer>
}

export const natsEngine: TestedEngine = {
  name: 'NATS',
  program: 'nats-server',
  suspendedReason: 'NATS streams unreachable',
  async start (t, args) {
    const server = await natsServer(t, programOf('nats-server'), args)
    const { servers } = server
    return Object.assign(server, {
      access: { engine: 'nats', options: { servers } } as const,
      join: (options?: JoinOptions) => nats({ servers, ...options }),
      whileFull: <T>(work: () => Promise<T>) => work()
    })
  }
}

export const redisEngine: TestedEngine = {
  name: 'Redis',
  program: 'redis-server',
  suspendedReason: 'Redis unreachable',
  async start (t, args) {
    const server = await redisServer(t, programOf('redis-server'), args)
    const { url } = server
    return Object.assign(server, {
      access: { engine: 'redis', options: { url } } as const,
      join: ({ maxBytes: _, ...options }: JoinOptions = {}) => redis({ url, ...options }),
      async whileFull<T> (work: () => Promise<T>): Promise<T> {
        const client = new Redis(url)
        try {
          await client.config('SET', 'maxmemory', 1)
          return await work()
        } finally {
          await client.config('SET', 'maxmemory', 0)
          client.disconnect()
        }
      }
    })
  }
}

/** A test of each engine that joins nodes, if its program is installed. */
export function overEngines (t: Test, title: string, body: (t: Test, engine: TestedEngine) => Promise<void>, options?: object): void {
  for (const engine of [natsEngine, redisEngine]) withProgram(t, engine.program, `over ${engine.name}, ${title}`, t => body(t, engine), options)
}
