import { rmSync } from 'node:fs'
import { join } from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import { jetstreamManager, type StreamState } from '@nats-io/jetstream'
import { connect } from '@nats-io/transport-node'
import { Redis } from 'ioredis'
import { NatsServer } from '../test/campaigns/nats.ts'
import { RedisServer } from '../test/campaigns/redis.ts'

/** How a node reaches the broker. */
export type BrokerAddress = { nats: string } | { redis: string }

/** What it has of the owners of devices. */
export interface OwnerRecords {
  count: number
  bytes: number
}

/** The server between the nodes of a cluster. */
export interface Broker {
  readonly pid: number
  readonly address: BrokerAddress
  /** Restarts it, with or without its stored data; resolves once it answers. */
  restart (options: { empty: boolean }): Promise<void>
  owners (): Promise<OwnerRecords>
  remove (): Promise<void>
}

/** Long enough for every node to notice that the broker is down. */
const OUTAGE_MS = 500

export async function natsBroker (path: string): Promise<Broker> {
  const server = await NatsServer.start(path)
  return {
    get pid () { return server.pid },
    address: { nats: server.servers },
    restart: ({ empty }) => restart(server, empty ? join(server.folder, 'jetstream') : undefined),
    owners: () => natsOwners(server.servers),
    remove: () => server.remove()
  }
}

/** With the setting that most have who keep letters in Redis: it syncs its file once a second. NATS syncs less often. */
export async function redisBroker (path: string): Promise<Broker> {
  return await redisBrokerWith(path, 'everysec')
}

/** It answers a write only when its file is synced, as the folder of letters on disk is. */
export async function syncedRedisBroker (path: string): Promise<Broker> {
  return await redisBrokerWith(path, 'always')
}

async function redisBrokerWith (path: string, appendfsync: 'everysec' | 'always'): Promise<Broker> {
  const server = await RedisServer.start(path, ['--appendfsync', appendfsync])
  return {
    get pid () { return server.pid },
    address: { redis: server.url },
    restart: ({ empty }) => restart(server, empty ? join(server.folder, 'appendonlydir') : undefined),
    owners: () => redisOwners(server.url),
    remove: () => server.remove()
  }
}

async function restart (server: NatsServer | RedisServer, emptied: string | undefined): Promise<void> {
  await server.stop()
  if (emptied !== undefined) rmSync(emptied, { recursive: true })
  await sleep(OUTAGE_MS)
  await server.start()
}

async function natsOwners (servers: string): Promise<OwnerRecords> {
  const connection = await connect({ servers })
  try {
    const manager = await jetstreamManager(connection)
    const { messages, bytes } = await manager.streams.info('KV_devices_devices').then(({ state }) => state, () => ({ messages: 0, bytes: 0 }) as StreamState)
    return { count: messages, bytes }
  } finally {
    await connection.close()
  }
}

async function redisOwners (url: string): Promise<OwnerRecords> {
  const client = new Redis(url)
  try {
    const sizes = await Promise.all(['owners', 'index'].map(key => client.memory('USAGE', `devices:${key}`, 'SAMPLES', 0)))
    return { count: await client.hlen('devices:owners'), bytes: sizes.reduce<number>((sum, size) => sum + (size ?? 0), 0) }
  } finally {
    client.disconnect()
  }
}
