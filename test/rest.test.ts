import { once } from 'node:events'
import { request as httpRequest, type IncomingMessage } from 'node:http'
import { Readable } from 'node:stream'
import { queryObjects } from 'node:v8'
import type { FastifyRequest } from 'fastify'
import t from 'tap'
import { Failure, localBackplane, memoryMailbox, type Backplane } from '../lib/index.ts'
import type { Dispatcher } from '../lib/messaging/dispatcher.ts'
import { BulkStream } from '../lib/rest/bulk-stream.ts'
import { gate, reasonOf } from './fakes.ts'
import { connect, listen, request, until } from './support.ts'

t.test('without REST, devices connect and nothing else is served', async t => {
  const app = await listen(t, { rest: false })
  await connect(app.url, 'd')
  for (const [method, path] of [['GET', '/devices'], ['POST', '/broadcast'], ['POST', '/messages'], ['DELETE', '/devices/d']] as const) {
    t.match(await request(app, method, path), { status: 404, body: { error: 'Not Found' } })
  }
  t.equal(await app.devices.send('d', 1).then(({ status }) => status), 'sent')
  await connect(app.url, 'x'.repeat(128)) // no route has to match it
})

t.test('a message reaches its device as JSON, text or bytes', async t => {
  const app = await listen(t)
  const device = await connect(app.url, 'abc123')

  const json = await request(app, 'POST', '/devices/abc123/messages', { hello: 'world' })
  t.match(json, { status: 200, body: { status: 'sent' } })
  t.match(await device.message(), { params: { id: json.body.id, data: { hello: 'world' } } })

  const text = await request(app, 'POST', '/devices/abc123/messages', 'hello', { 'content-type': 'text/csv' })
  t.equal(text.status, 200)
  t.equal((await device.message()).params.data, 'hello')

  const bytes = await request(app, 'POST', '/devices/abc123/messages', Buffer.from([0, 10, 255]))
  t.equal(bytes.status, 200)
  const seen = await device.message()
  t.strictSame(seen.params, { id: bytes.body.id })
  t.strictSame(seen.data, Buffer.from([0, 10, 255]))
})

t.test('a body that is no message is refused', async t => {
  const app = await listen(t)
  await connect(app.url, 'd')
  const send = (body: unknown, headers?: Record<string, string>, path = '/devices/d/messages') => request(app, 'POST', path, body, headers)

  t.match(await send(undefined), { status: 400, body: { code: 'MESSAGE_MALFORMED' } })
  t.match(await send('{', { 'content-type': 'application/json' }), { status: 400, body: { code: 'FST_ERR_CTP_INVALID_JSON_BODY' } })
  t.match(await send('{"__proto__":{}}', { 'content-type': 'application/json' }), { status: 400 })
  t.match(await send('['.repeat(33) + ']'.repeat(33), { 'content-type': 'application/json' }), { status: 400, body: { code: 'MESSAGE_MALFORMED' } })
  t.match(await send('a=1', { 'content-type': 'application/x-www-form-urlencoded' }), { status: 415, body: { code: 'TYPE_UNSUPPORTED' } })
  t.match(await send(Buffer.alloc(65_537)), { status: 413 })
  t.match(await send('[1]', { 'content-type': 'application/json' }, '/devices/d/messages?ttl=-1'), { status: 400 })
  t.match(await send('[1]', { 'content-type': 'application/json' }, '/devices/d/messages?ttl=604801'), { status: 400 })
  t.match(await send('[1]', { 'content-type': 'application/json' }, '/devices/d%20/messages'), { status: 400 })
  t.match(await send('"text"', { 'content-type': 'application/json' }, '/devices/d/calls/m'), { status: 400, body: { code: 'PARAMS_INVALID' } })
})

t.test('a message for a device that is away fails at once without a ttl', async t => {
  const app = await listen(t)
  t.match(await request(app, 'POST', '/devices/away/messages', 1), { status: 404, body: { statusCode: 404, code: 'DEVICE_OFFLINE', error: 'Not Found', message: String } })
  t.match(await request(app, 'POST', '/devices/away/calls/m'), { status: 404, body: { code: 'DEVICE_OFFLINE' } })
  t.match(await request(app, 'GET', '/devices/away'), { status: 404, body: { code: 'DEVICE_OFFLINE' } })
  t.match(await request(app, 'DELETE', '/devices/away'), { status: 404, body: { code: 'DEVICE_OFFLINE' } })
  t.match(await request(app, 'PUT', '/devices/away/topics/a'), { status: 404, body: { code: 'DEVICE_OFFLINE' } })

  const kept = await request(app, 'POST', '/devices/away/messages?ttl=60', { n: 1 })
  t.match(kept, { status: 202, body: { status: 'queued' } })
  const location = kept.headers.get('location')!
  t.equal(location, `/devices/away/messages/${kept.body.id}`)
  t.match(await request(app, 'GET', location), { status: 200, body: { id: kept.body.id, status: 'queued', size: 7 } })
  t.match(await request(app, 'GET', '/devices/away'), { status: 200, body: { connected: false, waiting: 1 } })

  const device = (await connect(app.url, 'away', { unwelcomed: true })).handle('message', () => ({}))
  t.match(await device.next(), { method: 'welcome', params: { deviceId: 'away', waiting: 1, heartbeat: 25_000, now: Number, generation: Number } })
  t.match(await device.message(), { id: kept.body.id, params: { id: kept.body.id, data: { n: 1 } } })
  await until(async () => (await request(app, 'GET', location)).body.status === 'delivered')
  t.match(await request(app, 'DELETE', location), { status: 409, body: { code: 'MESSAGE_SETTLED' } })
})

t.test('letters can be listed in pages, cancelled and purged', async t => {
  const app = await listen(t)
  const ids: string[] = []
  for (let n = 0; n < 5; n++) ids.push((await request(app, 'POST', '/devices/away/messages?ttl=60', n)).body.id)

  const first = await request(app, 'GET', '/devices/away/messages?limit=2')
  t.strictSame(first.body.messages.map(({ id }: { id: string }) => id), ids.slice(0, 2))
  const rest = await request(app, 'GET', `/devices/away/messages?cursor=${first.body.cursor}`)
  t.strictSame(rest.body.messages.map(({ id }: { id: string }) => id), ids.slice(2))
  t.equal(rest.body.cursor, undefined)

  t.match(await request(app, 'DELETE', `/devices/away/messages/${ids[1]}`), { status: 200, body: { id: ids[1], status: 'cancelled' } })
  t.match(await request(app, 'DELETE', `/devices/away/messages/${ids[1]}`), { status: 409, body: { code: 'MESSAGE_SETTLED' } })
  t.match(await request(app, 'DELETE', '/devices/away/messages/unheard-of'), { status: 404, body: { code: 'MESSAGE_UNKNOWN' } })
  t.match(await request(app, 'DELETE', '/devices/away/messages'), { status: 200, body: { cancelled: 4 } })
  t.match(await request(app, 'GET', '/devices/away/messages'), { body: { messages: [] } })
})

t.test('letters arrive in order, and a newer one replaces another with the same collapse key', async t => {
  const app = await listen(t)
  const replaced: string[] = []
  app.devices.on('replaced', ({ id }) => replaced.push(id))
  const [a, b] = [
    await app.devices.send('d', 'a', { ttl: 60_000, collapse: 'state' }),
    await app.devices.send('d', 'b', { ttl: 60_000 }),
    await app.devices.send('d', 'c', { ttl: 60_000, collapse: 'state' })
  ]
  const device = (await connect(app.url, 'd')).handle('message', () => ({}))
  t.equal((await device.message()).params.data, 'b')
  t.equal((await device.message()).params.data, 'c')
  t.strictSame(replaced, [a!.id])
  t.equal((await app.devices.receipt('d', a!.id)).status, 'replaced')
  await until(async () => (await app.devices.receipt('d', b!.id)).status === 'delivered')
})

t.test('a confirmed message answers once the device has acknowledged', async t => {
  const app = await listen(t, { callTimeout: 100 })
  const device = await connect(app.url, 'd')
  let acknowledge = true
  device.handle('message', ({ data }) => {
    if (data === 'refuse') throw { code: 7, message: 'no', data: { why: 1 } } // eslint-disable-line
    return acknowledge ? {} : undefined
  })

  for (const path of ['/devices/d/messages?confirm=true', '/devices/d/messages?confirm=true&ttl=60']) {
    acknowledge = true
    t.match(await request(app, 'POST', path, 1), { status: 200, body: { status: 'delivered' } })
    t.match(await request(app, 'POST', path, 'refuse'), { status: 422, body: { code: 'DEVICE_REFUSED', device: { code: 7, message: 'no', data: { why: 1 } } } })
  }
  acknowledge = false
  t.match(await request(app, 'POST', '/devices/d/messages?confirm=true', 1), { status: 504, body: { code: 'DEVICE_TIMEOUT' } })
  t.match(await request(app, 'POST', '/devices/d/messages?confirm=true&ttl=60&timeout=0.05', 1), { status: 202, body: { status: 'queued' } })
  t.match(await request(app, 'POST', '/devices/d/messages?confirm=true&ttl=0.05&timeout=60', 1), { status: 504, body: { code: 'DEVICE_TIMEOUT' } })

  const cancelled = request(app, 'POST', '/devices/d/messages?confirm=true&ttl=60&timeout=60', 1)
  await until(async () => (await app.devices.describe('d')).waiting === 2)
  await app.devices.purge('d')
  t.match(await cancelled, { status: 409, body: { code: 'MESSAGE_SETTLED' } })
  t.match(await request(app, 'POST', '/devices/away/messages?confirm=true', 1), { status: 404 })
})

t.test('a letter that no device fetches expires', async t => {
  const app = await listen(t)
  const expired: string[] = []
  app.devices.on('expired', ({ id }) => expired.push(id))
  const { id } = await app.devices.send('away', 1, { ttl: 10 })
  await until(() => expired.length > 0)
  t.strictSame(expired, [id])
  t.equal((await app.devices.receipt('away', id)).status, 'expired')
  await t.rejects(app.devices.send('away', 1, { ttl: -1 }), { code: 'MESSAGE_MALFORMED' })
  await t.rejects(app.devices.send('away', 1, { ttl: Number.NaN }), { code: 'MESSAGE_MALFORMED' })
  await t.rejects(app.devices.send('away', () => 1, { ttl: 1_000 }), { code: 'PARAMS_INVALID', message: 'Cannot be encoded: a function is not data' })
  t.strictSame(await app.devices.letters('away'), { receipts: [], next: undefined })
})

t.test('an idempotency key makes one delivery of many tries', async t => {
  const app = await listen(t)
  const headers = { 'idempotency-key': 'order 7' }
  const send = (path: string, body: unknown) => request(app, 'POST', path, body, headers)

  t.match(await send('/devices/d/messages', 1), { status: 404 }, 'nothing was sent, so the key may try again')
  const device = await connect(app.url, 'd')
  const tries = await Promise.all([send('/devices/d/messages', 1), send('/devices/d/messages', 1), send('/devices/d/messages', 1)])
  t.strictSame(new Set(tries.map(({ body }) => body.id)).size, 1)
  t.match(await send('/devices/d/messages', 2), { status: 409, body: { code: 'IDEMPOTENCY_MISMATCH' } })
  t.equal((await request(app, 'POST', '/devices/d/messages', 'last')).status, 200)
  await device.next(({ params }) => params?.data === 'last')
  t.equal(device.seen.filter(({ method }) => method === 'message').length, 2)

  const kept = await send('/devices/away/messages?ttl=60', 1)
  t.match(await send('/devices/away/messages?ttl=60', 1), { status: 202, body: { id: kept.body.id } })
  t.equal((await app.devices.describe('away')).waiting, 1)
})

t.test('one idempotency key is one delivery, whatever the options of each try', async t => {
  const app = await listen(t)
  const ways = { now: {}, confirmed: { confirm: true }, kept: { ttl: 60_000 }, 'kept and confirmed': { ttl: 60_000, confirm: true } }
  /** What each try becomes while the first is not acknowledged yet, and once it is. */
  const cases: Array<[first: keyof typeof ways, underway: string[], afterwards: string]> = [
    ['now', ['sent', 'sent', 'sent', 'sent'], 'sent'],
    ['confirmed', ['delivered', 'delivered', 'delivered', 'delivered'], 'delivered'],
    ['kept', ['queued', 'delivered', 'queued', 'delivered'], 'delivered'],
    ['kept and confirmed', ['queued', 'delivered', 'queued', 'delivered'], 'delivered']
  ]
  for (const [at, [first, underway, afterwards]] of cases.entries()) {
    const send = async (options: object) => (await app.devices.send(`d${at}`, 1, { ...options, key: 'k' })).status
    const acknowledged = gate<object>()
    const device = (await connect(app.url, `d${at}`)).handle('message', () => acknowledged.opened)
    const trying = send(ways[first])
    await device.message()
    const again = Object.values(ways).map(send)
    acknowledged.open({})
    await trying
    t.strictSame(await Promise.all(again), underway, `while what was sent ${first} is under way`)
    for (const [way, options] of Object.entries(ways)) t.equal(await send(options), afterwards, `${way}, once what was sent ${first} has been acknowledged`)
    await app.devices.send(`d${at}`, 'last', { ttl: 60_000, confirm: true })
    const messages = device.seen.filter(({ method }) => method === 'message').map(({ params }) => params.data)
    t.strictSame(messages, [1, 'last'], `what was sent ${first} has come once`)
  }
})

t.test('what is sent now goes though the mailbox cannot tell whether it was a letter before', async t => {
  const failures = [new Failure('unreachable'), new Failure('store-full'), new Error('an accident')]
  const app = await listen(t, { mailbox: { ...memoryMailbox(), async receipt () { throw failures.shift()! } } })
  await connect(app.url, 'd')
  t.match(await app.devices.send('d', 1, { key: 'a' }), { status: 'sent' })
  t.match(await app.devices.send('d', 1, { key: 'b' }), { status: 'sent' })
  await t.rejects(app.devices.send('d', 1, { key: 'c' }), { message: 'an accident' })
})

t.test('a retry over another node joins the message that waits to be acknowledged', async t => {
  const backplane = localBackplane()
  const [here, elsewhere] = [await listen(t, { backplane }), await listen(t, { backplane })]
  const acknowledged = gate<object>()
  const device = (await connect(here.url, 'd')).handle('message', () => acknowledged.opened)
  const options = { confirm: true, key: 'k' }
  const first = here.devices.send('d', { a: [1] }, options)
  await device.message()
  const again = elsewhere.devices.send('d', { a: [1] }, options)
  const other = elsewhere.devices.send('d', { a: [2] }, { ...options, key: 'other' })
  acknowledged.open({})
  t.match(await Promise.all([first, again, other]), [{ status: 'delivered' }, { status: 'delivered' }, { status: 'delivered' }])
  t.equal(device.seen.filter(({ method }) => method === 'message').length, 2)
})

t.test('another message under an id that is under way is refused', async t => {
  const backplane = localBackplane()
  const [here, elsewhere] = [await listen(t, { backplane }), await listen(t, { backplane })]
  const acknowledged = gate<object>()
  const device = (await connect(here.url, 'd')).handle('message', () => acknowledged.opened)
  const first = here.devices.send('d', 1, { confirm: true, key: 'k' })
  await device.message()
  t.equal(await reasonOf(elsewhere.devices.send('d', 2, { confirm: true, key: 'k' })), 'busy')
  acknowledged.open({})
  t.match(await first, { status: 'delivered' })
})

t.test('under a key that could not be sent at once a message may wait, and then it is that message', async t => {
  const app = await listen(t)
  const send = async (query: string, body: unknown = 1) => await request(app, 'POST', `/devices/d/messages${query}`, body, { 'idempotency-key': 'k' })
  t.match(await send(''), { status: 404 })
  const { body: { id } } = await send('?ttl=60')
  t.match(await send(''), { status: 202, body: { id } })
  t.match(await send('', 2), { status: 409, body: { code: 'IDEMPOTENCY_MISMATCH' } })
  t.match(await send('?confirm=true&timeout=0.01'), { status: 202, body: { id } })
  await app.devices.cancel('d', id)
  t.match(await send(''), { status: 200, body: { id, status: 'cancelled' } })
  t.match(await send('?confirm=true'), { status: 409, body: { code: 'MESSAGE_SETTLED' } })
})

t.test('a retry learns what became of the first try, however long ago that was', async t => {
  const app = await listen(t)
  const headers = { 'idempotency-key': 'k' }
  const send = (id: string, query: string) => request(app, 'POST', `/devices/${id}/messages${query}`, 1, headers)
  const { body } = await send('d', '?ttl=60')
  t.match(await send('d', '?ttl=50'), { status: 202, body: { id: body.id } }, 'how long it may wait is not the message')
  const device = (await connect(app.url, 'd')).handle('message', () => ({}))
  await device.message()
  await until(async () => (await app.devices.receipt('d', body.id)).status === 'delivered')
  t.match(await send('d', '?ttl=60'), { status: 200, body: { id: body.id, status: 'delivered' } })
  t.match(await send('d', '?ttl=60&confirm=true'), { status: 200, body: { id: body.id, status: 'delivered' } })
  await send('away', '?ttl=60')
  await app.devices.purge('away')
  t.match(await send('away', '?ttl=60'), { status: 200, body: { status: 'cancelled' } })
  t.match(await send('away', '?ttl=60&confirm=true'), { status: 409, body: { code: 'MESSAGE_SETTLED' } })
})

t.test('what the server sends by itself cannot be called, and params have members', async t => {
  const app = await listen(t)
  await connect(app.url, 'd')
  for (const method of ['message', 'welcome']) t.match(await request(app, 'POST', `/devices/d/calls/${method}`), { status: 400, body: { code: 'PARAMS_INVALID' } })
  for (const params of ['text', 1, null]) await t.rejects(app.devices.call('d', 'm', params), { code: 'PARAMS_INVALID' })
})

t.test('bytes and nothing can be kept, under a key or not', async t => {
  const app = await listen(t)
  await app.devices.send('d', Buffer.from('bytes'), { ttl: 60_000, key: 'k' })
  await app.devices.send('d', undefined, { ttl: 60_000 })
  await t.rejects(app.devices.send('d', 'bytes', { ttl: 60_000, key: 'k' }), { code: 'IDEMPOTENCY_MISMATCH' })
  const device = (await connect(app.url, 'd')).handle('message', () => ({}))
  t.strictSame((await device.message()).data, Buffer.from('bytes'))
  t.equal((await device.message()).params.data, null)
})

t.test('a mailbox remembers a key that its node has forgotten', async t => {
  const app = await listen(t, { keyTtl: 1 })
  const kept = await app.devices.send('away', 1, { ttl: 60_000, key: 'k' })
  await new Promise(resolve => setTimeout(resolve, 5))
  t.strictSame(await app.devices.send('away', 1, { ttl: 60_000, key: 'k' }), kept)
  await new Promise(resolve => setTimeout(resolve, 5))
  await t.rejects(app.devices.send('away', 2, { ttl: 60_000, key: 'k' }), { code: 'IDEMPOTENCY_MISMATCH' })
  t.equal((await app.devices.describe('away')).waiting, 1)
})

t.test('a call answers with the result of the device, or says why there is none', async t => {
  const app = await listen(t, { maxCalls: 2 })
  const device = await connect(app.url, 'd')
  const call = (method: string, body?: unknown, query = '') => request(app, 'POST', `/devices/d/calls/${method}${query}`, body)
  device
    .handle('add', ({ a, b }) => a + b)
    .handle('nothing', () => null)
    .handle('text', () => 'hi')
    .handle('refuse', () => { throw { code: 42, message: 'too hot' } }) // eslint-disable-line
    .handle('unknown', () => { throw { code: -32601, message: 'no' } }) // eslint-disable-line
    .handle('fast', () => { throw { code: -32005, message: 'no' } }) // eslint-disable-line
    .handle('mute', () => undefined)

  t.match(await call('add', { a: 1, b: 2 }), { status: 200, body: 3 })
  t.match(await call('nothing'), { status: 200, body: null })
  t.match(await call('text'), { status: 200, body: 'hi' })
  t.match(await call('refuse'), { status: 422, body: { code: 'DEVICE_REFUSED', device: { code: 42, message: 'too hot' } } })
  t.match(await call('unknown'), { status: 501, body: { code: 'METHOD_UNKNOWN' } })
  const fast = await call('fast')
  t.match(fast, { status: 429, body: { code: 'RATE_EXCEEDED' } })
  t.equal(fast.headers.get('retry-after'), '1')
  t.match(await call('mute', undefined, '?timeout=0.05'), { status: 504, body: { code: 'DEVICE_TIMEOUT' } })

  const bad = call('odd')
  const { id } = await device.next(({ method }) => method === 'odd')
  device.send({ jsonrpc: '2.0', id, result: 1, error: {} })
  t.match(await bad, { status: 502, body: { code: 'DEVICE_ANSWER_INVALID' } })

  const waiting = [call('mute'), call('mute')]
  await until(async () => (await request(app, 'GET', '/devices/d')).body.inFlight === 2)
  const busy = await call('mute')
  t.match(busy, { status: 429, body: { code: 'CALLS_EXCEEDED' } })
  t.ok(busy.headers.get('retry-after'))
  device.socket.terminate()
  for (const dropped of await Promise.all(waiting)) t.match(dropped, { status: 502, body: { code: 'DEVICE_DROPPED' } })
})

t.test('a call carries bytes both ways', async t => {
  const app = await listen(t)
  const device = await connect(app.url, 'd')
  const called = request(app, 'POST', '/devices/d/calls/scan', Buffer.from([1, 2]))
  const call = await device.next(({ method }) => method === 'scan')
  t.strictSame(call.data, Buffer.from([1, 2]))
  device.socket.send(Buffer.concat([Buffer.from(`{"jsonrpc":"2.0","id":${JSON.stringify(call.id)},"result":{}}\n`), Buffer.from([3, 4])]))
  const { body, headers } = await called
  t.equal(headers.get('content-type'), 'application/octet-stream')
  t.strictSame(body, Buffer.from([3, 4]))

  const again = request(app, 'POST', '/devices/d/calls/scan')
  const { id } = await device.next(({ method }) => method === 'scan')
  device.socket.send(Buffer.concat([Buffer.from(`{"jsonrpc":"2.0","id":${JSON.stringify(id)},"result":{"n":1}}\n`), Buffer.from([3, 4])]))
  t.match(await again, { status: 200, body: { n: 1, base64: 'AwQ=' } })
  device.handle('plain', () => ({ data: 'text' }))
  t.match(await request(app, 'POST', '/devices/d/calls/plain'), { status: 200, body: { data: 'text' } })
})

t.test('a caller that hangs up gives its call up', async t => {
  const app = await listen(t)
  const device = await connect(app.url, 'd')
  const hangUp = new AbortController()
  const call = fetch(`${app.url}/devices/d/calls/slow`, { method: 'POST', signal: hangUp.signal })
  const { id } = await device.next(({ method }) => method === 'slow')
  hangUp.abort()
  await t.rejects(call)
  await until(async () => (await request(app, 'GET', '/devices/d')).body.inFlight === 0)
  device.send({ jsonrpc: '2.0', id, result: 1 })
  await device.ask('ping')
  t.equal(app.devices.stats().unexpected.late, 1, 'its late answer changes nothing')
})

t.test('a caller that hangs up gives its call up on another node, too', async t => {
  const backplane = localBackplane()
  const mailbox = memoryMailbox()
  const [one, two] = [await listen(t, { backplane, mailbox }), await listen(t, { backplane, mailbox })]
  const device = await connect(two.url, 'd')
  const isIdle = async () => (await request(one, 'GET', '/devices/d')).body.inFlight === 0
  const hangUp = new AbortController()
  const call = fetch(`${one.url}/devices/d/calls/slow`, { method: 'POST', signal: hangUp.signal })
  await device.next(({ method }) => method === 'slow')
  hangUp.abort()
  await t.rejects(call)
  await until(isIdle)

  const given = new AbortController()
  const inProcess = one.devices.call('d', 'slow', {}, { signal: given.signal })
  await device.next(({ method }) => method === 'slow')
  given.abort()
  t.equal(await reasonOf(inProcess), 'dropped')
  await until(isIdle)
})

t.test('a caller that disconnects before the guard has decided starts no call', async t => {
  const guard = async ({ raw, headers }: FastifyRequest) => {
    if (headers['x-patience'] === 'none') await once(raw.socket, 'close')
    return true
  }
  const backplane = localBackplane()
  const mailbox = memoryMailbox()
  const [one, two] = [await listen(t, { backplane, mailbox, guard }), await listen(t, { backplane, mailbox, guard })]
  for (const [at, app] of [one, two].entries()) {
    const device = await connect(one.url, 'd')
    const call = httpRequest(`${app.url}/devices/d/calls/never`, { method: 'POST', headers: { 'x-patience': 'none' } })
    call.on('error', () => {})
    call.on('socket', socket => socket.once('connect', () => setImmediate(() => call.destroy())))
    call.end()
    await until(() => one.devices.stats().calls.dropped === at + 1)
    t.match(await device.ask('ping'), { result: { now: Number } })
    t.notOk(device.seen.some(({ method }) => method === 'never'))
  }
})

t.test('a broadcast reaches everyone, or those whose filters match the topic', async t => {
  const app = await listen(t)
  const [all, exact, plus, hash] = [await connect(app.url, 'all'), await connect(app.url, 'exact'), await connect(app.url, 'plus'), await connect(app.url, 'hash')]
  t.match(await exact.ask('subscribe', { topics: ['news/sport'] }), { result: { topics: ['news/sport'] } })
  t.match(await plus.ask('subscribe', { topics: ['news/+', 'news/sport'] }), { result: { topics: ['news/+', 'news/sport'] } })
  t.match(await request(app, 'PUT', '/devices/hash/topics/news%2F%23'), { status: 200, body: { topics: ['news/#'] } })

  t.match(await request(app, 'POST', '/broadcast?topic=news/sport', { n: 1 }), { status: 200, body: { sent: 3, nodes: 1 } })
  for (const device of [exact, plus, hash]) t.match(await device.message(), { params: { topic: 'news/sport', data: { n: 1 } } })
  t.match(await request(app, 'POST', '/broadcast?topic=news/art/old', 2), { body: { sent: 1 } })
  t.equal((await hash.message()).params.data, 2)
  const everyone = await request(app, 'POST', '/broadcast', 3)
  t.match(everyone, { status: 200, body: { id: String, sent: 4, nodes: 1 } })
  for (const device of [all, exact, plus, hash]) t.strictSame((await device.message()).params, { id: everyone.body.id, data: 3 })

  t.match(await request(app, 'POST', '/broadcast?topic=news/%23', 1), { status: 400, body: { code: 'TOPIC_INVALID' } })
  t.match(await request(app, 'PUT', '/devices/hash/topics/a%23'), { status: 400, body: { code: 'TOPIC_INVALID' } })
  t.match(await request(app, 'DELETE', '/devices/hash/topics/news/%23'), { status: 200, body: { topics: [] } })
  t.match(await exact.ask('unsubscribe', { topics: ['news/sport', 'never/had'] }), { result: { topics: [] } })
  t.match(await request(app, 'POST', '/broadcast?topic=news/sport', 1), { body: { sent: 1 } })
})

t.test('devices publish to each other', async t => {
  const app = await listen(t)
  const [from, to] = [await connect(app.url, 'from'), await connect(app.url, 'to')]
  await to.ask('subscribe', { topics: ['#'] })
  t.strictSame((await from.ask('publish', { topic: 'a/b', data: { n: 1 } })).result, {})
  t.match(await to.message(), { params: { topic: 'a/b', data: { n: 1 }, id: String } })
  from.notify('publish', { topic: 'a' })
  t.match(await to.message(), { params: { topic: 'a', data: null } })
  t.equal((await from.ask('publish', { topic: 'a/+' })).error!.code, -32011)
  t.equal((await from.ask('subscribe', { topics: ['a/#/b'] })).error!.code, -32011)
  t.equal((await from.ask('subscribe', { topics: 'a' })).error!.code, -32602)
})

t.test('connected devices can be listed in pages and described', async t => {
  const app = await listen(t, { node: 'one' })
  for (const id of ['c', 'a', 'b']) await connect(app.url, id)
  await app.devices.join('b', 'x/+')

  const first = await request(app, 'GET', '/devices?limit=2')
  t.match(first.body, { devices: [{ deviceId: 'a', node: 'one', generation: Number, since: Number }, { deviceId: 'b' }], cursor: 'b' })
  const rest = await request(app, 'GET', '/devices?limit=2&cursor=b')
  t.strictSame(rest.body.devices.map(({ deviceId }: { deviceId: string }) => deviceId), ['c'])
  t.notOk('cursor' in rest.body)
  t.equal((await app.devices.list()).length, 3)
  t.match((await request(app, 'GET', '/devices?topic=x/y')).body.devices, [{ deviceId: 'b' }])
  t.strictSame((await request(app, 'GET', '/devices?prefix=b')).body.devices.map(({ deviceId }: { deviceId: string }) => deviceId), ['b'])
  t.strictSame((await request(app, 'GET', '/devices?prefix=nobody')).body, { devices: [] })
  t.match(await request(app, 'GET', '/devices?topic=x/%23'), { status: 400, body: { code: 'TOPIC_INVALID' } })

  t.match((await request(app, 'GET', '/devices/b')).body, {
    deviceId: 'b', connected: true, node: 'one', generation: Number, since: Number, address: '127.0.0.1', protocol: 'jsonrpc', topics: ['x/+'], inFlight: 0, waiting: 0
  })
  t.equal((await request(app, 'DELETE', '/devices/b')).status, 204)
  t.match((await request(app, 'GET', '/devices/b')).body, { connected: false, lastDisconnect: { code: 4511, reason: 'removed through REST', at: Number } })
})

t.test('an infinite number in the query is refused', async t => {
  const app = await listen(t)
  for (const path of ['/devices?limit=Infinity', '/devices/d/messages?cursor=1e400']) t.equal((await request(app, 'GET', path)).status, 400, path)
  t.equal((await request(app, 'POST', '/devices/d/calls/m?timeout=1e400')).status, 400)
})

t.test('a removed device is told not to come back', async t => {
  const app = await listen(t)
  const device = await connect(app.url, 'd')
  await request(app, 'DELETE', '/devices/d')
  t.strictSame(await device.closed, { code: 4511, reason: 'removed through REST' })
})

t.test('many messages go in one request, a line each, and one bad line fails alone', async t => {
  const app = await listen(t)
  const device = await connect(app.url, 'd')
  device.handle('message', ({ data }) => { throw { code: 1, message: String(data) } }) // eslint-disable-line
  const lines = [
    '{"to":"d","data":1}', '', '{"to":"away","data":2}', '{"to":"away","data":3,"ttl":60,"collapse":"k","key":"k1"}', 'nonsense',
    '{"to":"d"}', '{"to":"no way","data":1}', '{"to":"d","data":1,"tll":1}', `{"to":"d","data":${'['.repeat(40)}${']'.repeat(40)}}`,
    `{"to":"d","data":"${'x'.repeat(70_000)}"}`, '{"to":"d","data":4,"confirm":true,"timeout":5}', '{"to":"d","data":"é"}'
  ]
  const { status, headers, body } = await request(app, 'POST', '/messages', lines.join('\n'), { 'content-type': 'application/x-ndjson' })
  t.equal(status, 200)
  t.equal(headers.get('content-type'), 'application/x-ndjson')
  const receipts = body.toString().trim().split('\n').map((line: string) => JSON.parse(line))
  t.match(receipts, [
    { status: 'sent' }, { statusCode: 404, code: 'DEVICE_OFFLINE' }, { status: 'queued' }, { code: 'MESSAGE_UNREADABLE' },
    { code: 'MESSAGE_MALFORMED', message: /^line\/data: / }, { code: 'ID_INVALID' }, { code: 'MESSAGE_MALFORMED', message: /^line\/tll: / },
    { code: 'MESSAGE_MALFORMED', message: 'Readable, but not a valid message' }, { code: 'MESSAGE_TOO_LARGE' }, { code: 'DEVICE_REFUSED', device: { code: 1, message: '4' } }, { status: 'sent' }
  ])
  t.equal(receipts.length, 11)
  await device.next(({ params }) => params?.data === 'é')

  t.match(await request(app, 'POST', '/messages', '[]', { 'content-type': 'application/json' }), { status: 415 })
  t.match(await request(app, 'POST', '/messages'), { status: 400, body: { code: 'MESSAGE_MALFORMED' } })
  t.equal((await request(app, 'POST', '/messages', '{"to":"d","data":5}\n', { 'content-type': 'application/x-ndjson' })).body.toString().match(/sent/g)!.length, 1)
})

t.test('a caller that disconnects in the middle of a bulk send ends its waits, and nothing else', async t => {
  const app = await listen(t)
  const device = await connect(app.url, 'd')
  const { port } = new URL(app.url)
  const upload = httpRequest({ port, path: '/messages', method: 'POST', headers: { 'content-type': 'application/x-ndjson' } })
  upload.on('error', () => {})
  for (let n = 0; n < 32; n++) upload.write(`{"to":"d","data":${n},"confirm":true,"timeout":60}\n`)
  await until(() => device.seen.filter(({ method }) => method === 'message').length === 32)
  upload.write('{"to":"d","data"')
  await new Promise(resolve => setTimeout(resolve, 20))
  upload.destroy()
  await until(async () => (await request(app, 'GET', '/devices/d')).body.inFlight === 0)
  t.ok((await device.ask('ping')).result)
})

t.test('a line that arrives byte by byte takes the memory of one line', async t => {
  const read: string[] = []
  const receipts = new BulkStream({
    dispatcher: {} as Dispatcher,
    parse (text) {
      read.push(text)
      return new Failure('malformed')
    },
    maxLength: 50_000,
    signal: new AbortController().signal
  })
  receipts.resume()
  const pieces = async (text: string, count: number) => {
    for (let n = 0; n < count; n++) {
      // a view of what was read from the connection, as a parser hands it on
      if (!receipts.write(Buffer.allocUnsafeSlow(4_096).fill(text).subarray(0, 1))) await once(receipts, 'drain')
    }
    await new Promise<void>(resolve => receipts.write('', () => resolve()))
  }
  const buffers = Number(queryObjects(Buffer))
  await pieces('x', 50_000)
  t.ok(Number(queryObjects(Buffer)) < buffers + 1_000)
  await pieces('\n', 1)
  await pieces('y', 50_001)
  await pieces('\n', 1)
  await pieces('z', 3)
  receipts.end()
  await once(receipts, 'end')
  t.strictSame(read, ['x'.repeat(50_000), 'zzz'])
})

t.test('lines arrive in chunks of any size, and slow ones delay only a bounded number of others', async t => {
  const app = await listen(t, { maxMessage: 200 })
  const device = await connect(app.url, 'd')
  const { port } = new URL(app.url)
  const upload = httpRequest({ port, path: '/messages', method: 'POST', headers: { 'content-type': 'application/x-ndjson' } })
  const answered = once(upload, 'response')
  const pieces = ['{"to":"d",', '"data":', '1}', '\n\n \r\n{"to":"away","data":"', 'x'.repeat(150), 'y'.repeat(150), '"}\n{"to":"d","data":2}\r\n', `{"to":"d","data":"${'z'.repeat(300)}"}\n`, '{"to":"d","data":3}']
  for (const piece of pieces) {
    upload.write(piece)
    await new Promise(resolve => setTimeout(resolve, 2))
  }
  upload.end()
  const [response] = await answered as [IncomingMessage]
  const receipts = (await response.toArray()).join('').trim().split('\n').map(line => JSON.parse(line))
  t.match(receipts, [{ status: 'sent' }, { code: 'MESSAGE_TOO_LARGE' }, { status: 'sent' }, { code: 'MESSAGE_TOO_LARGE' }, { status: 'sent' }])
  for (const data of [1, 2, 3]) t.equal((await device.message()).params.data, data)

  const many = Array.from({ length: 700 }, (_, n) => n % 2 ? `{"to":"d","data":${n}}` : `{"to":"away-${n}","data":${n},"ttl":60}`)
  const lines = ['{"to":"d","data":"first","confirm":true}', ...many]
  const asked = request(app, 'POST', '/messages', lines.join('\n'), { 'content-type': 'application/x-ndjson' })
  await device.next(({ params }) => params?.data === 29)
  await device.ask('ping')
  t.notOk(device.seen.some(({ params }) => params?.data === 31), 'the first is not acknowledged yet')
  device.handle('message', () => ({}))
  const statuses = (await asked).body.toString().trim().split('\n').map((line: string) => JSON.parse(line).status)
  t.strictSame(statuses, ['delivered', ...many.map((_, n) => n % 2 ? 'sent' : 'queued')])
})

t.test('sendMany sends more messages than are sent concurrently, with results in order', async t => {
  const app = await listen(t)
  const device = await connect(app.url, 'd')
  const lines = Array.from({ length: 100 }, (_, n) => ({ to: 'd', data: n }))
  const receipts = []
  for await (const receipt of app.devices.sendMany(lines)) receipts.push(receipt)
  t.equal(receipts.length, 100)
  for (let n = 0; n < 100; n++) t.equal((await device.message()).params.data, n)
  for await (const receipt of app.devices.sendMany([{ to: 'not an id', data: 1 }, { to: 'd', data: 1n }])) t.type(receipt, Failure)

  const warnings: string[] = []
  const onWarning = ({ name }: Error) => { warnings.push(name) }
  process.on('warning', onWarning)
  t.teardown(() => process.off('warning', onWarning))
  const waiting = Array.from({ length: 40 }, (_, n) => ({ to: 'd', data: `c${n}`, confirm: true }))
  const confirmed = Readable.from(app.devices.sendMany(waiting, { signal: new AbortController().signal })).toArray()
  await device.next(({ params }) => params?.data === 'c31')
  await device.ask('ping')
  t.notOk(device.seen.some(({ params }) => params?.data === 'c32'))
  device.handle('message', () => ({}))
  t.strictSame((await confirmed).map(({ status }) => status), Array(40).fill('delivered'))
  t.strictSame(warnings, [], 'so many may listen to one signal')

  let more = () => {}
  async function * slowly () {
    yield { to: 'd', data: 'first' }
    await new Promise<void>(resolve => { more = resolve })
    yield { to: 'd', data: 'second' }
  }
  const answers = app.devices.sendMany(slowly())
  t.match(await answers.next(), { value: { status: 'sent' } }, 'a receipt does not wait for the next line')
  more()
  t.match(await answers.next(), { value: { status: 'sent' } })
  t.equal((await answers.next()).done, true)
  const given = app.devices.sendMany(lines)
  await given.next()
  await given.return(undefined)
})

t.test('an unexpected error of one message in a bulk send is an internal error in its place', async t => {
  const put = async () => { throw new Error('secret') }
  const app = await listen(t, { mailbox: { ...memoryMailbox(), put } })
  await connect(app.url, 'd')
  const lines = '{"to":"d","data":1,"ttl":60}\n{"to":"d","data":2}\n'
  const { body } = await request(app, 'POST', '/messages', lines, { 'content-type': 'application/x-ndjson' })
  t.match(body.toString().trim().split('\n').map((line: string) => JSON.parse(line)), [{ code: 'INTERNAL_ERROR', message: 'Internal error' }, { status: 'sent' }])
})

t.test('a full mailbox and a full store are told apart', async t => {
  const app = await listen(t, { maxLetters: 2, maxLetterBytes: 100, mailbox: memoryMailbox({ maxBytes: 1_200 }) })
  const send = (id: string, size: number) => request(app, 'POST', `/devices/${id}/messages?ttl=60`, Buffer.alloc(size))
  t.equal((await send('a', 10)).status, 202)
  t.equal((await send('a', 10)).status, 202)
  const full = await send('a', 10)
  t.match(full, { status: 429, body: { code: 'MAILBOX_FULL' } })
  t.ok(full.headers.get('retry-after'))
  t.match(await send('b', 101), { status: 429, body: { code: 'MAILBOX_FULL' } })
  t.equal((await send('b', 90)).status, 202)
  t.match(await send('c', 95), { status: 507, body: { code: 'STORE_FULL' } })
  t.equal((await send('c', 30)).status, 202)
})

t.test('a backplane that is down is told apart from a device that is away, and letters are kept all the same', async t => {
  const down = async () => { throw new Failure('unreachable') }
  const backplane: Backplane = { ...localBackplane(), ask: down, publish: down }
  const app = await listen(t, { backplane })
  for (const path of ['/devices/d/messages', '/devices/d/calls/m', '/broadcast']) {
    const answer = await request(app, 'POST', path, {})
    t.match(answer, { status: 503, body: { code: 'BACKPLANE_DOWN' } })
    t.equal(answer.headers.get('retry-after'), '1')
  }
  t.equal((await request(app, 'POST', '/devices/d/messages?ttl=60', 1)).status, 202)
  const device = await connect(app.url, 'd')
  t.equal((await device.message()).params.data, 1)
})

t.test('two nodes of one process are one to the caller', async t => {
  let closed = 0
  const backplane = { ...localBackplane(), close: async () => { closed++ } }
  const mailbox = memoryMailbox()
  const one = await listen(t, { node: 'one', backplane, mailbox })
  const two = await listen(t, { node: 'two', backplane, mailbox })
  const device = await connect(two.url, 'd')
  device.handle('add', ({ a, b }) => a + b).handle('refuse', () => { throw { code: 9, message: 'no' } }).handle('message', () => ({})) // eslint-disable-line

  t.match(await request(one, 'POST', '/devices/d/messages', 'far'), { status: 200, body: { status: 'sent' } })
  t.equal((await device.message()).params.data, 'far')
  t.match(await request(one, 'POST', '/devices/d/calls/add', { a: 1, b: 2 }), { status: 200, body: 3 })
  t.match(await request(one, 'POST', '/devices/d/calls/refuse'), { status: 422, body: { device: { code: 9, message: 'no' } } })
  t.match(await request(one, 'POST', '/devices/d/messages?confirm=true', 1), { body: { status: 'delivered' } })
  t.match(await request(one, 'POST', '/devices/d/messages?confirm=true&ttl=60', 1), { status: 200, body: { status: 'delivered' } })
  t.match(await request(one, 'GET', '/devices/d'), { body: { connected: true, node: 'two' } })
  t.match(await request(one, 'GET', '/devices'), { body: { devices: [{ deviceId: 'd', node: 'two' }] } })
  t.match(await request(one, 'PUT', '/devices/d/topics/a/b'), { body: { topics: ['a/b'] } })
  const other = await connect(one.url, 'other')
  await other.ask('subscribe', { topics: ['a/#'] })
  t.match(await request(one, 'POST', '/broadcast?topic=a/b', 1), { body: { sent: 2, nodes: 2 } })

  const moved = await connect(one.url, 'd')
  t.equal((await device.closed).code, 4509)
  t.equal(two.devices.has('d'), false)
  t.match(await request(two, 'POST', '/devices/d/messages', 'near'), { status: 200 })
  t.equal((await moved.message()).params.data, 'near')
  t.equal((await request(two, 'DELETE', '/devices/d')).status, 204)
  await one.close()
  t.equal(closed, 1)
})
