import { once } from 'node:events'
import { mkdtemp, rm } from 'node:fs/promises'
import { connect as connectHttp2, type Http2ServerRequest, type OutgoingHttpHeaders } from 'node:http2'
import { request as requestHttp } from 'node:http'
import { connect as connectTcp, type Socket } from 'node:net'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { json } from 'node:stream/consumers'
import { connect as connectTls } from 'node:tls'
import Fastify, { type FastifyInstance, type FastifyServerOptions } from 'fastify'
import t, { type Test } from 'tap'
import WebSocket from 'ws'
import devices, { type Options } from '../lib/index.ts'
import { proxyHeaders } from '../lib/gateway/protected-mode.ts'
import { tcp, type TcpTransport } from '../lib/transports/tcp/index.ts'
import { upgradeRequest } from './campaigns/raw.ts'
import { certificate } from './certificates.ts'
import { connect, connectLines, listen, open, request, until } from './support.ts'

const serverCertificate = { key: certificate('server.key'), cert: certificate('server.pem') }

const broadcast = 'POST /broadcast HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: 2\r\n\r\n{}'
const takeover = upgradeRequest('d').replace('127.0.0.1', 'localhost')

/** Sends it and resets the connection in the same turn of the event loop: by the time the server reads it, there is no address any more. */
async function sendAndReset (port: number, sent: string): Promise<void> {
  const socket = connectTcp(port, '127.0.0.1')
  await once(socket, 'connect')
  socket.write(sent)
  socket.resetAndDestroy()
}

async function sendOverTlsAndReset (port: number, sent: string): Promise<void> {
  const socket = connectTcp(port, '127.0.0.1')
  const secured = connectTls({ socket, rejectUnauthorized: false })
  secured.on('error', () => {})
  await once(secured, 'secureConnect')
  secured.write(sent)
  socket.resetAndDestroy()
}

interface Seat extends FastifyInstance {
  url: string
  port: number
}

async function seat (t: Test, { options = {}, server = {} }: { options?: Options, server?: FastifyServerOptions } = {}): Promise<Seat> {
  const app = await listen(t, options, server)
  const url = 'https' in server ? app.url.replace('http', 'https') : app.url
  return Object.assign(app, { url, port: Number(new URL(url).port) })
}

const refusals = (app: FastifyInstance) => app.devices.stats().refusals

for (const [title, server, send] of [
  ['over HTTP', {}, sendAndReset],
  ['where proxies are trusted', { trustProxy: true }, sendAndReset],
  ['over TLS', { https: serverCertificate }, sendOverTlsAndReset]
] as unknown as Array<[string, FastifyServerOptions, typeof sendAndReset]>) {
  t.test(`protected mode refuses requests whose connection was reset, ${title}`, async t => {
    const app = await seat(t, { server })
    const device = await connect(app.url, 'd', { rejectUnauthorized: false })
    const { generation } = app.devices.get('d')!
    for (let count = 1; count <= 20; count++) {
      await send(app.port, broadcast)
      await send(app.port, takeover)
      await until(() => refusals(app).protected === 2 * count)
    }
    t.equal(app.devices.get('d')!.generation, generation)
    t.equal(device.seen.length, 1, 'the welcome, and no broadcast')
    t.equal(device.socket.readyState, WebSocket.OPEN)
  })
}

t.test('protected mode refuses requests whose connection was reset while a hook of the host waited', async t => {
  const app = Fastify()
  const held: Socket[] = []
  app.addHook('onRequest', async ({ raw }) => {
    held.push(raw.socket)
    await until(() => raw.socket.destroyed)
  })
  await app.register(devices)
  const { url } = await open(t, app)
  const port = Number(new URL(url).port)
  for (const sent of [broadcast, takeover]) {
    const socket = connectTcp(port, '127.0.0.1')
    socket.on('error', () => {})
    socket.write(sent)
    await until(() => held.length > 0)
    socket.resetAndDestroy()
    await until(() => held[0]!.destroyed)
    held.length = 0
  }
  await until(() => (refusals(app).protected ?? 0) + (refusals(app).departed ?? 0) === 2)
  t.equal(app.devices.stats().admissions, 0)
})

t.test('a guard and authenticate see that the address is unknown', async t => {
  const seen: unknown[] = []
  const app = await seat(t, {
    options: {
      guard: ({ ip }) => { seen.push(ip); return false },
      authenticate: ({ address }) => { seen.push(address); return false }
    }
  })
  await sendAndReset(app.port, broadcast)
  await until(() => seen.length === 1)
  await sendAndReset(app.port, takeover)
  await until(() => seen.length === 2)
  t.strictSame(seen, [undefined, undefined])
})

t.test('a Unix socket is this machine, and so is a request injected in this process', async t => {
  const folder = await mkdtemp(join(tmpdir(), 'gate-'))
  t.teardown(() => rm(folder, { recursive: true, force: true }))
  const path = join(folder, 'app')
  const entry: TcpTransport = tcp({ path: join(folder, 'door') })
  const app = Fastify({ trustProxy: true })
  await app.register(devices, { transports: [entry] })
  t.teardown(() => app.close())
  await app.listen({ path })
  const overPath = requestHttp({ socketPath: path, path: '/devices', headers: { host: 'localhost' } }).end()
  const [answer] = await once(overPath, 'response')
  t.strictSame({ status: answer.statusCode, body: await json(answer) }, { status: 200, body: { devices: [] } })
  const device = new WebSocket(`ws+unix:${path}:/ws?deviceId=d`, { headers: { host: 'localhost' } })
  await once(device, 'open')
  await connectLines(connectTcp(join(folder, 'door')), 'e')
  t.equal((await app.inject({ method: 'GET', url: '/devices' })).statusCode, 200)
  const injected = await app.injectWS('/ws?deviceId=f', { headers: { host: 'localhost' } })
  await until(() => app.devices.size === 3)
  t.strictSame([...app.devices].map(({ address }) => address), [undefined, undefined, undefined])
  injected.terminate()
  device.terminate()
})

t.test('protected mode refuses every header of a proxy or a CDN that it knows', async t => {
  const app = await seat(t)
  const names = [
    ...proxyHeaders.map(name => name.replace('*', name.endsWith('-*') ? 'x' : '-x')),
    'X-Forwarded-For', 'CF-Connecting-IP', 'True-Client-IP', 'X-Client-IP', 'Fastly-Client-IP', 'X-Cluster-Client-IP', 'X-Original-Forwarded-For', 'Fly-Client-IP',
    'X-Azure-ClientIP', 'X-Envoy-External-Address', 'X-AppEngine-User-IP', 'CloudFront-Viewer-Address', 'X-Forwarded'
  ]
  for (const name of names) t.equal((await request(app, 'GET', '/devices', undefined, { [name]: '203.0.113.9' })).status, 403, name)
  t.equal((await request(app, 'GET', '/devices', undefined, { 'x-anything': '203.0.113.9' })).status, 200)
})

for (const [title, server, scheme] of [
  ['in clear text', { http2: true }, 'http'],
  ['over TLS', { http2: true, https: serverCertificate }, 'https']
] as unknown as Array<[string, FastifyServerOptions, string]>) {
  t.test(`over HTTP/2 ${title}, :authority stands for Host`, async t => {
    const app = await seat(t, { server, options: { origins: ['https://shop.example'] } })
    const session = connectHttp2(`${scheme}://127.0.0.1:${app.port}`, { rejectUnauthorized: false })
    t.teardown(() => session.destroy())
    const ask = async (headers: OutgoingHttpHeaders) => {
      const stream = session.request({ ':path': '/devices', ...headers })
      const [{ ':status': status }] = await once(stream, 'response')
      const { code = 'none' } = await json(stream) as { code?: string }
      return `${status as number} ${code}`
    }
    t.equal(await ask({}), '200 none')
    t.equal(await ask({ ':authority': `localhost:${app.port}` }), '200 none')
    t.equal(await ask({ ':authority': 'rebound.example' }), '403 PROTECTED_MODE')
    t.equal(await ask({ ':authority': 'rebound.example', host: 'localhost' }), '403 PROTECTED_MODE')
    t.equal(await ask({ 'x-forwarded-for': '203.0.113.9' }), '403 PROTECTED_MODE')
    t.equal(await ask({ ':authority': `localhost:${app.port}`, origin: `${scheme}://localhost:${app.port}` }), '200 none')
    t.equal(await ask({ ':authority': `localhost:${app.port}`, origin: 'https://shop.example' }), '200 none')
    t.equal(await ask({ ':authority': `localhost:${app.port}`, origin: 'https://evil.example' }), '403 ORIGIN_REFUSED')
  })

  t.test(`protected mode refuses requests over HTTP/2 ${title} whose connection was reset while a hook of the host waited`, async t => {
    const app = Fastify(server) as unknown as FastifyInstance
    let held: unknown
    app.addHook('onRequest', async ({ raw }) => {
      held = raw
      await until(() => (raw as unknown as Http2ServerRequest).stream.destroyed)
    })
    await app.register(devices)
    const { url } = await open(t, app)
    const socket = connectTcp(Number(new URL(url).port), '127.0.0.1')
    const secured = scheme === 'https' ? connectTls({ socket, rejectUnauthorized: false, ALPNProtocols: ['h2'] }) : socket
    const session = connectHttp2(`${scheme}://localhost`, { createConnection: () => secured })
    session.on('error', () => {})
    const stream = session.request({ ':path': '/broadcast', ':method': 'POST', 'content-type': 'application/json' })
    stream.on('error', () => {}).end('{}')
    await until(() => held !== undefined)
    socket.resetAndDestroy()
    await until(() => refusals(app).protected === 1)
  })
}
