import type { FastifyInstance } from 'fastify'
import metrics from '../../observe/metrics/index.ts'

/** Adds `GET /metrics`, with metrics of the process. `prom-client` is an optional peer: without it there is no such route. */
export async function addMetrics (app: FastifyInstance, load = () => import('prom-client')): Promise<void> {
  const client = await load().catch((error: NodeJS.ErrnoException) => {
    if (error.code !== 'ERR_MODULE_NOT_FOUND') throw error
    return undefined
  })
  if (!client) return app.log.info('prom-client is not installed, so there is no GET /metrics')
  const registry = new client.Registry()
  client.collectDefaultMetrics({ register: registry })
  await app.register(metrics, { registry, path: '/metrics' })
}
