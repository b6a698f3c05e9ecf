import { execFile } from 'node:child_process'
import { existsSync, readFileSync } from 'node:fs'
import { dirname, join } from 'node:path'
import { PassThrough } from 'node:stream'
import { promisify } from 'node:util'
import Fastify from 'fastify'
import t from 'tap'
import { parse, parseAllDocuments } from 'yaml'
import { serve } from '../lib/cli/commands/serve.ts'
import { loadConfig } from '../lib/cli/serve/config.ts'
import { createGateway } from '../lib/cli/serve/gateway.ts'
import { OptionsSchema } from '../lib/gateway/options.ts'
import devices from '../lib/index.ts'
import { withProgram } from './programs.ts'
import { root } from './root.ts'

const run = promisify(execFile)
const folder = join(root, 'docs/deploy')
const read = (name: string) => readFileSync(join(folder, name), 'utf8')
const compose = parse(read('compose.yml'), { merge: true })
const [deployment, budget, service] = parseAllDocuments(read('kubernetes.yml')).map(document => document.toJS()) as [any, any, any]
const [container] = deployment.spec.template.spec.containers
const unit = read('fastify-devices@.service')
const nginx = read('nginx.conf')
const caddy = read('Caddyfile')
const { version, peerDependencies } = JSON.parse(readFileSync(join(root, 'package.json'), 'utf8'))
const defaults = OptionsSchema.properties as Record<string, { default?: any }>

/** The text that the first group of a pattern matches. */
function found (text: string, pattern: RegExp): string {
  const [, group] = pattern.exec(text) ?? []
  if (group === undefined) throw new Error(`${pattern} matches nothing`)
  return group
}

/** The names and values of lines `NAME=value`. */
function variables (text: string): Record<string, string> {
  return Object.fromEntries([...text.matchAll(/^([A-Z_]+)=(.*)$/gm)].map(([, name, value]) => [name, value]))
}

const environments: Record<string, Record<string, string>> = {
  Dockerfile: Object.fromEntries(found(read('Dockerfile'), /^ENV (.*)$/m).split(' ').map(pair => pair.split('='))),
  'compose.yml': compose['x-gateway'].environment,
  'kubernetes.yml': Object.fromEntries(container.env.map(({ name, value }: any) => [name, value])),
  'fastify-devices@.service': Object.fromEntries(found(unit, /^Environment=(.*)$/m).split(' ').map(pair => pair.split('='))),
  'gateway.env.example': variables(read('gateway.env.example'))
}

t.test('every variable that a file sets is one that the gateway reads', async t => {
  const known = new Set(['NODE_ENV', ...Object.values(serve.flags).map(({ env }) => env)])
  for (const [name, environment] of Object.entries(environments)) t.strictSame(Object.keys(environment).filter(variable => !known.has(variable)), [], name)
})

t.test('a gateway is killed only after the delay and the drain', async t => {
  const needed = (name: string) => Number(environments[name]!.DRAIN_DELAY) + defaults.drainTimeout!.default / 1_000
  t.ok(Number(found(unit, /^TimeoutStopSec=(\d+)$/m)) > needed('gateway.env.example'))
  t.ok(Number.parseInt(compose['x-gateway'].stop_grace_period) > needed('compose.yml'))
  t.ok(deployment.spec.template.spec.terminationGracePeriodSeconds > needed('kubernetes.yml'))
  // readiness fails before the delay is over
  const { periodSeconds, failureThreshold } = container.readinessProbe
  t.ok(periodSeconds * failureThreshold < Number(environments['kubernetes.yml']!.DRAIN_DELAY))
  t.ok(Number(found(caddy, /health_interval (\d+)s/)) + Number(found(caddy, /health_timeout (\d+)s/)) < Number(environments['gateway.env.example']!.DRAIN_DELAY))
})

t.test('no file has a secret', async t => {
  t.strictSame(variables(read('env.example')), { TOKEN: '', GRAFANA_PASSWORD: '', COMPOSE_PROFILES: 'redis', REDIS_URL: 'redis://redis:6379' })
  t.equal(environments['gateway.env.example']!.TOKEN, '')
  t.match(environments['compose.yml']!.TOKEN, /^\$\{TOKEN:\?/)
  t.equal(environments['kubernetes.yml']!.TOKEN, undefined)
})

t.test('compose.yml starts the engine that .env names', async t => {
  const lines = read('env.example').replaceAll(/^#(?=[A-Z])/gm, '')
  const choices = [...lines.matchAll(/^COMPOSE_PROFILES=(.*)\n([A-Z_]+)=(?:redis:\/\/)?([^:]+):\d+$/gm)].map(([, ...choice]) => choice as [string, string, string])
  t.strictSame(choices.map(([profile, variable]) => [profile, variable]), [['redis', 'REDIS_URL'], ['nats', 'NATS_URL']])
  for (const [profile, variable, service] of choices) {
    t.strictSame(compose.services[service].profiles, [profile])
    t.equal(compose['x-gateway'].environment[variable], `\${${variable}:-}`)
    t.strictSame(compose['x-gateway'].depends_on[service], { condition: 'service_started', required: false })
  }
})

t.test('the files that compose.yml mounts exist', async t => {
  const mounted = Object.values<any>(compose.services).flatMap(({ volumes = [] }) => volumes).map(volume => volume.split(':')[0]).filter(source => source.startsWith('.'))
  t.ok(mounted.length > 5)
  // the certificates are the user's
  t.strictSame(mounted.filter(source => source !== './tls' && !existsSync(join(folder, source))), [])
})

t.test('all name the port of the gateway', async t => {
  const port = environments.Dockerfile!.PORT
  t.equal(found(read('Dockerfile'), /^EXPOSE (\d+)$/m), port)
  t.equal(String(container.ports[0].containerPort), port)
  t.strictSame(parse(read('prometheus.yml')).scrape_configs[0].static_configs[0].targets, [`gateway-1:${port}`, `gateway-2:${port}`])
  t.equal(read('nginx-compose/servers.conf'), `server gateway-1:${port}; # gateway-1\nserver gateway-2:${port}; # gateway-2\n`)
  t.ok(compose['x-gateway'].healthcheck.test.at(-1).includes(`127.0.0.1:${port}/readyz`))
  const ports = [...read('nginx-systemd/servers.conf').matchAll(/^server 127\.0\.0\.1:(\d+); # (\d+)$/gm)].map(([, port, name]) => [port, name])
  t.strictSame(ports, [['3001', '3001'], ['3002', '3002']])
  t.ok(caddy.includes('reverse_proxy 127.0.0.1:3001 127.0.0.1:3002 {'))
})

t.test('gateways believe the address of the proxy in front of them', async t => {
  t.equal(environments['compose.yml']!.TRUST_PROXY, compose.services.nginx.networks.inside.ipv4_address)
})

t.test('Kubernetes finds the gateways and asks the right probes', async t => {
  for (const { matchLabels } of [deployment.spec.selector, budget.spec.selector, { matchLabels: service.spec.selector }]) t.strictSame(matchLabels, deployment.spec.template.metadata.labels)
  t.equal(container.readinessProbe.httpGet.path, '/readyz')
  for (const probe of ['livenessProbe', 'startupProbe']) t.equal(container[probe].httpGet.path, '/healthz')
})

t.test('the Dockerfile installs the packages that the gateway needs, and runs node without a shell', async t => {
  const dockerfile = read('Dockerfile')
  t.ok(dockerfile.includes(`fastify-devices-${version}.tgz`))
  const installed = Object.fromEntries([...dockerfile.matchAll(/ (@?[a-z/-]+)@(\d+)(?= )/g)].map(([, name, major]) => [name, major]))
  t.strictSame(installed, Object.fromEntries(Object.keys(installed).map(name => [name, found(peerDependencies[name], /\^(\d+)\.[\d.]+$/)])))
  t.strictSame(Object.keys(installed).toSorted(), ['@nats-io/jetstream', '@nats-io/transport-node', 'classic-level', 'fastify', 'ioredis', 'prom-client'])
  t.match(dockerfile, /^ENTRYPOINT \["node", .*\]$/m)
  t.match(dockerfile, /^USER node$/m)
  t.ok(readFileSync(join(root, 'docs/deploy.md'), 'utf8').includes(found(dockerfile, /"\$PACKAGE" (.*?) \\$/m)), 'docs/deploy.md installs the same')
})

t.test('the proxies wait longer than the gateway, and keep idle connections for a shorter time', async t => {
  const { pingInterval, pongTimeout, maxTimeout, maxMessage } = defaults
  const location = (name: string) => found(nginx, new RegExp(`location ${name} \\{([^}]*)\\}`))
  t.ok(Number(found(location('~ \\^/ws\\S+'), /proxy_read_timeout (\d+)s/)) * 1_000 > pingInterval!.default * 1.1 + pongTimeout!.default)
  for (const rest of ['~ \\^/\\(devices\\S+', '= /messages']) t.ok(Number(found(location(rest), /proxy_read_timeout (\d+)s/)) * 1_000 > maxTimeout!.default)
  t.equal(Number(found(nginx, /client_max_body_size (\d+)k/)) * 1_024, maxMessage!.default)
  const { keepAliveTimeout } = Fastify().initialConfig
  t.ok(Number(found(nginx, /keepalive_timeout (\d+)s/)) * 1_000 < keepAliveTimeout!)
  t.ok(Number(found(caddy, /keepalive (\d+)s/)) * 1_000 < keepAliveTimeout!)
})

t.test('the proxies pass every route of the plugin', async t => {
  const routes = new Set<string>()
  const app = Fastify()
  app.addHook('onRoute', ({ path }) => { routes.add(path) })
  await app.register(devices)
  await app.ready()
  t.teardown(() => app.close())
  const inNginx = [...nginx.matchAll(/location (=|~) (\S+) \{/g)].map(([, kind, path]) => kind === '=' ? new RegExp(`^${path}$`) : new RegExp(path!))
  const inCaddy = [...caddy.matchAll(/^\t+(?:@public )?path (.*)$/gm)].flatMap(([, paths]) => paths!.split(' ')).map(path => new RegExp(`^${path.replaceAll('.', '\\.').replaceAll('*', '.*')}$`))
  for (const [name, patterns] of Object.entries({ inNginx, inCaddy })) t.strictSame([...routes].filter(route => !patterns.some(pattern => pattern.test(route))), [], name)
})

t.test('the gateway has the config, and serves metrics to callers with the token', async t => {
  const config = await loadConfig(join(folder, 'gateway.mjs'))
  const app = await createGateway({ token: 'open-sesame', config, signal: new AbortController().signal, log: { level: 'silent', stream: new PassThrough() } })
  t.teardown(() => app.close())
  t.equal((await app.inject('/metrics')).statusCode, 401)
  t.match((await app.inject({ url: '/metrics', headers: { authorization: 'Bearer open-sesame' } })).body, /^devices_backplane_up 1$/m)
})

withProgram(t, 'promtool', 'Prometheus accepts its configuration', async (t, promtool) => {
  const { rule_files: [rules], scrape_configs: [{ authorization: { credentials_file: credentials } }] } = parse(read('prometheus.yml'))
  const alerts = readFileSync(join(root, 'docs/metrics/alerts.yml'), 'utf8')
  const made = t.testdir({ [rules]: alerts, token: 'open-sesame', 'prometheus.yml': read('prometheus.yml').replace(credentials, 'token') })
  const { stdout } = await run(promtool, ['check', 'config', 'prometheus.yml'], { cwd: made })
  t.match(stdout, /SUCCESS: prometheus.yml is valid/)
  t.match(stdout, /SUCCESS: \d+ rules found/)
  const { source } = compose.services.prometheus.secrets[0]
  t.equal(credentials, `/run/secrets/${source ?? compose.services.prometheus.secrets[0]}`)
  t.ok(compose.services.prometheus.volumes.some((volume: string) => volume.includes(`:${dirname('/etc/prometheus/prometheus.yml')}/${rules}:`)))
})

withProgram(t, 'systemd-analyze', 'systemd accepts the unit', async (t, analyze) => {
  const { stderr } = await run(analyze, ['verify', join(folder, 'fastify-devices@.service')])
  t.notMatch(stderr, 'fastify-devices')
})
