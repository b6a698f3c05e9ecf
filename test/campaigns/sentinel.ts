import { appendFileSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { Redis } from 'ioredis'
import type { RedisOptions } from '../../lib/redis/index.ts'
import { settled } from './campaign.ts'
import { LossWindows } from './loss-windows.ts'
import { answers, RedisServer } from './redis.ts'
import { failoversIn, type Failover } from './sentinel-log.ts'
import { ServerProcess, type ServerHost } from './server-process.ts'

/** Where a server of a group and its Sentinel run; a place without a server has a Sentinel only. */
export interface GroupPlace {
  name: string
  server?: ServerHost
  sentinel: ServerHost
  /** The log files; kept when the group is removed. */
  logs: string
}

export interface GroupSettings {
  /** Replicas without which a master refuses writes. */
  minReplicas: number
}

const MASTER_NAME = 'devices'
const QUORUM = 2
const DOWN_AFTER_MS = 1_500
const FAILOVER_TIMEOUT_MS = 3_000
/** A master whose replicas were silent for longer refuses writes. */
const MAX_LAG_S = 2
const PING_INTERVAL_MS = 1_000
const REPLICA_TIMEOUT_S = 5
const COMMAND_TIMEOUT_MS = 2_000
const READY_TIMEOUT_MS = 30_000

/** Those of Sentinels and of `ask` in a list of clients. */
const OWN_CLIENT = / name=sentinel-| cmd=client\|list /

/** A Sentinel with its own port and folder, both kept over restarts: it writes what it knows into its configuration file. */
class Sentinel extends ServerProcess {
  readonly folder: string
  readonly place: ServerHost

  constructor (path: string, place: ServerHost, master: ServerHost, log: string) {
    const folder = mkdtempSync(join(tmpdir(), 'sentinel-'))
    const file = join(folder, 'sentinel.conf')
    writeFileSync(file, [
      `bind ${place.address}`, `port ${place.port}`, `dir ${folder}`, `logfile ${log}`, 'protected-mode no',
      `sentinel monitor ${MASTER_NAME} ${master.address} ${master.port} ${QUORUM}`,
      `sentinel down-after-milliseconds ${MASTER_NAME} ${DOWN_AFTER_MS}`,
      `sentinel failover-timeout ${MASTER_NAME} ${FAILOVER_TIMEOUT_MS}`, ''
    ].join('\n'))
    super([...place.under, path, file, '--sentinel'], () => answers(place.port, place.address))
    this.folder = folder
    this.place = place
  }
}

/** A master with replicas, watched by three Sentinels. */
export class SentinelGroup {
  readonly #places: GroupPlace[]
  readonly #servers = new Map<string, RedisServer>()
  readonly #sentinels = new Map<string, Sentinel>()

  private constructor (places: GroupPlace[]) {
    this.#places = places
  }

  /** The first place gets the master. */
  static async start (path: string, places: GroupPlace[], settings: GroupSettings): Promise<SentinelGroup> {
    const group = new SentinelGroup(places)
    const master = places[0]!.server!
    for (const { name, server, logs } of places) if (server) await group.#startServer(path, name, server, master, logs, settings)
    for (const { name, sentinel, logs } of places) {
      const log = join(logs, `${name}-sentinel.log`)
      appendFileSync(log, '')
      const one = new Sentinel(path, sentinel, master, log)
      group.#sentinels.set(name, one)
      await one.start()
    }
    const bad = await settled(() => group.unhealthy(), [], READY_TIMEOUT_MS)
    if (bad.length > 0) throw new Error(`Redis is not ready: ${bad.join('; ')}`)
    return group
  }

  /** Options of a node. `first` is the Sentinel that it asks first. */
  options (first = this.#places[0]!.name): RedisOptions {
    const at = this.#places.findIndex(({ name }) => name === first)
    const sentinels = this.#places.map((_, turn) => this.#places[(at + turn) % this.#places.length]!.sentinel)
    return { sentinels: sentinels.map(({ address, port }) => ({ host: address, port })), name: MASTER_NAME, startWithout: true }
  }

  server (name: string): RedisServer {
    return this.#servers.get(name)!
  }

  sentinel (name: string): ServerProcess {
    return this.#sentinels.get(name)!
  }

  /** The master, as the Sentinels report it that answer; `undefined` if they disagree or none answers. */
  async master (): Promise<string | undefined> {
    const named = new Set((await Promise.all(this.#places.map(({ sentinel }) => masterOf(sentinel)))).filter(address => address !== undefined))
    const [address, ...others] = named
    return others.length > 0 ? undefined : this.#places.find(({ server }) => server && `${server.address}:${server.port}` === address)?.name
  }

  /** Replaces the master. Sentinels refuse until they have recent news of a replica. */
  async failover (): Promise<void> {
    const answer = await settled(() => this.#askForFailover(), 'OK', READY_TIMEOUT_MS)
    if (answer !== 'OK') throw new Error(`no Sentinel replaces the master: ${answer}`)
  }

  /** Number of connections of nodes to a server; 0 if it does not answer. */
  async connections (name: string): Promise<number> {
    const { address, port } = this.server(name)
    const lists = await Promise.all(['normal', 'pubsub'].map(type => ask({ address, port }, 'CLIENT', 'LIST', 'TYPE', type).catch(() => '')))
    return lists.flatMap(list => String(list).split('\n')).filter(line => line !== '' && !OWN_CLIENT.test(line)).length
  }

  /** What is missing until one server is the master for all Sentinels and the others are its replicas. */
  async unhealthy (): Promise<string[]> {
    const named = await Promise.all(this.#places.map(async ({ name, sentinel }) => ({ name, master: await masterOf(sentinel) })))
    const [master] = named.map(({ master }) => master)
    const differing = named.filter(one => one.master === undefined || one.master !== master)
    const roles = await Promise.all(this.#withServer().map(async ({ name, server }) => ({ name, is: await roleOf(server), should: master === `${server.address}:${server.port}` ? 'master' : `replica of ${master}` })))
    return [
      ...differing.map(one => `the Sentinel of ${one.name} has the master ${one.master}`),
      ...roles.filter(({ is, should }) => is !== should).map(({ name, is, should }) => `${name} is ${is}, and should be ${should}`),
      ...(await Promise.all(this.#places.map(async ({ name, sentinel }) => await isWhole(sentinel, this.#places.length, roles.length) ? [] : [`the Sentinel of ${name} misses others`]))).flat()
    ]
  }

  /** Names of the keys that never expire, on the master. */
  async lastingKeys (): Promise<string[]> {
    const master = await this.master()
    if (master === undefined) return ['unknown: there is no master']
    const { address, port } = this.server(master)
    return await lastingKeysOf({ address, port })
  }

  /** The changes of the master, from the logs of the Sentinels. */
  failovers (): Failover[] {
    return this.#places.flatMap(({ name, logs }) => failoversIn(readFileSync(join(logs, `${name}-sentinel.log`), 'latin1'))).toSorted((one, other) => one.ended - other.ended)
  }

  /** When writes may be lost, because they are acknowledged before a replica has them: from the last sign of life of a master until it has no replica. */
  losses (): LossWindows {
    const windows = new LossWindows()
    for (const { began, ended } of this.failovers()) {
      windows.add(began - DOWN_AFTER_MS - PING_INTERVAL_MS - performance.timeOrigin, ended + MAX_LAG_S * 1_000 - performance.timeOrigin)
    }
    return windows
  }

  async remove (): Promise<void> {
    await Promise.all([...this.#sentinels.values()].map(async sentinel => {
      await sentinel.stop('SIGKILL')
      rmSync(sentinel.folder, { recursive: true, force: true })
    }))
    await Promise.all([...this.#servers.values()].map(server => server.remove()))
  }

  async #startServer (path: string, name: string, place: ServerHost, master: ServerHost, logs: string, { minReplicas }: GroupSettings): Promise<void> {
    const args = [
      '--protected-mode', 'no', '--logfile', join(logs, `${name}.log`), '--repl-diskless-sync-delay', '0',
      '--repl-ping-replica-period', String(PING_INTERVAL_MS / 1_000), '--repl-timeout', String(REPLICA_TIMEOUT_S),
      '--min-replicas-to-write', String(minReplicas), '--min-replicas-max-lag', String(MAX_LAG_S)
    ]
    this.#servers.set(name, await RedisServer.start(path, args, place))
    if (place !== master) await ask(place, 'REPLICAOF', master.address, String(master.port))
    await ask(place, 'CONFIG', 'REWRITE')
  }

  async #askForFailover (): Promise<string> {
    const { sentinel } = this.#places.at(-1)!
    return await ask(sentinel, 'SENTINEL', 'FAILOVER', MASTER_NAME).then(String, error => (error as Error).message)
  }

  #withServer (): Array<{ name: string, server: ServerHost }> {
    return this.#places.flatMap(({ name, server }) => server ? [{ name, server }] : [])
  }
}

/** Runs one command over a connection of its own. */
async function ask ({ address, port }: Pick<ServerHost, 'address' | 'port'>, command: string, ...args: string[]): Promise<unknown> {
  return await withClient(address, port, client => client.call(command, ...args))
}

async function withClient<T> (host: string, port: number, use: (client: Redis) => Promise<T>): Promise<T> {
  const client = new Redis({ host, port, lazyConnect: true, enableReadyCheck: false, connectTimeout: COMMAND_TIMEOUT_MS, commandTimeout: COMMAND_TIMEOUT_MS, retryStrategy: () => null })
  client.on('error', () => {}) // the command rejects with it
  try {
    await client.connect()
    return await use(client)
  } finally {
    client.disconnect()
  }
}

async function masterOf (sentinel: ServerHost): Promise<string | undefined> {
  const address = await ask(sentinel, 'SENTINEL', 'GET-MASTER-ADDR-BY-NAME', MASTER_NAME).catch(() => undefined)
  return Array.isArray(address) ? address.join(':') : undefined
}

/** `master`, or the master that a replica has copied and follows. */
async function roleOf (server: ServerHost): Promise<string> {
  const role = await ask(server, 'ROLE').catch(() => ['silent']) as unknown[]
  const [kind, host, port, state] = role
  if (kind !== 'slave') return String(kind)
  return state === 'connected' ? `replica of ${host}:${port}` : `a replica that is ${state}`
}

/** Whether a Sentinel sees all others and all replicas, and none of them as down. */
async function isWhole (sentinel: ServerHost, sentinels: number, servers: number): Promise<boolean> {
  try {
    const master = await ask(sentinel, 'SENTINEL', 'MASTER', MASTER_NAME)
    const replicas = await ask(sentinel, 'SENTINEL', 'REPLICAS', MASTER_NAME) as unknown[]
    const [state, ...others] = [master, ...replicas].map(fields => fieldsOf(fields as string[]))
    return state!.flags === 'master' && state!['num-other-sentinels'] === String(sentinels - 1) && others.length === servers - 1 && others.every(({ flags }) => flags === 'slave')
  } catch {
    return false
  }
}

function fieldsOf (list: string[]): Record<string, string> {
  return Object.fromEntries(list.flatMap((name, at) => at % 2 === 0 ? [[name, list[at + 1]!]] : []))
}

/** Names of the keys without a time to live. */
export async function lastingKeysOf ({ address, port }: { address: string, port: number }): Promise<string[]> {
  return await withClient(address, port, async client => {
    const keys: string[] = await client.keys('*')
    const times = await Promise.all(keys.map(key => client.pttl(key)))
    return keys.filter((_, at) => times[at] === -1)
  })
}
