import { execFile, spawn } from 'node:child_process'
import { once } from 'node:events'
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { promisify } from 'node:util'
import Fastify, { type FastifyInstance } from 'fastify'
import t, { type Test } from 'tap'
import devices from '../lib/index.ts'
import { counters, durations, gauges } from '../lib/observe/metrics/families.ts'
import metrics from '../lib/observe/metrics/index.ts'
import { MetricsOptionsSchema } from '../lib/observe/metrics/options.ts'
import { freePort } from './campaigns/port.ts'
import { withProgram } from './programs.ts'
import { root } from './root.ts'
import { connect, open, until } from './support.ts'

const run = promisify(execFile)
const read = (path: string) => readFileSync(join(root, path), 'utf8')

const families = [...gauges({} as never), ...counters({} as never), ...durations({} as never, new Set()).families]

async function serve (t: Pick<Test, 'teardown'>): Promise<FastifyInstance & { url: string }> {
  const app = Fastify() as FastifyInstance
  await app.register(devices)
  await app.register(metrics, { path: '/metrics' })
  return await open(t, app)
}

/** A folder that is removed when the test ends. */
function folder (t: Pick<Test, 'teardown'>): string {
  const path = mkdtempSync(join(tmpdir(), 'prometheus-'))
  t.teardown(() => rmSync(path, { recursive: true, force: true }))
  return path
}

withProgram(t, 'promtool', 'promtool finds nothing to criticise in the metrics', async (t, promtool) => {
  const app = await serve(t)
  const device = await connect(app.url, 'd')
  await device.ask('ping')
  await app.devices.send('away', 1, { ttl: 60_000 })
  await app.devices.call('d', 'none', {}, { timeout: 10 }).catch(() => {})
  const text = await (await fetch(`${app.url}/metrics`)).text()
  t.match(text, /^devices_call_duration_seconds_bucket/m)
  t.strictSame(await checkMetrics(promtool, text), { code: 0, said: '' })
  t.not((await checkMetrics(promtool, 'devices_bytes 1\n')).said, '', 'it would say what is wrong')
})

async function checkMetrics (promtool: string, text: string): Promise<{ code: number, said: string }> {
  const program = spawn(promtool, ['check', 'metrics'])
  let said = ''
  for (const stream of [program.stdout, program.stderr]) stream.on('data', chunk => { said += chunk })
  program.stdin.end(text)
  const [code] = await once(program, 'close')
  return { code, said }
}

withProgram(t, 'promtool', 'the alert rules are valid, and each alert fires when it should', async (t, promtool) => {
  await t.resolves(run(promtool, ['check', 'rules', '--lint-fatal', join(root, 'docs/metrics/alerts.yml')]))
  await t.resolves(run(promtool, ['test', 'rules', 'alerts.yml'], { cwd: join(root, 'test') }))
  const tested = [...read('test/alerts.yml').matchAll(/alertname: (\w+)/g)].map(([, name]) => name)
  t.strictSame(new Set(tested), new Set(alerts().map(({ name }) => name)))
})

withProgram(t, 'prometheus', 'Prometheus scrapes an application and answers queries', async (t, prometheus) => {
  const app = await serve(t)
  for (const id of ['a', 'b']) await connect(app.url, id)
  await app.devices.send('away', 1, { ttl: 60_000 })
  const path = folder(t)
  const config = {
    global: { scrape_interval: '1s' },
    rule_files: [join(root, 'docs/metrics/alerts.yml')],
    scrape_configs: [{ job_name: 'gateway', static_configs: [{ targets: [new URL(app.url).host] }] }]
  }
  writeFileSync(join(path, 'prometheus.yml'), JSON.stringify(config)) // JSON is YAML
  const address = `127.0.0.1:${await freePort()}`
  const program = spawn(prometheus, [`--config.file=${join(path, 'prometheus.yml')}`, `--storage.tsdb.path=${join(path, 'data')}`, `--web.listen-address=${address}`], { stdio: 'ignore' })
  const exited = once(program, 'exit')
  t.teardown(async () => {
    program.kill('SIGKILL')
    await exited
  })

  /** Undefined while there is no answer. */
  const ask = async (query: string): Promise<string | undefined> => {
    const answer: any = await fetch(`http://${address}/api/v1/query?query=${encodeURIComponent(query)}`).then(response => response.json()).catch(() => undefined)
    return answer?.data?.result[0]?.value[1]
  }
  await until(async () => await ask('sum by (transport) (devices_connected{job="gateway"})') === '2')
  t.equal(await ask('devices_letters_waiting'), '1')
  t.equal(await ask('devices_letters_total{outcome="queued"}'), '1')
  t.equal(await ask('devices_backplane_up'), '1')
  const rules: any = await (await fetch(`http://${address}/api/v1/rules`)).json()
  t.strictSame(rules.data.groups.flatMap((group: any) => group.rules.map(({ name }: any) => name)), alerts().map(({ name }) => name))
})

interface Alert {
  name: string
  expr: string
  text: string
}

function alerts (): Alert[] {
  return read('docs/metrics/alerts.yml').split('- alert: ').slice(1).map(text => ({
    name: /^\w+/.exec(text)![0], expr: /^ +expr: (.*)$/m.exec(text)![1]!, text
  }))
}

t.test('every alert says what has happened and what to do, and docs/metrics.md lists it', async t => {
  for (const { name, text } of alerts()) {
    t.match(text, /labels: \{ severity: (warning|critical) \}/, name)
    t.match(text, /^ +summary: ".{20,}"$/m, name)
    t.match(text, /^ +description: ".{60,}"$/m, name)
  }
  const listed = [...read('docs/metrics.md').matchAll(/^\| `(Devices\w+)` \|/gm)].map(([, name]) => name)
  t.strictSame(listed, alerts().map(({ name }) => name))
})

t.test('docs/metrics.md lists every family, with its type and its labels', async t => {
  const rows = [...read('docs/metrics.md').matchAll(/^\| `(devices_\w+)` \| (\w+) \| ?(.*?) \| (.*) \|$/gm)].map(row => row.slice(1))
  t.strictSame(rows, families.map(({ name, type, labelNames, help }) => [name, type, labelNames.map(label => `\`${label}\``).join(' '), help]))
})

t.test('docs/metrics.md lists every option, with its default and its description', async t => {
  const [table] = /^\| option \|[^]*?\n\n/m.exec(read('docs/metrics.md'))!
  const rows = [...table.matchAll(/^\| `(\w+)` \| ?(.*?) \| (.*) \|$/gm)].map(row => row.slice(1))
  t.strictSame(rows, Object.entries(MetricsOptionsSchema.properties).map(([name, { default: value, description }]) => [name, value === undefined ? '' : `\`${JSON.stringify(value)}\``, description]))
})

t.test('the alerts and the dashboard use only families and labels that exist', async t => {
  const dashboard = JSON.parse(read('docs/metrics/dashboard.json'))
  const panels: string[] = dashboard.panels.flatMap(({ targets }: any) => targets.map(({ expr }: any) => expr))
  const variables: string[] = dashboard.templating.list.flatMap(({ definition }: any) => definition ?? [])
  const queries = [...panels, ...variables, ...alerts().map(({ expr }) => expr)]
  for (const query of queries) t.strictSame(unknownIn(query), [], query)
  t.strictSame(unknownIn('sum by (deviceId) (devices_connected{method="a"}) + devices_gone + devices_bytes_total_sum'), ['devices_gone', 'devices_bytes_total_sum', 'method', 'deviceId'])
  const used = new Set(panels.flatMap(query => names(query).map(baseOf)))
  t.strictSame(families.filter(({ name }) => !used.has(name)).map(({ name }) => name), [], 'the dashboard shows every family')
})

/** Prometheus adds these; `le` is that of the buckets of a histogram. */
const targetLabels = ['job', 'instance']

function names (query: string): string[] {
  return query.match(/\bdevices_\w+/g) ?? []
}

function baseOf (name: string): string {
  const base = name.replace(/_(bucket|sum|count)$/, '')
  return families.find(family => family.name === base)?.type === 'histogram' ? base : name
}

/** The families and labels of a query that do not exist. */
function unknownIn (query: string): string[] {
  const used = names(query)
  const labelsOf = (name: string) => [...families.find(family => family.name === baseOf(name))?.labelNames ?? [], ...(name.endsWith('_bucket') ? ['le'] : []), ...targetLabels]
  const matchers = [...query.matchAll(/\b(devices_\w+)\{([^}]*)\}/g)]
    .flatMap(([, name, text]) => [...text!.matchAll(/(\w+) *(?:=~|!~|!=|=)/g)].map(([, label]) => label!).filter(label => !labelsOf(name!).includes(label)))
  const groupings = [...query.matchAll(/\b(?:by|on) \(([^)]*)\)/g)].flatMap(([, list]) => list!.split(/, */))
  return [
    ...used.filter(name => !families.some(family => family.name === baseOf(name))),
    ...matchers,
    ...groupings.filter(label => !used.some(name => labelsOf(name).includes(label)))
  ]
}
