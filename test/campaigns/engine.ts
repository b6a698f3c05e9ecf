import { mkdtemp, rm } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import type { Backplane } from '../../lib/cluster/backplane.ts'
import { nats, type NatsOptions } from '../../lib/nats/index.ts'
import { redis, type RedisOptions } from '../../lib/redis/index.ts'
import { diskMailbox } from '../../lib/storage/disk/index.ts'
import type { Mailbox } from '../../lib/storage/mailbox.ts'
import { programAt } from '../programs.ts'
import { NatsServer } from './nats.ts'
import { RedisServer } from './redis.ts'
import { UnpluggedRedis } from './redis-unplugged.ts'
import type { ServerProcess } from './server-process.ts'

/** The command line arguments that choose the engine of a campaign. */
export interface EngineChoice {
  /** One of `disk`, `nats` and `redis`. */
  engine: string
  /** `appendfsync` of Redis: `always`, or `everysec`, with which a kill is one of the machine and loses what was not synced. */
  fsync: string
}

/** How a node reaches the engine; can be sent to its process. */
export type EngineAccess =
  | { engine: 'disk', path: string }
  | { engine: 'nats', options: NatsOptions }
  | { engine: 'redis', options: RedisOptions }

export type EngineServer = Pick<ServerProcess, 'start' | 'stop' | 'hold' | 'release'>

/** What keeps the letters of a campaign, and joins its nodes if it has a server. */
export interface Engine {
  /** Its name in outputs. */
  readonly title: string
  readonly access: EngineAccess
  readonly server: EngineServer | undefined
  /** Milliseconds before a kill of its server whose acknowledged writes it may lose. */
  readonly lossWindow: number
  remove (): Promise<void>
}

export interface JoiningEngine extends Engine {
  readonly server: EngineServer
}

/** Redis syncs once a second; the rest is for a sync that takes long. */
const EVERYSEC_LOSS_MS = 1_200

const engines: Record<string, (choice: EngineChoice) => Promise<Engine>> = {
  async disk () {
    const path = await mkdtemp(join(tmpdir(), 'letters-'))
    return { title: 'the disk', access: { engine: 'disk', path }, server: undefined, lossWindow: 0, remove: () => rm(path, { recursive: true, force: true }) }
  },
  async nats () {
    const server = await NatsServer.start(programOf('nats-server'))
    return { title: 'NATS', access: { engine: 'nats', options: { servers: server.servers } }, server, lossWindow: 0, remove: () => server.remove() }
  },
  async redis ({ fsync }) {
    const server = await RedisServer.start(programOf('redis-server'), ['--appendfsync', fsync])
    const access: EngineAccess = { engine: 'redis', options: { url: server.url } }
    if (fsync === 'always') return { title: 'Redis', access, server, lossWindow: 0, remove: () => server.remove() }
    const unplugged = new UnpluggedRedis(server)
    return { title: `Redis (appendfsync ${fsync})`, access, server: unplugged, lossWindow: EVERYSEC_LOSS_MS, remove: () => unplugged.remove() }
  }
}

export async function startEngine (choice: EngineChoice): Promise<Engine> {
  if (!Object.hasOwn(engines, choice.engine)) throw new Error(`There is no engine ${choice.engine}; there are ${Object.keys(engines).join(', ')}`)
  return await engines[choice.engine]!(choice)
}

/** Starts an engine that has a server, and so joins nodes. */
export async function startJoiningEngine (choice: EngineChoice): Promise<JoiningEngine> {
  const engine = await startEngine(choice)
  if (hasServer(engine)) return engine
  await engine.remove()
  throw new Error(`${engine.title} has no server`)
}

/** In a node: the options of the plugin that use the engine. */
export async function openEngine (access: EngineAccess): Promise<{ mailbox: Mailbox, backplane?: Backplane }> {
  switch (access.engine) {
    case 'disk': return { mailbox: await diskMailbox({ path: access.path }) }
    case 'nats': return await nats(access.options)
    case 'redis': return await redis(access.options)
  }
}

/** The path of a program. Throws if it is not installed. */
export function programOf (name: string): string {
  const path = programAt(name)
  if (path === undefined) throw new Error(`This machine has no ${name}`)
  return path
}

function hasServer (engine: Engine): engine is JoiningEngine {
  return engine.server !== undefined
}
