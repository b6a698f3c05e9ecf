import { execFile, spawn } from 'node:child_process'
import { once } from 'node:events'
import { readFileSync, writeFileSync } from 'node:fs'
import type { ClientRequest } from 'node:http'
import { Agent, request as requestOver } from 'node:https'
import { join } from 'node:path'
import { promisify } from 'node:util'
import t, { type Test } from 'tap'
import WebSocket from 'ws'
import { connect, type Client } from '../lib/client/index.ts'
import { natsServer } from './campaigns/nats.ts'
import { redisServer } from './campaigns/redis.ts'
import { freePort } from './campaigns/port.ts'
import { certificate } from './certificates.ts'
import { until } from './fakes.ts'
import { Gateway, replaced, restartPort, startProgram } from './gateways.ts'
import { programAt, withProgram } from './programs.ts'
import { root } from './root.ts'

const run = promisify(execFile)
const read = (name: string) => readFileSync(join(root, 'docs/deploy', name), 'utf8')
const TOKEN = 'a-token-of-the-test'
const ca = certificate('ca.pem')

interface RequestSettings {
  headers?: Record<string, string>
  localAddress?: string
}

interface Answer {
  status: number
  body: any
}

/** A request over a connection of its own: a proxy closes idle connections when it reloads, and a client may be about to use them. */
function open (port: number, method: string, path: string, { headers = {}, ...options }: RequestSettings = {}): ClientRequest {
  return requestOver({
    host: '127.0.0.1', port, method, path, ca, servername: 'localhost', agent: new Agent({ keepAlive: false }),
    headers: { host: `localhost:${port}`, authorization: `Bearer ${TOKEN}`, ...headers }, ...options
  })
}

async function send (port: number, method: string, path: string, body?: unknown, { headers = {}, ...options }: RequestSettings = {}): Promise<Answer> {
  const text = typeof body === 'string' ? body : JSON.stringify(body)
  const request = open(port, method, path, {
    headers: { ...(body !== undefined && { 'content-type': 'application/json', 'content-length': String(Buffer.byteLength(text)) }), ...headers }, ...options
  })
  request.end(text)
  const [response] = await once(request, 'response')
  let received = ''
  for await (const chunk of response) received += chunk
  return { status: response.statusCode!, body: response.headers['content-type']?.startsWith('application/json') ? JSON.parse(received) : received }
}

class TrustingWebSocket extends WebSocket {
  constructor (url: string, protocols: string[]) {
    super(url, protocols, { ca, headers: { 'x-forwarded-for': '203.0.113.7' } })
  }
}

/** A device of the SDK, connected through the proxy, that records the letters it gets. */
class Device {
  readonly id: string
  readonly letters: number[] = []
  readonly connection: Client

  constructor (t: Pick<Test, 'teardown'>, port: number, id: string) {
    this.id = id
    this.connection = connect(`https://localhost:${port}/ws`, { deviceId: id, token: TOKEN, WebSocket: TrustingWebSocket as any, minDelay: 200 })
    this.connection.on('message', ({ data }) => { this.letters.push(data) })
    t.teardown(() => this.connection.close())
  }
}

interface Site {
  port: number
  gateways: Gateway[]
}

/** Two gateways that share an engine. */
async function twoGateways (t: Test, folder: string, engine: { REDIS_URL: string } | { NATS_URL: string }): Promise<Gateway[]> {
  const config = join(folder, 'config.js')
  writeFileSync(config, 'export const options = { retrySpread: 500, closeTimeout: 200 }')
  const env = { TOKEN, ...engine, DRAIN_DELAY: '2', TRUST_PROXY: '127.0.0.1', FASTIFY_DEVICES_CONFIG: config, LOG_LEVEL: 'error' }
  return await Promise.all(['one', 'two'].map(name => Gateway.start(t, name, env)))
}

/** Sends letters and lists devices, without a pause, until it is stopped; resolves with the answers that were not as they should be, and the letters taken. */
function traffic (port: number, devices: Device[]): { stop (): Promise<{ failures: unknown[], taken: Map<string, number[]> }> } {
  const failures: unknown[] = []
  const taken = new Map(devices.map(({ id }): [string, number[]] => [id, []]))
  const stop = new AbortController()
  const attempt = async (method: string, path: string, expected: number, body?: unknown) => {
    const { status, body: answer } = await send(port, method, path, body).catch(error => ({ status: String(error), body: undefined }))
    if (status !== expected) failures.push({ method, path, status, answer })
    return status === expected
  }
  const writers = devices.map(async ({ id }) => {
    for (let number = 0; !stop.signal.aborted; number++) if (await attempt('POST', `/devices/${id}/messages?ttl=600`, 202, number)) taken.get(id)!.push(number)
  })
  const reader = (async () => { while (!stop.signal.aborted) await attempt('GET', '/devices?limit=1', 200) })()
  return {
    async stop () {
      stop.abort()
      await Promise.all([...writers, reader])
      return { failures, taken }
    }
  }
}

/** The devices stay connected and no request fails while `restart` restarts both gateways. */
async function survives (t: Test, { port, gateways }: Site, restart: () => Promise<unknown>): Promise<void> {
  const devices = Array.from({ length: 6 }, (_, at) => new Device(t, port, `d${at}`))
  await until(async () => (await send(port, 'GET', '/devices')).body.devices?.length === devices.length)
  const load = traffic(port, devices)
  t.teardown(() => load.stop())
  await until(() => devices.every(({ letters }) => letters.length > 0))
  await restart()
  await until(() => devices.every(({ connection }) => connection.status.state === 'connected'))
  const { failures, taken } = await load.stop()
  t.strictSame(failures, [])
  t.strictSame(gateways.map(({ starts }) => starts), [2, 2], 'both were restarted')
  await until(() => devices.every(({ id, letters }) => letters.length >= taken.get(id)!.length))
  for (const { id, letters } of devices) t.strictSame(letters, taken.get(id), `every letter that ${id} was promised, once and in order`)
  await until(async () => (await send(port, 'GET', '/devices')).body.devices?.length === devices.length)
}

/** What the proxy passes, and what it does not. */
async function passes (t: Test, { port }: Site): Promise<void> {
  const device = new Device(t, port, 'd')
  device.connection.handle('echo', params => params)
  await until(() => device.connection.status.state === 'connected')
  t.match(await send(port, 'GET', '/devices/d'), { status: 200, body: { address: '127.0.0.1' } }, 'the address that the device claims is not believed')
  t.match(await send(port, 'POST', '/devices/d/calls/echo', { hello: 'world' }), { status: 200, body: { hello: 'world' } })
  t.match(await send(port, 'POST', '/broadcast', 'x'.repeat(65_536), { headers: { 'content-type': 'text/plain' } }), { status: 200 })
  t.match(await send(port, 'POST', '/broadcast', 'x'.repeat(65_537), { headers: { 'content-type': 'text/plain' } }), { status: 413 })
  const lines = Array.from({ length: 2_000 }, (_, at) => JSON.stringify({ to: 'd', data: `${at} ${'x'.repeat(100)}` })).join('\n')
  t.match(await send(port, 'POST', '/messages', lines, { headers: { 'content-type': 'application/x-ndjson' } }), { status: 200 })
  t.match(await send(port, 'GET', '/devices', undefined, { headers: { authorization: 'Bearer wrong' } }), { status: 403 })
  t.match(await send(port, 'GET', '/devices', undefined, { headers: { origin: `https://localhost:${port}` } }), { status: 200 })
  t.match(await send(port, 'GET', '/devices', undefined, { headers: { origin: 'https://evil.example' } }), { status: 403, body: { code: 'ORIGIN_REFUSED' } })
  for (const path of ['/', '/metrics', '/healthz', '/readyz', '/console', '/devicesx', '/wsx']) t.match(await send(port, 'GET', path), { status: 404, body: String }, path)
}

/** Events of all devices arrive at once, and only inside. */
async function streams (t: Test, { port }: Site): Promise<void> {
  for (const path of ['/events', '/webhooks']) t.match(await send(port, 'GET', path, undefined, { localAddress: '127.0.0.2' }), { status: 404, body: String }, path)
  t.match(await send(port, 'GET', '/webhooks'), { status: 200, body: { webhooks: [] } })
  const request = open(port, 'GET', '/events?types=connected')
  request.end()
  const [response] = await once(request, 'response')
  const device = new Device(t, port, 'streamed')
  let received = ''
  for await (const chunk of response) {
    received += chunk
    if (received.includes(`"deviceId":"${device.id}"`)) break
  }
  t.match(received, 'event: connected')
}

const needs = (names: string[]) => names.find(name => !programAt(name)) ?? names[0]!

withProgram(t, needs(['nginx', 'redis-server', 'curl']), 'nginx in front of two gateways over Redis', async t => {
  const folder = t.testdir({})
  const { url } = await redisServer(t, programAt('redis-server')!)
  const gateways = await twoGateways(t, folder, { REDIS_URL: url })
  const [port, plain] = [await freePort(), await freePort()]
  writeFileSync(join(folder, 'servers.conf'), gateways.map(({ name, address }) => `server ${address}; # ${name}\n`).join(''))
  const certificates = join(root, 'test/certificates')
  const file = join(folder, 'nginx.conf')
  writeFileSync(file, replaced(read('nginx.conf'), [
    ['user www-data;', 'user root;'], ['worker_processes auto;', 'worker_processes 2;'], ['/run/nginx.pid', `${folder}/nginx.pid`], ['/var/log/nginx', folder],
    ['/etc/nginx/devices', folder], ['/etc/nginx/tls/fullchain.pem', `${certificates}/server.pem`], ['/etc/nginx/tls/privkey.pem', `${certificates}/server.key`],
    ['listen 80;', `listen 127.0.0.1:${plain};`], ['listen 443 ', `listen 127.0.0.1:${port} `], ['127.0.0.0/8 1;', '127.0.0.1 1;']
  ]))
  const nginx = programAt('nginx')!
  await run(nginx, ['-t', '-q', '-e', join(folder, 'error.log'), '-c', file])
  startProgram(t, nginx, ['-e', join(folder, 'error.log'), '-c', file, '-g', 'daemon off;'])
  const site = { port, gateways }
  await until(async () => (await send(port, 'GET', '/devices').catch(() => undefined))?.status === 200)

  t.test('passes devices and REST to the gateways, and nothing else', t => passes(t, site))

  t.test('passes events as they happen, to callers inside', t => streams(t, site))

  t.test('sends callers without TLS to the address with TLS', async t => {
    const { status, headers } = await fetch(`http://127.0.0.1:${plain}/devices`, { redirect: 'manual' })
    t.match([status, headers.get('location')], [308, 'https://127.0.0.1/devices'])
  })

  t.test('loses no letter and no request while rollout.sh restarts the gateways one by one', async t => {
    const env = {
      ...process.env,
      RELOAD: `${nginx} -e ${join(folder, 'error.log')} -c ${file} -s reload`,
      RESTART: `curl --silent --fail http://127.0.0.1:${await restartPort(t, gateways)} --data`
    }
    await survives(t, site, async () => {
      const { stdout } = await run(join(root, 'docs/deploy/rollout.sh'), [join(folder, 'servers.conf')], { env })
      t.strictSame(stdout.trim().split('\n'), ['one', 'two'].flatMap(name => [`${name}: no new requests`, `${name}: restarts`, `${name}: ready`]))
    })
    t.notMatch(readFileSync(join(folder, 'servers.conf'), 'utf8'), 'down')
  })

  t.test('rollout.sh stops at a gateway that does not become ready, and leaves the others as they are', async t => {
    const servers = join(t.testdir({ servers: 'server 10.0.0.1:3000; # one\nserver 10.0.0.2:3000; # two\n' }), 'servers')
    const rollout = spawn(join(root, 'docs/deploy/rollout.sh'), [servers], { env: { ...process.env, RELOAD: 'true', RESTART: 'echo restart', READY: 'false', TIMEOUT: '1' } })
    let printed = ''
    for (const stream of [rollout.stdout, rollout.stderr]) stream.on('data', text => { printed += text })
    t.strictSame(await once(rollout, 'close'), [1, null])
    t.match(printed, /restart one\n.*one is not ready/s)
    t.notMatch(printed, 'two: ')
    t.equal(readFileSync(servers, 'utf8'), 'server 10.0.0.1:3000 down; # one\nserver 10.0.0.2:3000; # two\n')
  })
})

withProgram(t, needs(['caddy', 'nats-server']), 'Caddy in front of two gateways over NATS', async t => {
  const folder = t.testdir({})
  const { servers } = await natsServer(t, programAt('nats-server')!)
  const gateways = await twoGateways(t, folder, { NATS_URL: servers })
  const port = await freePort()
  const certificates = join(root, 'test/certificates')
  const file = join(folder, 'Caddyfile')
  writeFileSync(file, `{\n\tadmin off\n\tauto_https off\n}\n${replaced(read('Caddyfile'), [
    ['127.0.0.1:3001 127.0.0.1:3002', gateways.map(({ address }) => address).join(' ')],
    ['example.com {', `https://localhost:${port} {\n\tbind 127.0.0.1\n\ttls ${certificates}/server.pem ${certificates}/server.key`],
    ['127.0.0.0/8 ', '127.0.0.1 ']
  ])}`)
  const home = { HOME: folder, XDG_DATA_HOME: folder, XDG_CONFIG_HOME: folder }
  startProgram(t, programAt('caddy')!, ['run', '--config', file, '--adapter', 'caddyfile'], home)
  const site = { port, gateways }
  await until(async () => (await send(port, 'GET', '/devices').catch(() => undefined))?.status === 200)

  t.test('passes devices and REST to the gateways, and nothing else', t => passes(t, site))

  t.test('passes events as they happen, to callers inside', t => streams(t, site))

  t.test('loses no letter and no request while the gateways are restarted one by one', t => survives(t, site, async () => {
    for (const gateway of gateways) {
      await gateway.restart()
      await until(() => gateway.isReady())
    }
  }))
})
