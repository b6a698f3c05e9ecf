import type { Redis, RedisOptions as ClientOptions } from 'ioredis'
import { checkPrefix } from '../cluster/prefix.ts'
import { checkOptionNames } from '../protocol/option-names.ts'

/** Options of `ioredis` that decide how commands are queued, retried and parsed: the link decides that itself. */
type OwnOption =
  | 'autoPipeliningIgnoredCommands' | 'autoResendUnfulfilledCommands' | 'autoResubscribe' | 'blockingTimeout' | 'blockingTimeoutGrace' | 'commandQueue'
  | 'commandTimeout' | 'enableAutoPipelining' | 'enableOfflineQueue' | 'enableReadyCheck' | 'himportFieldsets' | 'keyPrefix' | 'lazyConnect'
  | 'maxLoadingRetryTime' | 'maxRetriesPerRequest' | 'monitor' | 'offlineQueue' | 'preferredSlaves' | 'readOnly' | 'reconnectOnError' | 'replyMapping'
  | 'retryStrategy' | 'role' | 'scripts' | 'showFriendlyErrorStack' | 'stringNumbers'

/** How to reach Redis. The other options of `ioredis` are passed on (`host`, `port`, `username`, `password`, `db`, `tls`, `sentinels`, `name`, ...). */
export interface LinkOptions extends Omit<ClientOptions, OwnOption> {
  /**
   * Address of the Redis server: `redis://`, or `rediss://` for TLS. Its members take precedence over the options of `ioredis`.
   * @default undefined
   */
  url?: string
  /**
   * An existing client of `ioredis`. Its settings are used for the two connections of this node; the client itself is neither used nor closed.
   * @default undefined
   */
  client?: Redis
  /**
   * Prefix of all keys and channels. Clusters with different prefixes share Redis without seeing each other.
   * @default 'devices'
   */
  prefix?: string
  /**
   * Start even if Redis is unreachable, and keep trying to connect.
   * @default false
   */
  startWithout?: boolean
}

/** The compiler reports an option that the client of Redis has and this list lacks. */
const known = {
  url: true,
  client: true,
  prefix: true,
  startWithout: true,
  Connector: true,
  clientInfoTag: true,
  connectTimeout: true,
  connectionName: true,
  db: true,
  disableClientInfo: true,
  disconnectTimeout: true,
  enableTLSForSentinelMode: true,
  failoverDetector: true,
  family: true,
  host: true,
  keepAlive: true,
  name: true,
  natMap: true,
  noDelay: true,
  password: true,
  path: true,
  port: true,
  protocol: true,
  sentinelCommandTimeout: true,
  sentinelMaxConnections: true,
  sentinelPassword: true,
  sentinelReconnectStrategy: true,
  sentinelRetryStrategy: true,
  sentinelTLS: true,
  sentinelUsername: true,
  sentinels: true,
  socketTimeout: true,
  tls: true,
  updateSentinels: true,
  username: true
} satisfies Record<keyof LinkOptions, true>

/** Throws for an unknown option, because the client of Redis ignores it, and for a database that is no number, because its error would end the process. */
export function checkOptions (options: LinkOptions): void {
  checkOptionNames('fastify-devices/redis', options, known)
  const { prefix = 'devices', url = '', db, client } = options
  const { url: _url, client: _client, prefix: _prefix, startWithout: _startWithout, ...ofClient } = known
  const query = Object.fromEntries(new URLSearchParams(url.split('?')[1]))
  checkOptionNames('The query of the `url` of fastify-devices/redis', query, ofClient)
  const inPath = URL.canParse(url) ? new URL(url).pathname.slice(1) : ''
  const areNumbers = [inPath, query.db, db, client?.options?.db].every((database = '') => /^\d*$/.test(String(database)))
  if (!areNumbers) throw new Error('fastify-devices: `db`, or the database in the `url` of Redis is no number')
  checkPrefix(prefix)
}
