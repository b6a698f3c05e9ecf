import Fastify, { type FastifyInstance } from 'fastify'
import devices from '../../lib/index.ts'
import { nats } from '../../lib/nats/index.ts'
import { serve, type HostedApp } from './host.ts'

export interface NodeSettings {
  name: string
  /** Its own NATS server first. */
  servers: string[]
  log: string
}

/** A gateway node with logs and the default pings. Its reconnect delays are shorter, so that the judge need not wait for devices. */
async function prepare ({ name, servers, log }: NodeSettings): Promise<HostedApp> {
  const app = Fastify({ routerOptions: { maxParamLength: 128 }, logger: { level: 'info', file: log } }) as FastifyInstance
  const cluster = await nats({ servers, replicas: 3, noRandomize: true })
  await app.register(devices, { node: name, ...cluster, authenticate: false, guard: false, retrySpread: 2_000 })
  return { app, commands: {} }
}

if (process.send && process.argv[2] === 'serve') await serve(prepare)
