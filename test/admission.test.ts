import { connect as connectTcp } from 'node:net'
import { once } from 'node:events'
import { networkInterfaces } from 'node:os'
import t from 'tap'
import Fastify from 'fastify'
import devices, { Failure, localBackplane, memoryMailbox, type Authenticate, type Backplane, type Mailbox } from '../lib/index.ts'
import { gate } from './fakes.ts'
import { connect, listen, open, refusal, request, until } from './support.ts'

const elsewhere = Object.values(networkInterfaces()).flat().find(one => one?.family === 'IPv4' && !one.internal)?.address

t.test('protected mode admits only this machine, and names the option to set', async t => {
  const app = await listen(t)
  await connect(app.url, 'd')
  const forged = [
    { 'x-forwarded-for': '10.0.0.1' }, { forwarded: 'for=10.0.0.1' }, { via: '1.1 proxy' }, { 'x-real-ip': '10.0.0.1' }, { host: 'evil.example' }
  ]
  for (const headers of forged) {
    const upgrade = await refusal(app.url, '/ws?deviceId=d', { headers })
    t.match(upgrade, { status: 403, body: { code: 'PROTECTED_MODE', message: /"authenticate"/ } })
    const rest = await app.inject({ method: 'GET', url: '/devices', headers })
    t.match(rest.json(), { statusCode: 403, code: 'PROTECTED_MODE', message: /"guard"/ })
  }
  const remote = await app.inject({ method: 'GET', url: '/devices', remoteAddress: '10.0.0.1' })
  t.equal(remote.statusCode, 403)
  for (const remoteAddress of ['127.0.0.9', '::1', '::ffff:127.0.0.1']) {
    t.equal((await app.inject({ method: 'GET', url: '/devices', remoteAddress })).statusCode, 200)
  }
  for (const host of ['[::1]:3000', 'localhost', 'my.localhost:80', '127.0.0.1']) {
    t.equal((await app.inject({ method: 'GET', url: '/devices', headers: { host } })).statusCode, 200)
  }
  t.equal(app.devices.size, 1)
  t.match(app.devices.stats().refusals, { protected: 11 })
})

t.test('protected mode refuses another address of this machine', { skip: elsewhere ? false : 'this machine has no other address' }, async t => {
  const app = Fastify()
  await app.register(devices)
  t.teardown(() => app.close())
  await app.listen({ port: 0, host: '0.0.0.0' })
  const { port } = app.server.address() as { port: number }
  const far = { url: `http://${elsewhere}:${port}` }
  t.match(await request(far, 'GET', '/devices'), { status: 403, body: { code: 'PROTECTED_MODE' } })
  t.match(await refusal(far.url, '/ws?deviceId=d'), { status: 403, body: { code: 'PROTECTED_MODE' } })
})

t.test('`false` admits everyone', async t => {
  const app = await listen(t, { authenticate: false, guard: false })
  const headers = { 'x-forwarded-for': '10.0.0.1', host: 'gateway.example' }
  const device = await connect(app.url, 'd', { headers })
  t.equal((await app.inject({ method: 'GET', url: '/devices', headers, remoteAddress: '10.0.0.1' })).statusCode, 200)
  t.match(await device.ask('subscribe', { topics: ['a'] }), { result: { topics: ['a'] } })
})

t.test('pages of other origins are refused unless they are listed', async t => {
  const app = await listen(t, { authenticate: false, guard: false, origins: ['https://shop.example'] })
  t.match(await refusal(app.url, '/ws?deviceId=d', { headers: { origin: 'https://evil.example' } }), { status: 403, body: { code: 'ORIGIN_REFUSED' } })
  t.match(await refusal(app.url, '/ws?deviceId=d', { headers: { origin: 'null' } }), { status: 403 })
  t.match(await request(app, 'GET', '/devices', undefined, { origin: 'https://evil.example' }), { status: 403, body: { code: 'ORIGIN_REFUSED' } })
  await connect(app.url, 'a', { headers: { origin: 'https://shop.example' } })
  await connect(app.url, 'b', { headers: { origin: app.url } })
  t.equal(app.devices.size, 2)
})

t.test('a device has a name, in the query or in the path', async t => {
  const app = await listen(t)
  const names = ['a', 'A.b_c:d@e+f=g~h-i', 'x'.repeat(128)]
  for (const name of names) {
    await connect(app.url, name, { path: `/ws?deviceId=${encodeURIComponent(name)}` })
    await connect(app.url, name, { path: `/ws/${encodeURIComponent(name)}` })
    t.ok(app.devices.has(name))
  }
  const wrong = ['', '?deviceId=', '?deviceId=a%20b', '?deviceId=a&deviceId=b', `?deviceId=${'x'.repeat(129)}`, `?deviceId=${'x'.repeat(10_000)}`, '?deviceId[]=a', '/a%2Fb', '?deviceId=.', '?deviceId=..', '?deviceId=%00', '?deviceId=%C3%A9']
  for (const query of wrong) t.match(await refusal(app.url, `/ws${query}`), { status: 400, body: { code: 'ID_INVALID' } }, query.slice(0, 20))
  t.equal(app.devices.size, names.length)
})

t.test('an id that REST could not reach is refused, with the setting that helps', async t => {
  const app = Fastify()
  await app.register(devices)
  const { url } = await open(t, app)
  t.match(await refusal(url, `/ws?deviceId=${'x'.repeat(101)}`), { status: 400, body: { code: 'ID_INVALID', message: /maxParamLength/ } })
  await connect(url, 'x'.repeat(100))
  t.equal((await request({ url }, 'GET', `/devices/${'x'.repeat(100)}`)).status, 200)
})

t.test('a subprotocol is agreed on, and a token is never echoed', async t => {
  let token: string | undefined
  const app = await listen(t, { authenticate: request => { token = request.token; return true } })
  t.equal((await connect(app.url, 'd')).socket.protocol, '')
  t.equal((await connect(app.url, 'd', { protocols: ['mqtt', 'jsonrpc', 'bearer.se.cret'] })).socket.protocol, 'jsonrpc')
  t.equal(token, 'se.cret')
  t.match(await refusal(app.url, '/ws?deviceId=d', { protocols: ['mqtt'] }), { status: 400, body: { code: 'PROTOCOL_UNKNOWN' } })
  await connect(app.url, 'd', { headers: { authorization: 'Bearer abc' } })
  t.equal(token, 'abc')
})

t.test('a device comes in with what authenticate says of it, or not at all', async t => {
  const authenticate: Authenticate = async ({ deviceId, request, protocols }) => {
    t.ok(request)
    t.strictSame(protocols, [])
    switch (deviceId) {
      case 'known': return { tenant: 7 }
      case 'trusted': return true
      case 'throws': throw new Error('no such table')
      case 'forbidden': throw new Failure('forbidden')
      case 'invalid': throw Object.assign(new Error('Token is expired'), { statusCode: 401, code: 'FST_JWT_AUTHORIZATION_TOKEN_EXPIRED' })
      case 'limited': throw Object.assign(new Error('Too Many Requests'), { statusCode: 429 })
      case 'suspended': return Object.assign(new Error('Tenant is suspended'), { statusCode: 403 }) as never
      case 'false': return false
      case 'expired': return { expiresAt: Date.now() - 1 }
      case 'never': return { expiresAt: Number.NaN }
      default: return undefined
    }
  }
  const lines: string[] = []
  const app = await listen(t, { authenticate }, { logger: { level: 'info', stream: { write: (line: string) => { lines.push(line) } } } })
  await connect(app.url, 'known')
  await connect(app.url, 'trusted')
  t.strictSame(app.devices.get('known')!.credentials, { tenant: 7 })
  t.strictSame(app.devices.get('trusted')!.credentials, {})
  for (const id of ['throws', 'invalid', 'limited', 'false', 'expired', 'never', 'nothing']) {
    t.match(await refusal(app.url, `/ws?deviceId=${id}`), { status: 401, body: { code: 'UNAUTHENTICATED', message: 'Credentials are missing or wrong' } }, id)
  }
  for (const id of ['forbidden', 'suspended']) {
    t.match(await refusal(app.url, `/ws?deviceId=${id}`), { status: 403, body: { code: 'FORBIDDEN', message: 'Not allowed' } })
  }
  t.equal(app.devices.size, 2)
  t.match(app.devices.stats(), { admissions: 2, refusals: { unauthenticated: 7, forbidden: 2 } })
  t.equal(lines.filter(line => line.includes('device refused')).length, 9)
  t.equal(lines.filter(line => line.includes('authenticate failed')).length, 2, 'only accidents are errors, such as the status of a service that was asked')
})

t.test('an authentication that hangs is refused in time', async t => {
  let signal: AbortSignal | undefined
  const app = await listen(t, { admissionTimeout: 50, authenticate: (_request, context) => { signal = context.signal; return new Promise(() => {}) } })
  t.match(await refusal(app.url, '/ws?deviceId=d'), { status: 401, body: { code: 'UNAUTHENTICATED' } })
  t.equal(signal!.aborted, true)
  t.equal(app.devices.size, 0)
})

t.test('a device that leaves while it is authenticated is not registered', async t => {
  let proceed = () => {}
  let signal: AbortSignal | undefined
  const asked = new Promise<void>(resolve => { proceed = resolve })
  let answer: (value: boolean) => void = () => {}
  const app = await listen(t, {
    authenticate: (_request, context) => {
      signal = context.signal
      proceed()
      return new Promise<boolean>(resolve => { answer = resolve })
    }
  })
  const { port } = new URL(app.url)
  const socket = connectTcp(Number(port), '127.0.0.1')
  socket.write('GET /ws?deviceId=d HTTP/1.1\r\nHost: localhost\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n')
  await asked
  socket.resetAndDestroy()
  await once(signal!, 'abort')
  answer(true)
  await until(() => app.devices.stats().refusals.departed === 1)
  t.equal(app.devices.size, 0)
})

t.test('credentials end, unless they are renewed', async t => {
  const app = await listen(t, { authenticate: ({ deviceId }) => ({ expiresAt: Date.now() + 100, deviceId }), stallTimeout: 200 })
  const [ending, renewed] = [await connect(app.url, 'ending'), await connect(app.url, 'renewed')]
  app.devices.get('renewed')!.renew(Date.now() + 60_000)
  t.throws(() => app.devices.get('renewed')!.renew(Number.NaN), TypeError)
  t.strictSame(await ending.closed, { code: 4005, reason: 'credentials expired' })
  t.ok((await renewed.ask('ping')).result.now)
})

t.test('what a device may listen to or say is for authorizeTopic to decide', async t => {
  const open = await listen(t, {
    authenticate: () => true,
    authorizeTopic: async ({ id }, topic, action) => {
      if (topic === 'throws') throw new Error('oops')
      return topic.startsWith(`${id}/`) && action === 'subscribe'
    }
  })
  const device = await connect(open.url, 'd')
  t.match(await device.ask('subscribe', { topics: ['d/#'] }), { result: { topics: ['d/#'] } })
  t.equal((await device.ask('subscribe', { topics: ['d/a', 'e/a'] })).error!.code, -32008)
  t.equal((await device.ask('publish', { topic: 'd/a', data: 1 })).error!.code, -32008)
  t.equal((await device.ask('subscribe', { topics: ['throws'] })).error!.code, -32603)
  t.strictSame([...open.devices.get('d')!.topics], ['d/#'])

  const closed = await listen(t, { authenticate: () => true })
  const other = await connect(closed.url, 'd')
  t.equal((await other.ask('subscribe', { topics: ['a'] })).error!.code, -32008, 'without it, nothing is allowed once devices are authenticated')
})

t.test('a guard decides who may use REST', async t => {
  const app = await listen(t, {
    authenticate: false,
    guard: ({ headers }) => {
      if (headers.authorization === 'Bearer broken') throw new Error('postgres is at 10.0.0.7')
      if (headers.authorization === 'Bearer late') throw Object.assign(new Error('Pay first'), { statusCode: 402 })
      if (headers.authorization === 'Bearer looked up') return Promise.resolve(true)
      if (headers.authorization === 'Bearer not found') return Promise.resolve(false)
      if (headers.authorization === 'Bearer no database') return Promise.reject(new Error('postgres is at 10.0.0.7'))
      return headers.authorization === 'Bearer right'
    }
  })
  const as = (authorization?: string) => request(app, 'GET', '/devices', undefined, authorization ? { authorization } : {})
  t.equal((await as('Bearer right')).status, 200)
  t.match(await as('Bearer wrong'), { status: 403, body: { code: 'FORBIDDEN' } })
  t.match(await as(), { status: 401, body: { code: 'UNAUTHENTICATED' } })
  t.match(await as('Bearer late'), { status: 402, body: { message: 'Pay first' } })
  t.strictSame((await as('Bearer broken')).body, { statusCode: 500, code: 'INTERNAL_ERROR', error: 'Internal Server Error', message: 'Internal error' })
  t.equal((await as('Bearer looked up')).status, 200)
  t.match(await as('Bearer not found'), { status: 403, body: { code: 'FORBIDDEN' } })
  t.match(await as('Bearer no database'), { status: 500, body: { code: 'INTERNAL_ERROR', message: 'Internal error' } })
  t.strictSame(app.devices.stats().refusals, { forbidden: 2, unauthenticated: 1, guard: 1, internal: 2 })
})

t.test('neither tokens nor messages reach a log', async t => {
  const lines: string[] = []
  const app = await listen(t, {
    authenticate: ({ token }) => token === 's3cret-token',
    guard: ({ headers }) => headers.authorization === 'Bearer s3cret-token',
    authorizeTopic: () => true
  }, { logger: { level: 'trace', stream: { write: (line: string) => { lines.push(line) } } } })
  const headers = { authorization: 'Bearer s3cret-token' }
  await refusal(app.url, '/ws?deviceId=x', { headers: { authorization: 'Bearer wr0ng-token' } })
  const device = await connect(app.url, 'd', { protocols: ['jsonrpc', 'bearer.s3cret-token'] })
  device.handle('refuse', () => { throw { code: 1, message: 's3cret-payload', data: 's3cret-payload' } }) // eslint-disable-line
  await device.ask('message', { data: 's3cret-payload' })
  await device.ask('s3cret-payload'.slice(7), 's3cret-payload')
  device.socket.send('s3cret-payload')
  device.socket.send('{"jsonrpc":"2.0","id":1,"result":"s3cret-payload"}')
  await request(app, 'POST', '/devices/d/messages', 's3cret-payload', headers)
  await request(app, 'POST', '/devices/d/messages?ttl=9', 's3cret-payload', headers)
  await request(app, 'POST', '/devices/d/messages', '{"s3cret-payload', { ...headers, 'content-type': 'application/json' })
  await request(app, 'POST', '/devices/d/calls/refuse', ['s3cret-payload'], headers)
  await request(app, 'GET', '/devices', undefined, { authorization: 'Bearer wr0ng-token' })
  await device.close()
  t.ok(lines.length > 10)
  t.strictSame(lines.filter(line => /s3cret|wr0ng/.test(line)), [])
})

t.test('a device that cannot be taken over is closed with a code that allows it to reconnect', async t => {
  const broken: Backplane = { ...localBackplane(), own: async () => { throw new Failure('unreachable') } }
  const app = await listen(t, { backplane: broken })
  const device = await connect(app.url, 'd', { unwelcomed: true })
  t.equal((await device.closed).code, 1013)
  t.equal(app.devices.size, 0)
})

t.test('a backplane that hangs does not hold a device forever', async t => {
  let go = () => {}
  const inner = localBackplane()
  const hanging: Backplane = { ...inner, async own (id, owner) { await new Promise<void>(resolve => { go = resolve }); return await inner.own(id, owner) } }
  const app = await listen(t, { backplane: hanging, admissionTimeout: 50 })
  const device = await connect(app.url, 'd', { unwelcomed: true })
  t.equal((await device.closed).code, 1013)
  go()
  await until(async () => (await inner.list({ limit: 1 })).length === 0)
  t.equal(app.devices.size, 0)
})

/** A backplane where the device is owned at once, and who owns it hears of that only when the test lets it. */
function holding (): { slow: Backplane, held: Array<() => void>, inner: Backplane } {
  const inner = localBackplane()
  const held: Array<() => void> = []
  const slow: Backplane = {
    ...inner,
    async own (id, owner) {
      const ownership = await inner.own(id, owner)
      await new Promise<void>(resolve => held.push(resolve))
      return ownership
    }
  }
  return { slow, held, inner }
}

t.test('a request to a device that is not welcomed yet waits for its welcome', async t => {
  const { slow, held } = holding()
  const app = await listen(t, { backplane: slow })
  const device = await connect(app.url, 'd', { unwelcomed: true })
  await until(() => held.length === 1)
  const early = app.devices.send('d', 'early')
  const described = app.devices.describe('d')
  held[0]!()
  t.equal((await early).status, 'sent')
  t.strictSame([(await device.next()).method, (await device.next()).params.data], ['welcome', 'early'])
  t.equal((await described as { generation: number }).generation, app.devices.get('d')!.generation)

  const older = await connect(app.url, 'e', { unwelcomed: true })
  await until(() => held.length === 2)
  const lost = t.rejects(app.devices.send('e', 1), { code: 'DEVICE_DROPPED' })
  await connect(app.url, 'e', { unwelcomed: true })
  t.equal((await older.closed).code, 4509)
  await lost
  await until(() => held.length === 3)
  for (const go of held) go()
})

t.test('a device that disconnects before its welcome emits no events', async t => {
  const events: string[] = []
  const stream = {
    write (line: string) {
      if (line.includes('device connected')) for (const device of app.devices) (device as unknown as { end (reason: string): void }).end('removed')
    }
  }
  const app = await listen(t, {}, { logger: { level: 'info', stream } })
  app.devices.on('connected', () => events.push('connected'))
  const device = await connect(app.url, 'd', { unwelcomed: true })
  t.equal((await device.closed).code, 4511)
  t.strictSame(events, [])
  t.equal(app.devices.size, 0)
})

t.test('a device that was sent away by the time its letters are counted takes nothing over', async t => {
  const counted = gate<number>()
  const mailbox: Mailbox = { ...memoryMailbox(), waiting: () => counted.opened }
  const inner = localBackplane()
  const owned: string[] = []
  const backplane: Backplane = {
    ...inner,
    own (id, owner) {
      owned.push(id)
      return inner.own(id, owner)
    }
  }
  const app = await listen(t, { mailbox, backplane, admissionTimeout: 50 })
  const gone = await connect(app.url, 'gone', { unwelcomed: true })
  t.equal((await gone.closed).code, 1013)
  counted.open(0)
  await connect(app.url, 'here')
  t.strictSame(owned, ['here'])
})

t.test('a backplane that fails while a device leaves keeps nothing of it', async t => {
  const inner = localBackplane()
  const lines: string[] = []
  const failing: Backplane = {
    ...inner,
    remote: true,
    async own (id, owner) {
      const { generation, release } = await inner.own(id, owner)
      return { generation, release: async () => { await release(); throw new Failure('unreachable') } }
    },
    watch (filter, listener) {
      const unwatch = inner.watch(filter, listener)
      return () => { unwatch(); if (filter === 'a') throw new Error('the connection is closed') }
    }
  }
  const mailbox = { ...memoryMailbox(), shared: true }
  const app = await listen(t, { backplane: failing, mailbox }, { logger: { level: 'warn', stream: { write: (line: string) => { lines.push(line) } } } })
  const left: string[][] = []
  app.devices.on('disconnected', device => left.push([...device.topics]))
  const device = await connect(app.url, 'd')
  await device.ask('subscribe', { topics: ['a'] })
  const call = app.devices.call('d', 'never')
  device.socket.terminate()
  await t.rejects(call, { code: 'DEVICE_DROPPED' })
  await until(() => lines.length === 2)
  t.equal(app.devices.size, 0)
  t.strictSame(left, [['a']])
  await t.rejects(app.devices.send('d', 1), { code: 'DEVICE_OFFLINE' })
})

t.test('a device that is replaced while it is taken over owns nothing', async t => {
  const { slow, held, inner } = holding()
  const app = await listen(t, { backplane: slow })
  const events: string[] = []
  app.devices.on('connected', () => events.push('connected'))
  app.devices.on('disconnected', () => events.push('disconnected'))
  const older = await connect(app.url, 'd', { unwelcomed: true })
  await until(() => held.length === 1)
  const newer = await connect(app.url, 'd', { unwelcomed: true })
  t.equal((await older.closed).code, 4509)
  await until(() => held.length === 2)
  held[1]!()
  t.equal((await newer.next()).method, 'welcome')
  held[0]!()
  t.ok((await newer.ask('ping')).result.now)
  t.strictSame(events, ['connected'])
  t.equal((await inner.list({ limit: 9 })).length, 1)
})

t.test('the higher generation stays, even where the lower one is the last to hear of its number', async t => {
  let generation = 10
  const app = await listen(t, { backplane: { ...localBackplane(), own: async () => ({ generation: generation--, release: async () => {} }) } })
  const high = await connect(app.url, 'd')
  const low = await connect(app.url, 'd', { unwelcomed: true })
  t.equal((await low.closed).code, 4509)
  t.strictSame(low.seen, [])
  t.ok((await high.ask('ping')).result.now)
})

t.test('messages that come before the welcome are answered after it', async t => {
  const inner = localBackplane()
  let go = () => {}
  const slow: Backplane = { ...inner, async own (id, owner) { await new Promise<void>(resolve => { go = resolve }); return await inner.own(id, owner) } }
  const app = await listen(t, { backplane: slow, mailbox: memoryMailbox() })
  const device = await connect(app.url, 'd', { unwelcomed: true })
  const answer = device.ask('ping')
  await new Promise(resolve => setImmediate(resolve))
  t.strictSame(device.seen, [])
  await until(() => { go(); return device.seen.length === 2 })
  t.equal(device.seen[0]!.method, 'welcome')
  t.ok((await answer).result.now)
})
