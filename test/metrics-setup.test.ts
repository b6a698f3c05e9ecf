import { execFile } from 'node:child_process'
import { join } from 'node:path'
import { promisify } from 'node:util'
import Fastify, { type FastifyInstance } from 'fastify'
import { Counter, Registry, type OpenMetricsContentType } from 'prom-client'
import t, { type Test } from 'tap'
import devices from '../lib/index.ts'
import { Histogram } from '../lib/observe/metrics/histogram.ts'
import metrics, { type MetricsOptions, type MetricsRegistry } from '../lib/observe/metrics/index.ts'
import { family, valuesIn } from './exposition.ts'
import { fakeLog, type LogLine } from './fakes.ts'
import { root } from './root.ts'

async function host (t: Pick<Test, 'teardown'>, own: MetricsOptions, loggerInstance?: object): Promise<FastifyInstance> {
  const app = Fastify({ ...loggerInstance && { loggerInstance } } as object) as FastifyInstance
  t.teardown(() => app.close())
  await app.register(devices)
  await app.register(metrics, own)
  await app.ready()
  return app
}

t.test('a registry of the application has its own metrics and those of the devices, until the application closes', async t => {
  const registry = new Registry()
  const counter = new Counter({ name: 'orders_total', help: 'Orders.', registers: [registry] })
  counter.inc(3)
  for (let start = 0; start < 2; start++) {
    const app = await host(t, { registry })
    t.equal((await app.inject('/metrics')).statusCode, 404, 'there is no route without `path`')
    t.match(valuesIn(await registry.metrics()), { orders_total: 3, devices_admissions_total: 0, devices_backplane_up: 1 })
    await app.close()
    t.strictSame(valuesIn(await registry.metrics()), { orders_total: 3 })
  }
})

t.test('a reset of the registry does not reset the counters of the devices', async t => {
  const registry = new Registry()
  const app = await host(t, { registry })
  await app.devices.send('d', 1, { ttl: 60_000 })
  registry.resetMetrics()
  t.equal(family(await registry.metrics(), 'devices_letters_total').queued, 1)
})

t.test('an OpenMetrics registry gets the same values, and default labels apply to them', async t => {
  const registry = new Registry<OpenMetricsContentType>()
  registry.setContentType(Registry.OPENMETRICS_CONTENT_TYPE)
  registry.setDefaultLabels({ site: 'north' })
  const app = await host(t, { registry, path: '/metrics' })
  await app.devices.send('d', 1, { ttl: 60_000 })
  for (let scrapes = 0; scrapes < 2; scrapes++) {
    const { body, headers } = await app.inject('/metrics')
    t.equal(headers['content-type'], 'application/openmetrics-text; version=1.0.0; charset=utf-8')
    t.match(valuesIn(body), { 'devices_letters_total{outcome="queued",site="north"}': 1, 'devices_pong_seconds_count{site="north"}': 0 })
    t.ok(body.endsWith('# EOF\n'))
  }
  await app.close()
  t.strictSame(valuesIn(await registry.metrics()), {})
})

t.test('a registry of another library that has the same methods gets the same metrics', async t => {
  const found = new Map<string, any>()
  const registry: MetricsRegistry = {
    contentType: 'text/plain',
    registerMetric: metric => { found.set(metric.name, metric) },
    getSingleMetric: name => found.get(name),
    removeSingleMetric: name => { found.delete(name) },
    metrics: async () => JSON.stringify(await Promise.all([...found.values()].map(metric => metric.get())))
  }
  const app = await host(t, { registry, path: '/metrics' })
  const all = (await app.inject('/metrics')).json()
  t.equal(all.length, 12)
  t.match(all.find(({ name }: { name: string }) => name === 'devices_backplane_up'), { type: 'gauge', aggregator: 'min', help: String, values: [{ labels: {}, value: 1 }] })
  t.match(all.find(({ name }: { name: string }) => name === 'devices_bytes_total'), {
    type: 'counter', aggregator: 'sum', values: [{ labels: { direction: 'in' }, value: 0 }, { labels: { direction: 'out' }, value: 0 }]
  })
})

t.test('a duration is counted in the first bucket that it fits, and beyond the last one in `+Inf` only', async t => {
  const histogram = new Histogram({ name: 'h', help: 'H.', labelNames: ['l'], bounds: [1, 2] })
  t.strictSame(histogram.samples(), [], 'without labels that were seen there is nothing')
  for (const seconds of [0, 1, 1.5, 3]) histogram.observe({ l: 'a' }, seconds)
  t.strictSame(histogram.samples(), [
    { metricName: 'h_bucket', labels: { le: 1, l: 'a' }, value: 2 },
    { metricName: 'h_bucket', labels: { le: 2, l: 'a' }, value: 3 },
    { metricName: 'h_bucket', labels: { le: '+Inf', l: 'a' }, value: 4 },
    { metricName: 'h_sum', labels: { l: 'a' }, value: 5.5 },
    { metricName: 'h_count', labels: { l: 'a' }, value: 4 }
  ])
})

t.test('a registry that fails is an internal error, and the log says why', async t => {
  const registry = new Registry()
  const log = fakeLog()
  const app = await host(t, { registry, path: '/metrics' }, log)
  t.equal((await app.inject('/metrics')).statusCode, 200)
  registry.registerMetric(new Counter({ name: 'broken_total', help: 'Broken.', registers: [], collect () { throw new Error('secret') } }))
  const answer = await app.inject('/metrics')
  t.strictSame([answer.statusCode, answer.json().code], [500, 'INTERNAL_ERROR'])
  t.notMatch(answer.body, 'secret')
  t.match(log.lines.find(({ words }: LogLine) => words === 'metrics could not be read'), { level: 'error', fields: { err: { message: 'secret' } } })
})

t.test('a wrong option is named', async t => {
  const failure = async (own: object) => await host(t, own as MetricsOptions).then(() => 'none', error => error.message)
  t.match(await failure({ pth: '/metrics' }), 'fastify-devices/metrics has no option "pth"')
  t.match(await failure({ path: 'metrics' }), 'the option "path" is wrong')
  t.match(await failure({ path: '/metrics', methods: 'all' }), 'the option "methods" is wrong')
  t.match(await failure({}), 'needs one of the options "registry" and "path"')
  t.match(await failure({ methods: ['a'], prefix: '/ops' }), 'needs one of the options "registry" and "path"')
  t.match(await failure({ registry: 7 }), 'the option "registry" is wrong')
  t.match(await failure({ registry: {} }), 'the option "registry" is wrong: it has no method "registerMetric"')
})

t.test('a registry that has the metrics already is refused and keeps them', async t => {
  const registry = new Registry()
  const app = await host(t, { registry })
  const taken = /^fastify-devices\/metrics: the registry has a metric "devices_connected" already/
  await t.rejects(host(t, { registry }), { message: taken })
  t.equal(Object.keys(valuesIn(await registry.metrics())).filter(name => name === 'devices_backplane_up').length, 1)

  const twice = Fastify()
  t.teardown(() => twice.close())
  await twice.register(devices)
  const own = new Registry()
  await twice.register(metrics, { registry: own })
  await t.rejects(async () => await twice.register(metrics, { registry: own }), { message: taken })
  t.ok(app)
})

t.test('without devices there are no metrics', async t => {
  await t.rejects(async () => await Fastify().register(metrics, { path: '/metrics' }), { message: /register fastify-devices first/ })
})

t.test('prom-client is loaded only where the metrics need a registry of their own', async t => {
  const program = `
    import { createRequire } from 'node:module'
    const { cache } = createRequire(import.meta.url)
    const isLoaded = () => Object.keys(cache).some(path => path.includes('prom-client'))
    const loaded = []
    for (const name of ['index', 'observe/metrics/index']) {
      await import('${join(root, 'dist/lib')}/' + name + '.js')
      loaded.push(isLoaded())
    }
    const { default: Fastify } = await import('fastify')
    const app = Fastify()
    await app.register((await import('${join(root, 'dist/lib/index.js')}')).default)
    await app.register((await import('${join(root, 'dist/lib/observe/metrics/index.js')}')).default, { path: '/metrics' })
    loaded.push(isLoaded())
    await app.close()
    console.log(JSON.stringify(loaded))`
  const { NODE_OPTIONS: _, ...env } = process.env
  const { stdout } = await promisify(execFile)(process.execPath, ['--input-type=module', '-e', program], { cwd: root, env })
  t.strictSame(JSON.parse(stdout), [false, false, true])
})
