import { spawn } from 'node:child_process'
import { once } from 'node:events'
import { connect as connectTcp, type Socket } from 'node:net'
import { mkdtemp, rm } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { createInterface } from 'node:readline'
import fastifySwagger from '@fastify/swagger'
import fastifyWebsocket from '@fastify/websocket'
import { Type } from '@sinclair/typebox'
import Fastify, { type FastifyInstance } from 'fastify'
import t from 'tap'
import WebSocket from 'ws'
import { builtins } from '../lib/gateway/builtins.ts'
import { pluginLog } from '../lib/gateway/log.ts'
import devices, { Failure, jsonrpc, localBackplane, memoryMailbox, Refusal, type Backplane, type Codec, type Mailbox, type Options, type Presence } from '../lib/index.ts'
import { fakeLog, gate } from './fakes.ts'
import { root } from './root.ts'
import { connect, listen, open, refusal, request, TestDevice, until } from './support.ts'

/** A client that upgrades by hand and then sends nothing, no close frame either. */
function muteClient (url: string, path: string): Socket {
  const socket = connectTcp(Number(new URL(url).port), '127.0.0.1')
  socket.on('error', () => {})
  socket.write(`GET ${path} HTTP/1.1\r\nHost: localhost\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n`)
  return socket
}

t.test('each log line of the plugin names it, also where the logger of the host has no working child', async t => {
  const [log, child] = [fakeLog(), fakeLog()]
  const bindings: object[] = []
  pluginLog({ ...log, child: (bound: object) => { bindings.push(bound); return child } } as never).info({}, 'to the child')
  t.strictSame(bindings, [{ plugin: 'fastify-devices' }])
  t.match(child.lines, [{ words: 'to the child' }])
  pluginLog({ ...log, child: undefined } as never).info({}, 'without a child')
  pluginLog({ ...log, child () { throw new Error('no children') } } as never).info({}, 'instead of a child')
  t.match(log.lines, [{ words: 'without a child' }, { words: 'instead of a child' }])
})

t.test('the level and the serializers of the log that are given at register hold for the plugin and its routes', async t => {
  const lines: Array<{ msg: string, plugin?: string, req?: unknown }> = []
  const stream = { write: (line: string) => { lines.push(JSON.parse(line)) } }
  const app = Fastify({ logger: { level: 'info', stream } })
  await app.register(async quiet => await quiet.register(devices, { logLevel: 'warn' }))
  await app.register(async loud => await loud.register(devices, { prefix: '/loud', logSerializers: { req: () => 'serialized' } }))
  const { url } = await open(t, app)
  await connect(url, 'd')
  await request({ url }, 'GET', '/devices')
  t.strictSame(lines.filter(({ plugin, req }) => plugin ?? req), [])
  await connect(url, 'd', { path: '/loud/ws?deviceId=d' })
  await request({ url }, 'GET', '/loud/devices')
  t.match(lines.filter(({ plugin, req }) => plugin ?? req), [{ req: 'serialized' }, { msg: 'device connected' }, { req: 'serialized' }])
})

t.test('a prefix goes before every route', async t => {
  const app = await listen(t, { prefix: '/iot' })
  await connect(app.url, 'd', { path: '/iot/ws?deviceId=d' })
  t.equal((await request(app, 'POST', '/iot/devices/d/messages', 1)).status, 200)
  t.equal((await request(app, 'POST', '/devices/d/messages', 1)).status, 404)
})

t.test('paths says where the routes are', async t => {
  const pathsOf = async (options: Options, prefix?: string) => {
    const app = Fastify()
    t.teardown(() => app.close())
    let scoped: FastifyInstance
    await app.register(async scope => {
      await scope.register(devices, options)
      scoped = scope
    }, prefix === undefined ? {} : { prefix })
    const { paths } = scoped!.devices
    const { channels } = scoped!.devices.asyncapi() as { channels: { socket: { address: string } } }
    t.equal(channels.socket.address, paths.socket)
    return paths
  }
  t.strictSame(await pathsOf({}), { rest: '', socket: '/ws' })
  t.strictSame(await pathsOf({ prefix: '/iot', path: '/socket' }), { rest: '/iot', socket: '/iot/socket' })
  t.strictSame(await pathsOf({ prefix: '/iot' }, '/v1'), { rest: '/v1/iot', socket: '/v1/iot/ws' })
  t.strictSame(await pathsOf({ rest: false }), { rest: undefined, socket: '/ws' })
})

t.test('it works in a scope of its own, beside other routes', async t => {
  const app = Fastify()
  await app.register(async scope => { await scope.register(devices, { path: '/socket' }) }, { prefix: '/iot' })
  app.get('/other', async () => 'other')
  app.post('/form', async ({ body }) => body)
  const running = await open(t, app)
  t.notOk(app.hasDecorator('devices'))
  await connect(running.url, 'd', { path: '/iot/socket/d' })
  t.equal((await request(running, 'GET', '/iot/devices/d')).status, 200)
  t.equal((await request(running, 'GET', '/other')).body.toString(), 'other')
  t.equal((await request(running, 'POST', '/form', 'x', { 'content-type': 'application/x-unknown' })).body.code, 'FST_ERR_CTP_INVALID_MEDIA_TYPE', 'the parsers of the host are its own')
})

t.test('two scopes each have their own devices', async t => {
  const app = Fastify()
  const sizes: Array<() => number> = []
  for (const prefix of ['/one', '/two']) {
    await app.register(async scope => {
      await scope.register(devices, { drainTimeout: 500 })
      sizes.push(() => scope.devices.size)
    }, { prefix })
  }
  const { url } = await open(t, app)
  const one = await connect(url, 'd', { path: '/one/ws/d' })
  const others = [await connect(url, 'd', { path: '/two/ws/d' }), await connect(url, 'e', { path: '/two/ws/e' })]
  t.strictSame(sizes.map(size => size()), [1, 2])
  t.ok((await one.ask('ping')).result)
  await app.close()
  for (const device of [one, ...others]) t.equal((await device.closed).code, 1012, 'one scope does not cut the devices of the other')
})

t.test('it works beside the WebSocket routes of its host, with limits of its own', async t => {
  const app = Fastify()
  await app.register(fastifyWebsocket, { options: { maxPayload: 200_000, handleProtocols: () => 'host' } })
  await app.register(devices)
  app.get('/host', { websocket: true }, socket => { socket.on('message', (data: Buffer) => socket.send(String(data.length))) })
  const { url } = await open(t, app)

  const host = new WebSocket(`${url.replace('http', 'ws')}/host`, ['host'])
  await once(host, 'open')
  host.send(Buffer.alloc(100_000))
  t.equal(String((await once(host, 'message'))[0]), '100000')
  t.equal(host.protocol, 'host')

  const device = await connect(url, 'd', { protocols: ['jsonrpc'] })
  t.equal(device.socket.protocol, 'jsonrpc')
  device.socket.send(Buffer.alloc(100_000))
  t.equal((await device.closed).code, 1009)

  const kept = await connect(url, 'd')
  host.terminate()
  const closing = app.close()
  t.equal((await kept.closed).code, 1012, 'the host does not close our devices before they are told')
  await closing
})

t.test('registering it twice in one scope is refused', async t => {
  const app = Fastify()
  await app.register(devices)
  await t.rejects(async () => { await app.register(devices) }, { message: /registered in this scope already/ })
  await app.close()
})

t.test('a wrong option is named', async t => {
  const rejects = async (options: object, message: RegExp) => {
    await t.rejects(async () => { await Fastify().register(devices, options) }, { message })
  }
  await rejects({ pingIntervall: 1 }, /no option "pingIntervall"/)
  await rejects({ pingInterval: '25' }, /option "pingInterval" is wrong/)
  await rejects({ authenticate: true }, /option "authenticate" is wrong/)
  await rejects({ path: 'ws' }, /option "path" is wrong/)
  await Fastify().register(devices, { rate: undefined } as object)
  await rejects({ maxTtl: 2 ** 40 }, /option "maxTtl" is wrong/)
  await rejects({ drainTimeout: 10_000 }, /"drainTimeout" must be less than Fastify's pluginTimeout of 10000 ms/)
  await Fastify({ pluginTimeout: 0 }).register(devices, { drainTimeout: 60_000 })
  await rejects({ backplane: { ...localBackplane(), remote: true }, mailbox: memoryMailbox() }, /"mailbox" must be one that all nodes share/)
})

t.test('the hooks, the error handler and the logger of the host apply, to the upgrade as well', async t => {
  const app = Fastify()
  const seen: string[] = []
  app.addHook('onRequest', async request => {
    seen.push(request.url)
    if (request.headers['x-deny']) throw Object.assign(new Error('denied by the host'), { statusCode: 418 })
  })
  app.setErrorHandler((error: Error & { statusCode?: number, code?: string }, _request, reply) => reply.code(error.statusCode ?? 500).send({ mine: true, code: error.code, message: error.message }))
  await app.register(devices)
  const running = await open(t, app)
  await connect(running.url, 'd')
  t.match(await refusal(running.url, '/ws?deviceId=d', { headers: { 'x-deny': '1' } }), { status: 418, body: { mine: true, message: 'denied by the host' } })
  t.match(await refusal(running.url, '/ws?deviceId=!'), { status: 400, body: { mine: true, code: 'ID_INVALID' } })
  t.match(await request(running, 'POST', '/devices/away/messages', 1), { status: 404, body: { mine: true, code: 'DEVICE_OFFLINE' } })
  t.strictSame(seen, ['/ws?deviceId=d', '/ws?deviceId=d', '/ws?deviceId=!', '/devices/away/messages'])
})

t.test('every REST route is described for swagger', async t => {
  const app = Fastify()
  await app.register(fastifySwagger, { openapi: { info: { title: 'test', version: '1' } } })
  await app.register(devices)
  await app.ready()
  const { paths } = app.swagger() as { paths: Record<string, Record<string, any>> }
  t.strictSame(Object.entries(paths).flatMap(([path, methods]) => Object.keys(methods).map(method => `${method} ${path}`)).toSorted(), [
    'delete /devices/{id}', 'delete /devices/{id}/messages', 'delete /devices/{id}/messages/{messageId}', 'delete /devices/{id}/topics/{topic}',
    'get /asyncapi.json', 'get /devices', 'get /devices/{id}', 'get /devices/{id}/messages', 'get /devices/{id}/messages/{messageId}', 'get /events', 'get /webhooks',
    'post /broadcast', 'post /devices/{id}/calls/{method}', 'post /devices/{id}/messages', 'post /messages', 'put /devices/{id}/topics/{topic}'
  ])
  for (const methods of Object.values(paths)) {
    for (const { summary, tags, responses } of Object.values(methods)) {
      t.type(summary, 'string')
      t.equal(tags.length, 1)
      t.ok(responses[401])
    }
  }
  await app.close()
})

t.test('it answers inject and injectWS', async t => {
  const app = Fastify()
  await app.register(devices)
  await app.ready()
  let device: TestDevice
  const socket = await app.injectWS('/ws?deviceId=d', {}, { onInit: socket => { device = new TestDevice(socket as unknown as WebSocket) } })
  t.match(await device!.next(), { method: 'welcome' })
  t.equal((await app.inject({ method: 'POST', url: '/devices/d/messages', payload: { n: 1 } })).statusCode, 200)
  t.match(await device!.message(), { params: { data: { n: 1 } } })
  t.match((await app.inject('/devices/d')).json(), { connected: true })
  await t.rejects(app.injectWS('/ws?deviceId=!'))
  socket.terminate()
  await until(() => app.devices.size === 0)
  await app.close()
})

/** An application that closes only when nothing keeps it: its deadline lies beyond that of the test. */
async function patient (): Promise<FastifyInstance> {
  const app = Fastify({ pluginTimeout: 0 })
  await app.register(devices, { closeTimeout: 90_000, drainTimeout: 180_000 })
  await app.ready()
  return app
}

t.test('an injected device that answers the close frame does not delay the close', { timeout: 30_000 }, async () => {
  const app = await patient()
  await app.injectWS('/ws?deviceId=d')
  const closing = await app.injectWS('/ws?deviceId=e')
  closing.close()
  await until(() => !app.devices.has('e'))
  await app.close()
})

t.test('an injected device that was refused does not delay the close', { timeout: 30_000 }, async t => {
  const app = await patient()
  await t.rejects(app.injectWS('/ws?deviceId=!'), { message: /400/ })
  await t.rejects(app.injectWS('/nowhere'), { message: /404/ })
  await app.close()
})

t.test('an upgrade that no route takes is answered and closed', async t => {
  const app = await listen(t, { closeTimeout: 50 })
  for (const [path, status] of [['/nowhere', 404], ['/devices/d', 404], [`/ws/${'x'.repeat(129)}`, 414]] as const) {
    const socket = muteClient(app.url, path)
    let text = ''
    socket.on('data', chunk => { text += chunk })
    await once(socket, 'close')
    t.match(text, new RegExp(`^HTTP/1.1 ${path === '/devices/d' ? '\\d+' : status}`))
  }
})

t.test('the answer to an upgrade and the welcome leave in one write', async t => {
  const app = await listen(t)
  let writes = 0
  app.server.on('connection', (socket: Socket) => {
    for (const name of ['_write', '_writev'] as const) {
      const write = socket[name]!
      socket[name] = (...args: unknown[]) => {
        writes++
        Reflect.apply(write, socket, args)
      }
    }
  })
  await connect(app.url, 'd')
  t.equal(writes, 1)
})

t.test('a node that is draining answers senders with 503, if its host still routes requests', async t => {
  const app = await listen(t, {}, { return503OnClosing: false })
  const device = await connect(app.url, 'd')
  const held = app.devices.call('d', 'work')
  const { id } = await device.next(({ method }) => method === 'work')
  const send = () => request(app, 'POST', '/devices/d/messages', { n: 1 })
  const closing = app.close()
  await until(async () => (await send()).status === 503)
  const answer = await send()
  t.match(answer, { status: 503, body: { code: 'NODE_DRAINING' } })
  t.equal(answer.headers.get('retry-after'), '1')
  t.match(await request(app, 'GET', '/ws?deviceId=late'), { status: 503, body: { code: 'NODE_DRAINING' } })
  device.send({ jsonrpc: '2.0', id, result: 1 })
  t.equal(await held, 1)
  await closing
})

t.test('a plain request where devices connect is told to upgrade', async t => {
  const app = await listen(t)
  t.match(await request(app, 'GET', '/ws?deviceId=d'), { status: 426, body: { code: 'UPGRADE_REQUIRED' } })
})

t.test('a device calls the methods that the application handles', async t => {
  const app = await listen(t)
  const before = await connect(app.url, 'before')
  const Params = Type.Object({ celsius: Type.Number() })
  app.devices.handle('report', { params: Params, result: Type.Object({ fahrenheit: Type.Number() }) }, ({ celsius }) => ({ fahrenheit: celsius * 1.8 + 32 }))
  app.devices.handle('who', (_params, { device }) => ({ id: device.id, generation: device.generation, protocol: device.protocol, address: device.address }))
  app.devices.handle('refuse', () => { throw new Refusal('Too hot', 42, { limit: 90 }) })
  app.devices.handle('plain', () => { throw new Refusal('Too cold', 'E_COLD') })
  app.devices.handle('broken', async () => { throw new Error('the database is at 10.0.0.7') })
  app.devices.handle('bytes', params => params)
  const after = await connect(app.url, 'after')

  for (const device of [before, after]) {
    t.match(await device.ask('report', { celsius: 100 }), { result: { fahrenheit: 212 } })
    t.match(await device.ask('report', { celsius: 'hot' }), { error: { code: -32602, message: 'params/celsius: Expected number' } })
    t.match(await device.ask('report'), { error: { code: -32602 } })
    t.match(await device.ask('refuse'), { error: { code: 42, message: 'Too hot', data: { limit: 90 } } })
    t.match(await device.ask('plain'), { error: { code: -32000, message: 'Too cold' } })
    t.strictSame((await device.ask('broken')).error, { code: -32603, message: 'Internal error' })
  }
  t.match(await before.ask('who'), { result: { id: 'before', protocol: 'jsonrpc', address: '127.0.0.1', generation: Number } })
  before.socket.send(Buffer.from('{"jsonrpc":"2.0","id":1,"method":"bytes"}\n\u0000\u0001'))
  t.strictSame((await before.answer(1)).data, Buffer.from([0, 1]))
})

t.test('built-in methods cannot be handled by the application', async t => {
  const app = await listen(t)
  app.devices.on('message', () => {})
  const device = await connect(app.url, 'd')
  for (const method of builtins) {
    t.throws(() => app.devices.handle(method, () => {}), new Error(`The method "${method}" is built in`))
    t.not((await device.ask(method, {})).error?.code, -32601, method)
  }
})

t.test('the signal of a handler aborts when its device leaves', async t => {
  const app = await listen(t)
  const aborted = new Promise<void>(resolve => {
    app.devices.handle('watch', async (_params, { signal }) => { await once(signal, 'abort'); resolve() })
  })
  const device = await connect(app.url, 'd')
  device.send({ jsonrpc: '2.0', id: 1, method: 'watch' })
  await until(async () => (await app.devices.describe('d')).waiting === 0 && (await request(app, 'GET', '/devices/d')).body.inFlight === 1)
  device.socket.terminate()
  await aborted
  await until(() => app.devices.size === 0)
})

t.test('a message of a device is answered once all listeners have finished, with an error if one failed', async t => {
  const errors: string[] = []
  const app = await listen(t, {}, { logger: { level: 'error', stream: { write: (line: string) => { errors.push(line) } } } })
  const device = await connect(app.url, 'd')
  t.equal((await device.ask('message', { data: 0 })).error!.code, -32601, 'nobody listens')
  t.equal((await device.ask('message', { data: 0, id: 'letter' })).error!.code, -32603, 'a letter of another server is sent again')

  const finishing = gate()
  const heard: unknown[] = []
  app.devices.on('message', async data => { if (data === 'slow') await finishing.opened })
  app.devices.on('message', data => heard.push(data))
  const answer = device.ask('message', { data: 'slow' })
  t.strictSame((await device.ask('message', { data: 'fast' })).result, {})
  t.strictSame(heard, ['slow', 'fast'])
  t.equal(device.seen.filter(({ id, result }) => id !== undefined && result).length, 1, 'the first one is not answered yet')
  finishing.open()
  t.strictSame((await answer).result, {})

  for (const fail of [() => { throw new Error('no disk') }, async () => { throw new Error('no disk') }]) {
    app.devices.on('message', fail)
    t.equal((await device.ask('message', { data: 'again' })).error!.code, -32603)
    app.devices.off('message', fail)
  }
  t.strictSame(heard.slice(2), ['again', 'again'], 'the other listeners are called')
  t.equal(errors.filter(line => line.includes('event listener failed') && line.includes('no disk')).length, 2)

  device.seen.length = 0
  app.devices.on('message', async () => { throw new Error('no disk') })
  device.notify('message', { data: 'unanswered' })
  await until(() => heard.includes('unanswered'))
  await device.ask('ping')
  t.equal(device.seen.length, 1, 'a notice is never answered')
})

t.test('listeners get the events of devices and messages, and the error of one does not affect the others', async t => {
  const errors: string[] = []
  const app = await listen(t, {}, { logger: { level: 'error', stream: { write: (line: string) => { errors.push(line) } } } })
  const heard: unknown[] = []
  app.devices.on('connected', () => { throw new Error('broken listener') })
  app.devices.on('connected', async () => { throw new Error('broken later') })
  app.devices.on('connected', device => heard.push(['connected', device.id]))
  app.devices.on('message', (data, device) => heard.push(['message', device.id, data]))
  app.devices.on('disconnected', (device, { code }) => heard.push(['disconnected', device.id, code]))
  const device = await connect(app.url, 'd')
  t.strictSame((await device.ask('message', { data: { n: 1 } })).result, {})
  await device.ask('message', {})
  device.socket.close(1000)
  await until(() => app.devices.size === 0)
  t.strictSame(heard, [['connected', 'd'], ['message', 'd', { n: 1 }], ['message', 'd', null], ['disconnected', 'd', 1000]])
  t.equal(errors.filter(line => line.includes('event listener failed')).length, 2)
})

t.test('a device of this node can be used directly', async t => {
  const app = await listen(t)
  const device = await connect(app.url, 'd')
  device.handle('add', ({ a, b }) => a + b)
  const here = app.devices.get('d')!
  t.strictSame([...app.devices], [here])
  here.send({ n: 1 })
  here.send(undefined)
  t.match(await device.message(), { params: { id: String, data: { n: 1 } } })
  t.equal((await device.message()).params.data, null)
  t.equal(await here.call('add', { a: 1, b: 2 }), 3)
  await t.rejects(here.call('slow', {}, { timeout: 10 }), { code: 'DEVICE_TIMEOUT' })
  t.throws(() => here.send(1n), { code: 'PARAMS_INVALID' })
  await t.rejects(app.devices.send('d', 1n), { code: 'PARAMS_INVALID' })
  await t.rejects(app.devices.send('d', 1n, { ttl: 1_000 }), { code: 'PARAMS_INVALID' })
  await t.rejects(app.devices.call('d', 'm', { n: 1n }), { code: 'PARAMS_INVALID' })
  await t.rejects(app.devices.send('no such id!', 1), { code: 'ID_INVALID' })
  await t.rejects(app.devices.broadcast(1, { topic: 'a/#' }), { code: 'TOPIC_INVALID' })

  app.devices.handle('batch', () => 1n)
  device.send([{ jsonrpc: '2.0', id: 'a', method: 'batch' }, { jsonrpc: '2.0', id: 'b', method: 'ping' }])
  t.equal((await device.answer('a')).error!.code, -32603)

  await device.close()
  await until(() => here.left !== undefined)
  here.send('too late')
  await t.rejects(here.call('add', {}), { code: 'DEVICE_DROPPED' })
  await t.rejects(app.devices.join('d', 'a'), { code: 'DEVICE_OFFLINE' })
})

t.test('devices that speak different protocols hear the same broadcast', async t => {
  const plain = jsonrpc()
  const shouting: Codec = { ...plain, subprotocol: 'shout', encode: message => String(plain.encode(message)).replace('hello', 'HELLO') }
  const app = await listen(t, { codecs: [plain, shouting] })
  const [quiet, loud] = [await connect(app.url, 'quiet'), await connect(app.url, 'loud', { protocols: ['shout'] })]
  t.match(await app.devices.broadcast('hello'), { sent: 2 })
  t.equal((await quiet.message()).params.data, 'hello')
  t.equal((await loud.message()).params.data, 'HELLO')
})

t.test('closing lets calls finish, tells each device its own time to come back, and waits for nobody for long', async t => {
  const app = await listen(t, { drainTimeout: 2_000, closeTimeout: 1_000, retrySpread: 1_000 })
  const [idle, busy, stuck] = [await connect(app.url, 'idle'), await connect(app.url, 'busy'), await connect(app.url, 'stuck')]
  muteClient(app.url, '/ws?deviceId=mute')
  await until(() => app.devices.has('mute'))

  const finished = request(app, 'POST', '/devices/busy/calls/work')
  const dropped = request(app, 'POST', '/devices/stuck/calls/work')
  const { id } = await busy.next(({ method }) => method === 'work')
  await stuck.next(({ method }) => method === 'work')
  const started = Date.now()
  const closing = app.close()
  const close = await idle.closed
  t.equal(close.code, 1012)
  t.match(close.reason, /^retry=\d{1,3}$/)
  busy.send({ jsonrpc: '2.0', id, result: 'done' })
  const answer = await finished
  t.match(answer, { status: 200, body: 'done' })
  t.equal(answer.headers.get('connection'), 'close')
  t.match(await dropped, { status: 502, body: { code: 'DEVICE_DROPPED' } })
  t.equal((await busy.closed).code, 1012)
  t.equal((await stuck.closed).code, 1012)
  await closing
  t.ok(Date.now() - started < 2_000 * 1.1 + 1_000, 'within its time, with room for a slow machine')
})

t.test('connections that remain at the deadline are cut', async t => {
  const app = await listen(t, { drainTimeout: 300, closeTimeout: 60_000 })
  const mute = muteClient(app.url, '/ws?deviceId=mute')
  await until(() => app.devices.has('mute'))
  const cut = once(mute.resume(), 'close')
  await app.close()
  await cut
})

t.test('an upgrade that is not answered at the deadline is cut', async t => {
  const app = Fastify()
  const asked = gate()
  app.addHook('preHandler', () => { asked.open(); return new Promise(() => {}) })
  await app.register(devices, { drainTimeout: 300 })
  const { url } = await open(t, app)
  const cut = once(muteClient(url, '/ws?deviceId=d').resume(), 'close')
  await asked.opened
  await app.close()
  await cut
})

t.test('neither waiting callers nor idle connections delay the close', async t => {
  const app = await listen(t, { drainTimeout: 500 })
  const silent = connectTcp(Number(new URL(app.url).port), '127.0.0.1')
  const halfway = connectTcp(Number(new URL(app.url).port), '127.0.0.1')
  halfway.write('GET /ws?deviceId=d HT')
  const cut = [silent, halfway].map(socket => once(socket.on('error', () => {}).resume(), 'close'))
  const confirmed = request(app, 'POST', '/devices/away/messages?ttl=60&confirm=true&timeout=60', 1)
  await until(async () => await app.devices.describe('away').then(({ waiting }) => waiting === 1, () => false))
  const started = Date.now()
  await app.close()
  t.match(await confirmed, { status: 202, body: { status: 'queued' } })
  t.ok(Date.now() - started < 5_000)
  await Promise.all(cut)
})

t.test('a device that connects while the node drains is refused', async t => {
  let answer: (value: boolean) => void = () => {}
  let asked = () => {}
  const asking = new Promise<void>(resolve => { asked = resolve })
  const app = await listen(t, {
    drainTimeout: 500,
    authenticate: ({ deviceId }) => deviceId === 'held' || new Promise<boolean>(resolve => { answer = resolve; asked() }),
    guard: async () => { await asking; return true }
  })
  const held = await connect(app.url, 'held')
  app.devices.handle('hold', () => new Promise(() => {}))
  held.send({ jsonrpc: '2.0', id: 1, method: 'hold' })
  const late = connect(app.url, 'late', { unwelcomed: true })
  await asking
  const closing = app.close()
  await until(() => app.server.listenerCount('upgrade') === 0)
  answer(true)
  t.equal((await (await late).closed).code, 1012)
  t.equal((await held.closed).code, 1012)
  await closing
})

t.test('a device that is being admitted when the node drains is refused', async t => {
  const app = Fastify()
  let go = () => {}
  let asked = false
  app.addHook('preHandler', async ({ url }) => {
    if (!url.includes('late')) return
    asked = true
    await new Promise<void>(resolve => { go = resolve })
  })
  await app.register(devices, { drainTimeout: 1_000 })
  const { url } = await open(t, app)
  const here = await connect(url, 'here')
  here.handle('work', () => undefined)
  const held = app.devices.call('here', 'work').catch(() => {})
  const late = refusal(url, '/ws?deviceId=late')
  await until(() => asked)
  const after = connectTcp(Number(new URL(url).port), '127.0.0.1')
  after.on('error', () => {})
  await once(after, 'connect')
  const closing = app.close()
  await until(() => app.server.listenerCount('upgrade') === 0)
  go()
  t.match(await late, { status: 503, body: { code: 'NODE_DRAINING' } })
  after.write('GET /ws?deviceId=after HTTP/1.1\r\nHost: localhost\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n')
  t.match(String((await once(after, 'data'))[0]), /^HTTP\/1.1 503/)
  await Promise.all([held, closing])
})

/** Runs the gateway as `npm start` does. */
async function gateway (t: { teardown (end: () => unknown): void }, env: Record<string, string>) {
  const data = await mkdtemp(join(tmpdir(), 'gateway-'))
  const child = spawn(process.execPath, [join(root, 'dist/lib/cli/index.js'), 'serve', '--config', join(root, 'dist/example/gateway.js')], {
    env: { PATH: process.env.PATH!, PORT: '0', DATA: data, ...env }, stdio: ['ignore', 'pipe', 'inherit']
  })
  const exited = once(child, 'exit')
  t.teardown(async () => { child.kill('SIGTERM'); await exited; await rm(data, { recursive: true }) })
  const [line] = await once(createInterface(child.stdout), 'line')
  const { url }: { url: string } = JSON.parse(line)
  return { child, exited, url }
}

t.test('the gateway answers a first try, and leaves by itself', async t => {
  const { child, exited, url } = await gateway(t, {})
  const device = await connect(url, 'abc123')
  t.strictSame((await device.ask('echo', { a: 1 })).result, { a: 1 })
  device.notify('message', { data: 'hello' })
  t.equal((await device.message()).params.data, 'hello')
  device.socket.send(Buffer.from('{"jsonrpc":"2.0","method":"message"}\nbytes'))
  t.strictSame((await device.message()).data, Buffer.from('bytes'))
  t.equal((await request({ url }, 'POST', '/devices/abc123/messages', { hello: 'world' })).status, 200)
  child.kill('SIGTERM')
  t.equal((await device.closed).code, 1012)
  t.strictSame(await exited, [0, null])
})

t.test('with a token, the gateway admits devices and callers that have it', async t => {
  const { url } = await gateway(t, { TOKEN: 'open sesame'.replace(' ', '-') })
  const headers = { authorization: 'Bearer open-sesame' }
  t.equal((await refusal(url, '/ws?deviceId=d')).status, 401)
  t.equal((await refusal(url, '/ws?deviceId=d', { headers: { authorization: 'Bearer open-barley' } })).status, 401)
  t.equal((await request({ url }, 'GET', '/devices')).status, 401)
  const device = await connect(url, 'd', { headers })
  t.ok((await device.ask('subscribe', { topics: ['a'] })).result)
  t.equal((await request({ url }, 'POST', '/devices/d/messages', 1, headers)).status, 200)
})

t.test('while backplane and mailbox are unreachable a node serves its devices, logs it once, and catches up', async t => {
  const { lines, ...log } = fakeLog()
  const words = () => lines.filter(({ level }) => level === 'warn' || level === 'error').map(({ words }) => words)
  const memory = memoryMailbox()
  const unlessAway = () => { if (isAway) throw new Failure('unreachable') }
  let isAway = false
  let tellLink: (up: boolean) => void
  let flushed = 0
  const backplane: Backplane = {
    ...localBackplane(),
    async flush () { flushed++ },
    onLink (listener) { tellLink = listener },
    onTrouble (listener) { listener(new Error('of the backplane')) }
  }
  const mailbox: Mailbox = {
    ...memory,
    onTrouble (listener) { listener(new Error('of the mailbox')) },
    async waiting (deviceId) {
      unlessAway()
      return await memory.waiting(deviceId)
    },
    async * letters (deviceId, after) {
      unlessAway()
      yield * memory.letters(deviceId, after)
    },
    async sweep (now) {
      unlessAway()
      return await memory.sweep(now)
    }
  }
  const app = await listen(t, { backplane, mailbox }, { loggerInstance: { ...log, child: () => log } as any })
  t.strictSame(words(), ['mailbox error', 'backplane error'])
  await app.devices.send('d', 'letter', { ttl: 60_000 })
  isAway = true
  tellLink!(false)
  await until(() => words().includes('mailbox unreachable'))
  const device = (await connect(app.url, 'd')).handle('message', () => ({}))
  t.match(await device.ask('subscribe', { topics: ['a'] }), { result: { topics: ['a'] } })
  await app.devices.join('d', 'b')
  t.equal(flushed, 2)
  t.match(await request(app, 'GET', '/devices/d'), { status: 503 })
  isAway = false
  tellLink!(true)
  t.equal((await device.message()).params.data, 'letter')
  await until(() => words().includes('mailbox reachable again'))
  t.strictSame(words().filter(text => /^(cluster link|mailbox) (down|restored|reachable|unreachable)/.test(text)).toSorted(), [
    'cluster link down', 'cluster link restored', 'mailbox reachable again', 'mailbox unreachable'
  ])
})

t.test('a mailbox that fails during admission closes the device with a code that allows it to reconnect', async t => {
  const mailbox: Mailbox = { ...memoryMailbox(), waiting: async () => { throw new Error('broken') } }
  const app = await listen(t, { mailbox })
  const device = await connect(app.url, 'd', { unwelcomed: true })
  t.equal((await device.closed).code, 1013)
})

t.test('with one node, `everywhere` is this node', async t => {
  const app = await listen(t)
  const told: unknown[] = []
  const listener = (presence: Presence) => told.push(presence.deviceId)
  app.devices.on('connected', listener, { everywhere: true }).on('disconnected', listener, { everywhere: true })
  const first = await connect(app.url, 'd')
  const second = await connect(app.url, 'd')
  await first.closed
  app.devices.off('connected', listener, { everywhere: true })
  await second.close()
  await until(() => told.length === 4)
  t.strictSame(told, ['d', 'd', 'd', 'd'])
})
