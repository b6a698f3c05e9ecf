import Fastify, { type FastifyInstance } from 'fastify'
import devices from '../../lib/index.ts'
import { openEngine, type EngineAccess } from './engine.ts'
import { serve, type HostedApp } from './host.ts'

export interface NodeSettings {
  name: string
  access: EngineAccess
  log: string
}

/** A gateway node with logs and the default pings. Its reconnect delays are shorter, so that the judge need not wait for devices. */
async function prepare ({ name, access, log }: NodeSettings): Promise<HostedApp> {
  const app = Fastify({ routerOptions: { maxParamLength: 128 }, logger: { level: 'info', file: log } }) as FastifyInstance
  await app.register(devices, { node: name, ...await openEngine(access), authenticate: false, guard: false, retrySpread: 2_000 })
  return { app, commands: {} }
}

if (process.send && process.argv[2] === 'serve') await serve(prepare)
