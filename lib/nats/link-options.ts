import { checkPrefix } from '../cluster/prefix.ts'
import { checkOptionNames } from '../protocol/option-names.ts'
import type { NatsConnection, NodeConnectionOptions } from '@nats-io/transport-node'

/** How to reach NATS. All options of `connect` of `@nats-io/transport-node` are passed on (`user`, `pass`, `token`, `tls`, `authenticator`, ...). */
export interface LinkOptions extends NodeConnectionOptions {
  /**
   * Addresses of the NATS servers, as `host:port`.
   * @default '127.0.0.1:4222'
   */
  servers?: string | string[]
  /**
   * An existing connection, used in place of `servers` and never closed.
   * @default undefined
   */
  connection?: NatsConnection
  /**
   * Prefix of all subjects and stream names. Clusters with different prefixes share NATS without seeing each other.
   * @default 'devices'
   */
  prefix?: string
  /**
   * Number of NATS servers that keep each record.
   * @default 1
   */
  replicas?: number
  /**
   * Start even if NATS is unreachable, and keep trying to connect.
   * @default false
   */
  startWithout?: boolean
}

/** The compiler reports an option that the client of NATS has and this list lacks. */
const known = {
  connection: true,
  prefix: true,
  replicas: true,
  startWithout: true,
  authenticator: true,
  debug: true,
  ignoreAuthErrorAbort: true,
  ignoreClusterUpdates: true,
  inboxPrefix: true,
  maxPingOut: true,
  maxReconnectAttempts: true,
  name: true,
  noAsyncTraces: true,
  noEcho: true,
  noRandomize: true,
  pass: true,
  pedantic: true,
  pingInterval: true,
  port: true,
  reconnect: true,
  reconnectDelayHandler: true,
  reconnectJitter: true,
  reconnectJitterTLS: true,
  reconnectTimeWait: true,
  reconnectToServer: true,
  resolve: true,
  servers: true,
  timeout: true,
  tls: true,
  token: true,
  user: true,
  verbose: true,
  waitOnFirstConnect: true
} satisfies Record<keyof LinkOptions, true>

/** Throws for an unknown option, because the client of NATS ignores it. */
export function checkOptions (options: LinkOptions): void {
  checkOptionNames('fastify-devices/nats', options, known)
  const { prefix = 'devices' } = options
  checkPrefix(prefix)
}
