import type { FastifyInstance, FastifyPluginAsync } from 'fastify'
import { Failure } from '../../protocol/errors.ts'
import { counters, durations, gauges } from './families.ts'
import { RegisteredMetric } from './metric.ts'
import { addTo, metricsSettingsOf, type MetricsOptions, type MetricsRegistry } from './options.ts'

export type { MetricsOptions, MetricsRegistry } from './options.ts'

/** Metrics of the devices for Prometheus. Register it after `fastify-devices`. Without the option `registry` it needs `prom-client`. */
const metrics: FastifyPluginAsync<MetricsOptions> = async (app, options) => {
  const settings = metricsSettingsOf(options)
  if (!app.hasDecorator('devices')) throw new Error('fastify-devices/metrics: register fastify-devices first')
  const registry = settings.registry ?? await ownRegistry()
  const { families, observer } = durations(app.devices, new Set(settings.methods))
  const registered = [...gauges(app.devices), ...counters(app.devices), ...families].map(family => new RegisteredMetric(family))
  const names = registered.map(({ name }) => name)
  addTo(registry, registered)
  const stop = app.devices.observe(observer)
  app.addHook('onClose', async () => {
    stop()
    for (const name of names) registry.removeSingleMetric(name)
  })
  if (settings.path !== undefined) addRoute(app, registry, settings.path)
}

/** Loaded here only: with a registry of the application any library that has one will do. */
async function ownRegistry (): Promise<MetricsRegistry> {
  const { Registry } = await import('prom-client')
  return new Registry()
}

function addRoute (app: FastifyInstance, registry: MetricsRegistry, path: string): void {
  app.devices.protect(app, 'metrics')
  app.get(path, { schema: { hide: true } as object }, async (request, reply) => {
    try {
      const text = await registry.metrics()
      return await reply.type(registry.contentType).send(text)
    } catch (error) {
      request.log.error({ err: error }, 'metrics could not be read')
      throw new Failure('internal')
    }
  })
}

export default metrics
