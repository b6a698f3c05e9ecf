import Fastify, { type FastifyInstance, type FastifyServerOptions } from 'fastify'
import t, { type Test } from 'tap'
import devices, { memoryMailbox, type ConnectRequest, type Options } from '../lib/index.ts'
import { ConnectionError, Failure, injectDevice, Refusal, type InjectedDevice, type InjectOptions } from '../lib/testing/index.ts'
import { SocketEnd } from '../lib/testing/socket-end.ts'
import { gate, reasonOf, turn, until } from './fakes.ts'

/** An application that does not listen, closed when the test ends. */
async function host (t: Pick<Test, 'teardown'>, options: Options = {}, server: FastifyServerOptions = {}): Promise<FastifyInstance> {
  const app = Fastify(server) as FastifyInstance
  await app.register(devices, options)
  t.teardown(() => app.close())
  return app
}

const dataOf = ({ messages }: InjectedDevice) => messages.map(({ data }) => data)

t.test('a test of an application with three devices takes milliseconds', async t => {
  const app = Fastify()
  await app.register(devices)
  app.devices.on('message', async (data, { id }) => { await app.devices.broadcast({ id, data }) })
  await app.ready()
  const began = performance.now()
  const all = await Promise.all(['a', 'b', 'c'].map(deviceId => injectDevice(app, { deviceId })))
  await all[0]!.call('message', { data: 'hi' })
  for (const device of all) t.match(await device.next(), { data: { id: 'a', data: 'hi' } })
  await app.close()
  t.comment(`${Math.round(performance.now() - began)} ms with the close`)
  for (const device of all) t.match(await device.closed, { code: 1012, reason: /^retry=\d+$/ })
})

t.test('nothing that the server says first is missed', async t => {
  const app = await host(t)
  app.devices.on('connected', device => {
    device.send('now')
    void app.devices.join(device.id, 'news').then(() => app.devices.broadcast('later', { topic: 'news' }))
  })
  await app.ready()
  for (const letter of ['first', 'second']) await app.devices.send('d', letter, { ttl: 60_000 })
  const device = await injectDevice(app, { deviceId: 'd' })
  t.match(device.welcome, { deviceId: 'd', generation: Number, heartbeat: 25_000, now: Number, waiting: 2 })
  t.equal(device.protocol, 'jsonrpc')
  const seen = [await device.next(), await device.next(), await device.next(), await device.next()]
  t.match(seen.filter(({ isLetter }) => isLetter), [{ data: 'first' }, { data: 'second' }])
  t.match(seen.filter(({ isLetter }) => !isLetter), [{ data: 'now' }, { data: 'later', topic: 'news' }])
  t.strictSame(device.messages, seen)
  await until(async () => (await app.devices.describe('d')).waiting === 0)
})

t.test('the server calls the methods of the device, and gets what they throw', async t => {
  const app = await host(t)
  const bug = new Error('a bug')
  const device = await injectDevice(app, {
    deviceId: 'd',
    handlers: {
      reboot: ({ delay }) => ({ in: delay }),
      sell: async () => { throw new Refusal('No paper', 42, { tray: 1 }) },
      broken: () => { throw bug }
    }
  })
  device.handle('late', () => 'too')
  t.strictSame(await app.devices.call('d', 'reboot', { delay: 5 }), { in: 5 })
  t.equal(await app.devices.call('d', 'late'), 'too')
  const refusal: Failure = await app.devices.call('d', 'sell').then(() => t.fail('it was refused'), error => error)
  t.match(refusal, { reason: 'refused' })
  t.strictSame(refusal.device, { code: 42, message: 'No paper', data: { tray: 1 } })
  await t.rejects(app.devices.call('d', 'broken'))
  await t.rejects(app.devices.call('d', 'unknown'), { code: 'METHOD_UNKNOWN' })
  t.strictSame(device.errors, [bug])
})

t.test('a letter is acknowledged once `onMessage` has finished, and refused or sent again if it throws', async t => {
  const app = await host(t, { attempts: 2 })
  const finishing = gate()
  const device = await injectDevice(app, {
    deviceId: 'd',
    async onMessage ({ data }) {
      if (data === 'slow') await finishing.opened
      if (data === 'wrong') throw new Refusal('Wrong')
      if (data === 'broken') throw new Error('broken')
    }
  })
  const { id } = await app.devices.send('d', 'slow', { ttl: 60_000 })
  t.match(await device.next(), { id, data: 'slow', isLetter: true })
  t.match(await app.devices.receipt('d', id), { status: 'queued' })
  finishing.open()
  await until(async () => (await app.devices.receipt('d', id)).status === 'delivered')
  t.match(await app.devices.send('d', 'sure', { confirm: true }), { status: 'delivered' })
  t.match(await device.next(), { data: 'sure', isLetter: true })
  t.equal(await reasonOf(app.devices.send('d', 'wrong', { confirm: true })), 'refused')

  const deadLettered = new Promise(resolve => { app.devices.on('dead-lettered', resolve) })
  await app.devices.send('d', 'broken', { ttl: 60_000 })
  await deadLettered
  t.strictSame(dataOf(device), ['slow', 'sure', 'wrong', 'broken', 'broken'])
})

t.test('the device calls, notifies, subscribes and publishes', async t => {
  const app = await host(t, { authorizeTopic: (_device, topic) => topic !== 'secret' })
  const notices: unknown[] = []
  app.devices.handle('add', params => { const { a, b } = params as { a: number, b: number }; return a + b })
  app.devices.on('message', data => { notices.push(data) })
  const [one, other] = [await injectDevice(app, { deviceId: 'one' }), await injectDevice(app, { deviceId: 'other' })]
  t.equal(await one.call('add', { a: 1, b: 2 }), 3)
  t.equal(await reasonOf(one.call('unknown')), 'unknown-method')
  t.equal(one.notify('message', { data: 'hi' }), true)
  await until(() => notices.length === 1)
  t.strictSame(notices, ['hi'])
  await other.subscribe('news/+')
  await one.publish('news/today', { rain: true })
  t.match(await other.next(), { topic: 'news/today', data: { rain: true }, isLetter: false })
  await other.unsubscribe('news/+')
  t.match(await app.devices.broadcast('nobody', { topic: 'news/today' }), { sent: 0 })
  t.match(await other.subscribe('secret').catch((error: Failure) => error.device), { code: -32008 })
})

t.test('messages of any size arrive in order, in both directions', async t => {
  const app = await host(t, { rate: 10_000, burst: 10_000 })
  app.devices.handle('echo', params => params)
  const device = await injectDevice(app, { deviceId: 'd' })
  const sizes = [0, 1, 50_000, 2, 60_000, 60_000, 3]
  for (const size of sizes) await app.devices.send('d', 'x'.repeat(size))
  const echoes = await Promise.all(sizes.map(size => device.call('echo', { text: 'x'.repeat(size) })))
  t.strictSame(echoes.map(({ text }) => text.length), sizes)
  t.strictSame((dataOf(device) as string[]).map(({ length }) => length), sizes)
  await app.devices.send('d', Buffer.from([1, 2, 3]))
  await device.next()
  await until(() => device.messages.length === sizes.length + 1)
  t.strictSame(device.messages.at(-1)!.data, new Uint8Array([1, 2, 3]))
})

t.test('`next` waits for a message, for as long as there can be one', async t => {
  const app = await host(t)
  const device = await injectDevice(app, { deviceId: 'd' })
  const both = Promise.all([device.next(), device.next()])
  await app.devices.send('d', 1)
  await app.devices.send('d', 2)
  t.strictSame((await both).map(({ data }) => data), [1, 2])
  await t.rejects(device.next({ timeot: 1 } as object), { message: 'next() has no option "timeot"' })
  await t.rejects(device.next({ timeout: 1 }), { message: 'No message arrived at "d" within 1 ms' })
  await app.devices.send('d', 3)
  const [third, none] = [device.next(), device.next()]
  t.match(await third, { data: 3 })
  await app.devices.disconnect('d')
  await t.rejects(none, { message: 'The connection of "d" has ended with code 4511: no further message arrives' })
  t.match(await device.closed, { code: 4511 })
  t.equal(device.notify('message', { data: 1 }), false)
  t.equal(await reasonOf(device.call('ping')), 'dropped')
})

t.test('the listeners of the application have run when `drop` or `close` resolves', async t => {
  const app = await host(t)
  const codes: number[] = []
  app.devices.on('disconnected', (_device, { code }) => codes.push(code))
  const [lost, closed] = [await injectDevice(app, { deviceId: 'lost' }), await injectDevice(app, { deviceId: 'closed' })]
  await lost.drop()
  t.strictSame(codes, [1006])
  await closed.close()
  t.strictSame(codes, [1006, 1000])
  t.equal(app.devices.size, 0)
  t.strictSame([await lost.closed, await closed.closed], [{ code: 1006, reason: '' }, { code: 1000, reason: '' }])
  await lost.drop()
  await closed.close()
})

t.test('a letter that a lost device has not acknowledged waits for the same id', async t => {
  const app = await host(t)
  const lost = await injectDevice(app, { deviceId: 'd', onMessage: () => new Promise(() => {}) })
  await app.devices.send('d', 'letter', { ttl: 60_000 })
  await lost.next()
  await lost.drop()
  const device = await injectDevice(app, { deviceId: 'd' })
  t.match(await device.next(), { data: 'letter', isLetter: true })
  t.ok(device.welcome.generation > lost.welcome.generation)
})

t.test('of two devices with one id the newest stays', async t => {
  const app = await host(t)
  const older = await injectDevice(app, { deviceId: 'd' })
  const newer = await injectDevice(app, { deviceId: 'd' })
  t.match(await older.closed, { code: 4509 })
  await app.devices.send('d', 1)
  t.match(await newer.next(), { data: 1 })
})

t.test('`authenticate` sees what the device brings', async t => {
  const seen: Array<Partial<ConnectRequest>> = []
  const app = await host(t, {
    path: '/socket',
    prefix: '/iot',
    authenticate: ({ deviceId, token, username, password, address, localAddress, headers, protocols, request }) => {
      seen.push({ deviceId, token, username, password, address, localAddress, protocols, headers: { site: headers['x-site'] as string, place: (request!.query as { place: string }).place } })
      return { tenant: 'acme' }
    }
  })
  const at: Pick<InjectOptions, 'deviceId' | 'path'> = { deviceId: 'd', path: '/iot/socket' }
  await injectDevice(app, { ...at, token: 'secret', headers: { 'x-site': 'north' }, query: { place: 'a b&c' }, remoteAddress: '203.0.113.7' })
  await injectDevice(app, { ...at, headers: { authorization: `Basic ${btoa('user:pass')}` } })
  t.match(app.devices.get('d')!.credentials, { tenant: 'acme' })
  t.strictSame(seen, [
    { deviceId: 'd', token: 'secret', username: undefined, password: undefined, address: '203.0.113.7', localAddress: '127.0.0.1', protocols: ['jsonrpc'], headers: { site: 'north', place: 'a b&c' } },
    { deviceId: 'd', token: undefined, username: 'user', password: 'pass', address: '127.0.0.1', localAddress: '127.0.0.1', protocols: ['jsonrpc'], headers: { site: undefined, place: undefined } }
  ])
})

t.test('a refusal says why', async t => {
  const app = Fastify()
  app.addHook('onRequest', async ({ headers }, reply) => { if (headers['x-deny']) await reply.code(418).send('a teapot') })
  await app.register(devices, { authenticate: ({ token }) => token === 'secret' })
  t.teardown(() => app.close())
  const refused = async (options: Partial<InjectOptions>) => await injectDevice(app, { deviceId: 'd', ...options }).then(() => t.fail('it was admitted'), error => error)
  const error = await refused({ token: 'wrong' })
  t.type(error, ConnectionError)
  t.match(error, { statusCode: 401, code: 'UNAUTHENTICATED', message: 'The device "d" was refused: 401 UNAUTHENTICATED: Credentials are missing or wrong' })
  t.match(await refused({ headers: { 'x-deny': '1' } }), { statusCode: 418, code: undefined, message: 'The device "d" was refused: 418 a teapot' })
  t.match(await refused({ path: '/nowhere' }), { statusCode: 404, message: /Route GET:\/nowhere\?deviceId=d not found/ })
  t.match(await refused({ protocol: 'unknown', token: 'secret' }), { statusCode: 400, code: 'PROTOCOL_UNKNOWN' })
  t.match(await refused({ headers: { origin: 'https://evil.example' } }), { statusCode: 403, code: 'ORIGIN_REFUSED' })
  t.match(await refused({ token: 'not a token' }), { name: 'SyntaxError' })
  await t.rejects(injectDevice(app, { deviceId: 'd', tokn: 'secret' } as InjectOptions), { message: 'injectDevice() has no option "tokn"' })
  t.equal(app.devices.size, 0)
})

t.test('a device that is not welcomed rejects with the close code', async t => {
  const app = await host(t, { mailbox: { ...memoryMailbox(), waiting: async () => { throw new Error('broken') } } })
  await t.rejects(injectDevice(app, { deviceId: 'd' }), { name: 'ConnectionError', closeCode: 1013, message: 'The device "d" was not welcomed: the connection ended with code 1013: overloaded, try again later' })
  const silent = await host(t, { authenticate: () => new Promise(() => {}) })
  await t.rejects(injectDevice(silent, { deviceId: 'd', timeout: 1 }), { closeCode: 1006, message: 'The device "d" was not welcomed: the connection ended with code 1006' })
})

t.test('protected mode admits an injected device as a local one, and only because of its address', async t => {
  const app = await host(t)
  await injectDevice(app, { deviceId: 'd' })
  for (const stranger of [{ remoteAddress: '203.0.113.7' }, { headers: { 'x-forwarded-for': '127.0.0.1' } }, { headers: { host: 'rebound.example' } }]) {
    await t.rejects(injectDevice(app, { deviceId: 'd', ...stranger }), { statusCode: 403, code: 'PROTECTED_MODE' })
  }
})

t.test('devices of an application over TLS are injected without a certificate, also beside HTTP/2', async t => {
  for (const options of [{ https: {} }, { http2: true, https: { allowHTTP1: true } }] as Array<{ https: {} }>) {
    const app = Fastify(options)
    await app.register(devices)
    t.teardown(() => app.close())
    const device = await injectDevice(app, { deviceId: 'd' })
    await app.devices.send('d', 1)
    t.match(await device.next(), { data: 1 })
  }
})

t.test('an application over HTTP/2 alone takes no WebSocket', async t => {
  const app = Fastify({ http2: true })
  await app.register(devices)
  t.teardown(() => app.close())
  await t.rejects(injectDevice(app, { deviceId: 'd' }), { name: 'ConnectionError' })
})

t.test('an application that closes before the device is admitted refuses it', async t => {
  const asked = gate()
  const answer = gate<boolean>()
  const app = await host(t, { authenticate: () => { asked.open(); return answer.opened } })
  const refused = injectDevice(app, { deviceId: 'd' }).then(() => t.fail('it was admitted'), error => error)
  await asked.opened
  const closing = app.close()
  await until(() => app.server.listenerCount('upgrade') === 0)
  answer.open(true)
  t.match(await refused, { closeCode: 1012 })
  await closing
})

t.test('an end that is not read holds the writes of the other back, until it is read or destroyed', async t => {
  for (const release of ['read', 'destroy'] as const) {
    const [client, server] = SocketEnd.pair('127.0.0.1', '127.0.0.1')
    let written = 0
    server.pause()
    client.write(Buffer.alloc(1_000_000), () => { written++ })
    client.write('second', () => { written++ })
    await turn()
    t.equal(written, 0)
    server[release]()
    await until(() => written === 2)
    for (const end of [client, server]) end.destroy()
  }
})
