import { once } from 'node:events'
import { connect as connectHttp2 } from 'node:http2'
import { connect as connectTcp } from 'node:net'
import { getActiveResourcesInfo } from 'node:process'
import Fastify, { type FastifyInstance } from 'fastify'
import t, { type Test } from 'tap'
import devices, { localBackplane } from '../lib/index.ts'
import { createWorker } from '../lib/workers/worker.ts'
import { overEngines } from './engines.ts'
import { EventReader, type ReadOptions } from './event-reader.ts'
import { Host } from './campaigns/host.ts'
import { connect, listen, open, request, until } from './support.ts'

/** Its nodes are processes of their own. */
const campaign = new URL('campaigns/events.js', import.meta.url).href

/** A reader that ends with the test. */
async function read (t: Pick<Test, 'teardown'>, app: { url: string }, options?: ReadOptions): Promise<EventReader> {
  const reader = await EventReader.open(app, options)
  t.teardown(() => reader.cut())
  return await reader.started()
}

const summary = ({ type, deviceId, data }: { type: string, deviceId: string, data: unknown }) => [type, deviceId, data]

t.test('a reader gets the events of devices and letters, each with its type, its device and its connection', async t => {
  const app = await listen(t, { node: 'n1' })
  const reader = await read(t, app)
  t.match([reader.status, reader.headers, reader.retry], [200, {
    'content-type': 'text/event-stream', 'cache-control': 'no-store, no-transform', 'x-accel-buffering': 'no', connection: 'close'
  }, 2_000])
  const device = await connect(app.url, 'd')
  const { generation, since } = app.devices.get('d')!
  device.handle('message', () => ({}))
  device.notify('message', { data: { n: 1 } })
  await device.ask('ping')
  const { id: letterId } = await app.devices.send('d', 1, { ttl: 60_000 })
  await reader.next(({ type }) => type === 'delivered')
  const { id: cancelled } = await app.devices.send('away', 1, { ttl: 60_000 })
  await app.devices.cancel('away', cancelled)
  device.socket.close(4_000, 'enough')
  await reader.next(({ type }) => type === 'disconnected')
  t.match(reader.events, [
    { type: 'connected', node: 'n1', deviceId: 'd', generation, data: { since, address: '127.0.0.1', protocol: 'jsonrpc' } },
    { type: 'message', node: 'n1', deviceId: 'd', generation, data: { message: { n: 1 } } },
    { type: 'delivered', node: 'n1', deviceId: 'd', data: { letterId } },
    { type: 'cancelled', node: 'n1', deviceId: 'away', data: { letterId: cancelled } },
    { type: 'disconnected', node: 'n1', deviceId: 'd', generation, data: { code: 4_000, reason: 'enough' } }
  ])
  t.equal(new Set(reader.events.map(({ id }) => id)).size, 5)
})

t.test('a reader gets only the types that it asks for, and an unknown type is refused', async t => {
  const app = await listen(t)
  const reader = await read(t, app, { types: 'disconnected,message' })
  const device = await connect(app.url, 'd')
  device.notify('message', { data: 1 })
  await device.ask('ping')
  await device.close()
  await reader.next(({ type }) => type === 'disconnected')
  t.strictSame(reader.events.map(({ type }) => type), ['message', 'disconnected'])
  for (const types of ['connected,left', '', 'gap']) {
    t.match(await request(app, 'GET', `/events?types=${types}`), { status: 400, body: { code: 'MESSAGE_MALFORMED', message: /There is no event of type "(left||gap)"/ } })
  }
})

t.test('a reader changes nothing for devices: a message without a listener is refused, and workers get theirs', async t => {
  const backplane = localBackplane()
  const app = await listen(t, { backplane })
  const reader = await read(t, app, { types: 'message' })
  const device = await connect(app.url, 'd')
  t.match(await device.ask('message', { data: 1 }), { error: { code: -32601 } })
  const worker = await createWorker({ backplane })
  t.teardown(() => worker.close())
  const heard: unknown[] = []
  worker.on('message', data => heard.push(data))
  await until(async () => (await device.ask('message', { data: 2 })).error === undefined)
  t.strictSame(heard.at(-1), 2)
  await reader.next(({ data }) => data.message === 2)
})

t.test('Last-Event-ID continues behind that event, and an id that is not known begins with a gap', async t => {
  const app = await listen(t)
  const first = await read(t, app)
  const device = await connect(app.url, 'd')
  await first.next()
  const { lastId } = first
  first.cut()
  device.notify('message', { data: 1 })
  device.notify('message', { data: 2 })
  await device.ask('ping')

  const again = await read(t, app, { after: lastId })
  t.match([await again.next(), await again.next()].map(summary), [['message', 'd', { message: 1 }], ['message', 'd', { message: 2 }]])
  for (const after of ['of-another-node-7', 'nonsense', `${lastId!.split('-')[0]}-99`, '']) {
    const lost = await read(t, app, { after, types: 'message' })
    t.match(await lost.next(), { type: 'gap', data: { reason: 'unknown-id' } }, `"${after}"`)
    device.notify('message', { data: after })
    t.match(await lost.next(), { type: 'message', data: { message: after } })
    t.not(lost.lastId, after)
    lost.cut()
  }
})

t.test('a reader that was cut before its first event continues too', async t => {
  const app = await listen(t)
  const { lastId, ...first } = await read(t, app)
  t.ok(lastId)
  t.notOk(first.events.length)
  await connect(app.url, 'd')
  const again = await read(t, app, { after: lastId })
  t.match(await again.next(), { type: 'connected', deviceId: 'd' })
})

t.test('a reader gets the events of all nodes, in the order of each node', async t => {
  const backplane = localBackplane()
  const [a, b] = [await listen(t, { backplane, node: 'a' }), await listen(t, { backplane, node: 'b' })]
  const reader = await read(t, a)
  const late = await listen(t, { backplane, node: 'late' })
  const all = [await connect(a.url, 'at-a'), await connect(b.url, 'at-b'), await connect(late.url, 'at-late')]
  for (const device of all) {
    for (let n = 0; n < 100; n++) device.notify('message', { data: n })
    await device.ask('ping')
    await device.close()
  }
  for (const node of ['a', 'b', 'late']) await until(() => reader.events.some(event => event.type === 'disconnected' && event.node === node))
  t.strictSame(reader.events.filter(({ type }) => type === 'gap'), [])
  for (const node of ['a', 'b', 'late']) {
    const own = reader.events.filter(event => event.node === node)
    t.strictSame(own.map(({ type }) => type), ['connected', ...Array.from({ length: 100 }, () => 'message'), 'disconnected'])
    t.strictSame(own.slice(1, -1).map(({ data }) => data.message), Array.from({ length: 100 }, (_, n) => n))
  }
})

t.test('GET /events is for those who may use REST', async t => {
  const app = await listen(t)
  t.match(await request(app, 'GET', '/events', undefined, { 'x-forwarded-for': '203.0.113.9' }), { status: 403, body: { code: 'PROTECTED_MODE' } })
  t.match(await request(app, 'GET', '/events', undefined, { origin: 'https://elsewhere.example' }), { status: 403, body: { code: 'ORIGIN_REFUSED' } })
  const guarded = await listen(t, { guard: ({ headers }) => headers.authorization === 'yes', authorize: (_caller, { action }) => action !== 'events' })
  t.match(await request(guarded, 'GET', '/events'), { status: 401, body: { code: 'UNAUTHENTICATED' } })
  t.match(await request(guarded, 'GET', '/events', undefined, { authorization: 'yes' }), { status: 403, body: { code: 'FORBIDDEN' } })
  const none = await listen(t, { rest: false })
  t.equal((await request(none, 'GET', '/events')).status, 404)
})

t.test('HEAD has the headers of GET, and opens no stream', async t => {
  const app = await listen(t)
  const response = await fetch(`${app.url}/events`, { method: 'HEAD' })
  t.match([response.status, response.headers.get('content-type')], [200, 'text/event-stream'])
  const readers = await Promise.all(Array.from({ length: 64 }, () => read(t, app)))
  t.equal(readers.length, 64)
})

t.test('at most 64 readers are served, and the next one as soon as one has left', async t => {
  const app = await listen(t)
  const readers = await Promise.all(Array.from({ length: 64 }, () => read(t, app)))
  const refused = await request(app, 'GET', '/events')
  t.match(refused, { status: 503, body: { code: 'READERS_EXCEEDED' } })
  t.match([refused.headers.get('retry-after'), refused.headers.get('content-type')], ['10', /^application\/json/])
  t.equal(app.devices.stats().refusals['too-many-readers'], 1)
  readers[0]!.cut()
  await until(async () => {
    const next = await EventReader.open(app)
    t.teardown(() => next.cut())
    return next.status === 200
  })
})

for (const [title, server] of [['HTTP/1.1', {}], ['HTTP/2', { http2: true }]] as const) {
  t.test(`over ${title}, a closing application ends the streams after the close codes of its devices, and waits for no reader`, async t => {
    const app = Fastify({ ...server, pluginTimeout: 0 } as {}) as FastifyInstance
    await app.register(devices, { closeTimeout: 90_000, drainTimeout: 180_000 })
    const { url } = await open(t, app)
    const injected = await app.injectWS('/ws?deviceId=d')
    let text = ''
    if (title === 'HTTP/2') {
      const session = connectHttp2(url)
      t.teardown(() => session.destroy())
      const stream = session.request({ ':path': '/events' }).setEncoding('utf8')
      stream.on('data', chunk => { text += chunk })
      await once(stream, 'data')
      await app.close()
      if (!stream.closed) await once(stream, 'close')
    } else {
      const reader = connectTcp(Number(new URL(url).port), '127.0.0.1').setEncoding('utf8')
      reader.on('data', chunk => { text += chunk }).write('GET /events HTTP/1.1\r\nhost: localhost\r\n\r\n')
      await once(reader, 'data')
      await app.close()
      if (!reader.closed) await once(reader, 'close')
      t.match(text, /\r\n0\r\n\r\n$/, 'the response is complete')
    }
    t.match(text, /event: disconnected\ndata: .*"code":1012/)
    injected.terminate()
  })

  t.test(`over ${title}, readers that read nothing do not delay the closing of the application`, async t => {
    const app = Fastify({ ...server, pluginTimeout: 0 } as {}) as FastifyInstance
    await app.register(devices, { closeTimeout: 90_000, drainTimeout: 180_000, rate: 1_000_000, burst: 1_000_000 })
    const { url } = await open(t, app)
    const closed: Array<Promise<unknown>> = []
    for (let count = 0; count < 8; count++) {
      if (title === 'HTTP/2') {
        const session = connectHttp2(url)
        session.on('error', () => {})
        const stream = session.request({ ':path': '/events' })
        stream.on('error', () => {})
        await once(stream, 'response')
        closed.push(once(stream, 'close'))
        t.teardown(() => session.destroy())
      } else {
        const reader = connectTcp(Number(new URL(url).port), '127.0.0.1')
        reader.on('error', () => {}).write('GET /events HTTP/1.1\r\nhost: localhost\r\n\r\n')
        await once(reader, 'readable')
        closed.push(once(reader, 'close'))
        t.teardown(() => reader.destroy())
      }
    }
    const socket = await app.injectWS('/ws?deviceId=d')
    const answered = new Promise<void>(resolve => socket.on('message', frame => { if (String(frame).includes('"id":1')) resolve() }))
    const message = JSON.stringify({ jsonrpc: '2.0', method: 'message', params: { data: 'x'.repeat(60_000) } })
    for (let count = 0; count < 100; count++) socket.send(message)
    socket.send('{"jsonrpc":"2.0","id":1,"method":"ping"}')
    await answered
    await app.close() // not before the test times out, if it waits for drainTimeout
    socket.terminate()
    t.pass('it has closed')
  })
}

t.test('after an application has closed, no timer of its feed is left', async t => {
  const timers = () => getActiveResourcesInfo().filter(name => name === 'Timeout').length
  const before = timers()
  const app = await listen(t)
  const readers = await Promise.all(Array.from({ length: 3 }, () => read(t, app)))
  readers[0]!.cut()
  await app.close()
  for (const reader of readers) await reader.ended
  await until(() => timers() <= before)
})

t.test('64 readers that read nothing cost no memory, and a fast one misses nothing', { timeout: 120_000 }, async t => {
  const host = await Host.start(campaign)
  t.teardown(() => host.kill())
  const fast = await read(t, host, { types: 'message' })
  const slow = Array.from({ length: 63 }, () => connectTcp(Number(new URL(host.url).port), '127.0.0.1').on('error', () => {}))
  for (const socket of slow) {
    socket.write('GET /events HTTP/1.1\r\nhost: localhost\r\n\r\n')
    await once(socket, 'readable') // it reads nothing
    t.teardown(() => socket.destroy())
  }
  const device = await connect(host.url, 'd')
  const before = await host.ask('memory')
  const rounds = 60
  for (let round = 0; round < rounds; round++) {
    for (let n = 0; n < 50; n++) device.notify('message', { data: { n: round * 50 + n, text: 'x'.repeat(10_000) } })
    await device.ask('ping')
    await fast.next(({ data }) => data.message.n === round * 50 + 49)
  }
  const after = await host.ask('memory')
  t.strictSame(fast.events.map(({ data }) => data.message.n), Array.from({ length: rounds * 50 }, (_, n) => n))
  t.ok(after - before < 64_000_000, `${after - before} bytes more`)
  await until(async () => await host.ask('connections') === 2)
})

overEngines(t, 'the others tell of the devices of a node that was killed, once', async (t, engine) => {
  const { access } = await engine.start(t)
  const [a, b] = [await Host.start(campaign, { node: 'a', access }), await Host.start(campaign, { node: 'b', access })]
  t.teardown(async () => { await Promise.all([a.kill(), b.kill()]) })
  const reader = await read(t, a)
  await Promise.all(['d1', 'd2', 'd3'].map(id => connect(b.url, id)))
  const generations = new Map<string, number>()
  await until(() => reader.events.filter(({ type }) => type === 'connected').length === 3)
  for (const { deviceId, generation } of reader.events) generations.set(deviceId, generation!)
  await b.kill()
  await until(() => reader.events.filter(({ type }) => type === 'disconnected').length === 3)
  for (const event of reader.events.filter(({ type }) => type === 'disconnected')) {
    t.match(event, { node: 'b', generation: generations.get(event.deviceId)!, data: { code: 1006, reason: 'its node is gone or was cut off' } })
  }
  await connect(a.url, 'last')
  await reader.next(({ deviceId, type }) => deviceId === 'last' && type === 'connected')
  t.equal(reader.events.filter(({ type }) => type === 'disconnected').length, 3)
}, { timeout: 120_000 })

overEngines(t, 'a device that moves to another node disconnects once, and an outage is a gap', async (t, engine) => {
  const server = await engine.start(t)
  const join = async (node: string) => await listen(t, { node, ...await server.join() })
  const [a, b] = [await join('a'), await join('b')]
  const reader = await read(t, a)
  await connect(b.url, 'd')
  await reader.next(({ type }) => type === 'connected')
  await connect(a.url, 'd')
  await until(() => reader.events.filter(({ type }) => type === 'connected').length === 2 && reader.events.some(({ type }) => type === 'disconnected'))
  t.match(reader.events.find(({ type }) => type === 'disconnected'), { node: 'b', data: { code: 4509 } })
  await server.stop()
  t.match(await reader.next(({ type }) => type === 'gap'), { node: 'a', data: { reason: 'cut-off' } })
  await server.start()
  t.match(await reader.next(({ type }) => type === 'gap'), { data: { reason: 'back' } })
  await b.devices.ready() // until then its events are part of the gap
  const device = await connect(b.url, 'after')
  await reader.next(({ deviceId, type }) => deviceId === 'after' && type === 'connected')
  await device.close()
  await reader.next(({ deviceId, type }) => deviceId === 'after' && type === 'disconnected')
  t.equal(reader.events.filter(({ type, deviceId }) => type === 'disconnected' && deviceId === 'd').length, 1)
}, { timeout: 120_000 })
