import { once } from 'node:events'
import { mkdtemp, rm } from 'node:fs/promises'
import { connect as connectTcp } from 'node:net'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import Fastify, { type FastifyInstance, type FastifyServerOptions } from 'fastify'
import t, { type Test } from 'tap'
import WebSocket from 'ws'
import devices, { Failure, jsonrpc, localBackplane, type HandlerContext, type Backplane, type Options } from '../lib/index.ts'
import { ocpp } from '../lib/protocol/ocpp.ts'
import { diskMailbox } from '../lib/storage/disk/index.ts'
import { memoryMailbox } from '../lib/storage/memory.ts'
import { tcp } from '../lib/transports/tcp/index.ts'
import { createWorker, type Worker } from '../lib/workers/worker.ts'
import { overEngines } from './engines.ts'
import { connect, LineSocket, listen, open, request, TestDevice, until, type Seen } from './support.ts'

const traceId = '4bf92f3577b34da6a3ce929d0e0e4736'
const traceparent = `00-${traceId}-00f067aa0ba902b7-01`
const fresh = /^00-[0-9a-f]{32}-[0-9a-f]{16}-00$/
const traced = (deviceId: string) => ({ path: `/ws?deviceId=${deviceId}&trace=1` })
const traceOf = ({ traceparent, tracestate }: Seen) => [traceparent, tracestate]

type Line = Record<string, any>

/** A logger of Fastify that keeps its lines. */
function logger (lines: Line[]): FastifyServerOptions {
  return { logger: { level: 'debug', stream: { write (line: string) { lines.push(JSON.parse(line)) } } } }
}

/** A node whose request ids come from a header. */
async function node (t: Test, options: Options = {}): Promise<FastifyInstance & { url: string, lines: Line[] }> {
  const lines: Line[] = []
  return Object.assign(await listen(t, options, { ...logger(lines), requestIdHeader: 'x-request-id' }), { lines })
}

async function employ (t: Test, backplane: Backplane): Promise<{ worker: Worker, lines: Line[] }> {
  const lines: Line[] = []
  const worker = await createWorker({ backplane, log: Fastify(logger(lines)).log })
  t.teardown(() => worker.close())
  return { worker, lines }
}

/** What the lines with this request id say. */
const about = (lines: Line[], reqId: string) => lines.filter(line => line.reqId === reqId).map(({ msg }) => msg)

/** The device calls a method while it answers `reboot`, and sends back the trace that it was given. */
async function echo (device: TestDevice, method: string): Promise<Seen> {
  const { id, traceparent, tracestate } = await device.next(({ method }) => method === 'reboot')
  device.send({ jsonrpc: '2.0', id: 'echo', method, traceparent, tracestate })
  const answer = await device.answer('echo')
  device.send({ jsonrpc: '2.0', id, result: answer.result ?? answer.error })
  return answer
}

overEngines(t, 'requests and letters are followed', async (t, engine) => {
  const server = await engine.start(t)

  t.test('one request id is in the logs of both nodes and of the worker that its device calls', async t => {
    const [a, b] = [await node(t, { node: 'n1', ...await server.join() }), await node(t, { node: 'n2', ...await server.join() })]
    const { worker, lines } = await employ(t, (await server.join()).backplane)
    const contexts: HandlerContext[] = []
    worker.handle('note', (_params, context) => {
      contexts.push(context)
      context.log.info({ at: 'the handler' }, 'noted')
      return { noted: context.id }
    })
    const device = await connect(b.url, 'd', traced('d'))
    await until(async () => (await device.ask('note')).result !== undefined)
    const echoed = echo(device, 'note')
    t.match(await request(a, 'POST', '/devices/d/calls/reboot', {}, { 'x-request-id': 'order-17' }), { status: 200, body: { noted: 'order-17' } })
    await echoed
    const { id, traceparent: parent, tracestate } = contexts.at(-1)!
    t.match([id, parent, tracestate], ['order-17', fresh, 'fastify-devices=order-17'])
    t.match(about(a.lines, 'order-17'), ['incoming request', 'request completed'])
    await until(() => about(b.lines, 'order-17').length > 0)
    t.strictSame(about(b.lines, 'order-17'), ['request to device answered'])
    await until(() => about(lines, 'order-17').length === 2)
    t.strictSame(about(lines, 'order-17'), ['noted', 'call answered'])
    t.match(lines.findLast(({ msg }) => msg === 'noted'), { reqId: 'order-17', deviceId: 'd', method: 'note', at: 'the handler' })
  })

  t.test('a request without an id header is followed by the id that Fastify gave it', async t => {
    const [a, b] = [await node(t, { node: 'n3', ...await server.join() }), await node(t, { node: 'n4', ...await server.join() })]
    b.devices.handle('note', (_params, { id }) => ({ noted: id }))
    const device = await connect(b.url, 'e', traced('e'))
    const echoed = echo(device, 'note')
    const { body } = await request(a, 'POST', '/devices/e/calls/reboot', {}, { traceparent, tracestate: 'a=1' })
    await echoed
    const { reqId } = a.lines.find(({ msg }) => msg === 'incoming request')!
    t.strictSame(body, { noted: reqId })
    t.match(device.seen.find(({ method }) => method === 'reboot'), { traceparent, tracestate: `fastify-devices=${reqId},a=1` })
  })

  t.test('letters keep the trace', async t => await keepsTrace(t, async () => await server.join({ prefix: 'letters' })))
})

t.test('a device that asked for it is sent the trace with everything that the request causes', async t => {
  const shared = { backplane: localBackplane(), mailbox: memoryMailbox() }
  const [a, b] = [await node(t, shared), await node(t, shared)]
  const headers = { traceparent, tracestate: 'a=1', 'x-request-id': 'order-17' }
  const expected = [traceparent, 'fastify-devices=order-17,a=1']
  for (const [deviceId, options, trace] of [['t', traced('t'), expected], ['u', {}, [undefined, undefined]]] as const) {
    const device = (await connect(a.url, deviceId, options)).handle('reboot', () => ({})).handle('message', () => ({}))
    for (const app of [a, b]) {
      for (const path of ['messages', 'messages?confirm=true', 'messages?ttl=60', 'calls/reboot']) {
        t.match(await request(app, 'POST', `/devices/${deviceId}/${path}`, { at: 1 }, headers), { status: path.includes('ttl') ? 202 : 200 })
        t.strictSame(traceOf(await device.next()), trace, path)
      }
      await request(app, 'POST', '/broadcast', { at: 1 }, headers)
      t.strictSame(traceOf(await device.next()), trace, 'a broadcast')
      const lines = ['', ',"confirm":true'].map(more => `{"to":"${deviceId}","data":1${more}}`).join('\n')
      await request(app, 'POST', '/messages', lines, { ...headers, 'content-type': 'application/x-ndjson' })
      for (let count = 0; count < 2; count++) t.strictSame(traceOf(await device.next()), trace, 'one of many')
    }
  }
  t.equal(a.lines.filter(({ msg, reqId }) => msg === 'letter settled' && reqId === 'order-17').length, 4)
  t.strictSame([a, b].map(({ lines }) => lines.filter(({ msg, reqId }) => msg === 'letter queued' && reqId === 'order-17').length), [2, 2])
})

t.test('a broadcast reaches devices with and without a trace', async t => {
  const app = await node(t)
  const all = await Promise.all(['a', 'b', 'c', 'd'].map(async (id, at) => await connect(app.url, id, at % 2 === 0 ? traced(id) : {})))
  t.match(await request(app, 'POST', '/broadcast', { at: 1 }, { 'x-request-id': 'r' }), { body: { sent: 4 } })
  const seen = await Promise.all(all.map(device => device.message()))
  t.strictSame(seen.map(({ tracestate }) => tracestate), ['fastify-devices=r', undefined, 'fastify-devices=r', undefined])
  t.equal(seen[0]!.traceparent, seen[2]!.traceparent)
  for (const { params } of seen) t.strictSame(params, seen[0]!.params)
})

t.test('a route of the application passes its request on', async t => {
  const lines: Line[] = []
  const app = Fastify({ ...logger(lines), genReqId: () => 'mine' } as FastifyServerOptions) as FastifyInstance
  await app.register(devices)
  app.get('/all', async request => {
    const { devices } = app
    await devices.send('d', 1, { request })
    await devices.broadcast(2, { request })
    for await (const outcome of devices.sendMany([{ to: 'd', data: 3 }, { to: 'd', data: 4, confirm: true }], { request })) if (outcome instanceof Failure) throw outcome
    await devices.get('d')!.call('reboot', {}, { request })
    return await devices.call('d', 'reboot', {}, { request })
  })
  const { url } = await open(t, app)
  const device = (await connect(url, 'd', traced('d'))).handle('message', () => ({})).handle('reboot', () => ({ done: true }))
  t.match(await request({ url }, 'GET', '/all'), { status: 200, body: { done: true } })
  t.strictSame(device.seen.slice(1).map(({ tracestate }) => tracestate), Array(6).fill('fastify-devices=mine'))
  await app.devices.send('d', 5)
  await app.devices.send('d', 6, { request: {} })
  for (let count = 0; count < 2; count++) t.strictSame(traceOf(await device.next(({ params }) => params.data >= 5)), [undefined, undefined], 'no known request')
})

t.test('a handler passes its own request on', async t => {
  const app = await node(t)
  app.devices.handle('forward', async (_params, context) => {
    await app.devices.send('other', 1, { request: context })
    return context.id
  })
  const [device, other] = [await connect(app.url, 'd'), await connect(app.url, 'other', traced('other'))]
  const { result } = await device.ask('forward')
  t.match(await other.message(), { traceparent: fresh, tracestate: `fastify-devices=${result}` })
  device.send({ jsonrpc: '2.0', id: 1, method: 'forward', traceparent, tracestate: 'fastify-devices=order-17' })
  t.equal((await device.answer(1)).result, 'order-17')
  t.match(await other.message(), { traceparent, tracestate: 'fastify-devices=order-17' })
})

t.test('a publication keeps the trace of its device', async t => {
  const app = await node(t)
  const [device, other] = [await connect(app.url, 'd'), await connect(app.url, 'other', traced('other'))]
  await other.ask('subscribe', { topics: ['news'] })
  device.send({ jsonrpc: '2.0', id: 1, method: 'publish', params: { topic: 'news', data: 1 }, traceparent, tracestate: 'fastify-devices=order-17' })
  t.strictSame(traceOf(await other.message()), [traceparent, 'fastify-devices=order-17'])
  await device.ask('publish', { topic: 'news', data: 2 })
  t.strictSame(traceOf(await other.message()), [undefined, undefined])
})

t.test('only trace=1 in the address asks for trace context', async t => {
  const app = await node(t)
  for (const [query, asks] of [['trace=1', true], ['trace=0', false], ['trace=true', false], ['trace=1&trace=1', false], ['trace', false]] as const) {
    const device = await connect(app.url, 'd', { path: `/ws/d?${query}` })
    await request(app, 'POST', '/devices/d/messages', 1)
    t.equal((await device.message()).tracestate !== undefined, asks, query)
    await device.close()
    await until(() => app.devices.size === 0)
  }
})

t.test('a device asks for trace context in its connect line too', async t => {
  const transport = tcp({ port: 0 })
  const app = await node(t, { transports: [transport] })
  for (const [trace, asks] of [[1, true], [true, true], ['1', false], [0, false], [undefined, false]] as const) {
    const { port } = transport.address as { port: number }
    const device = new TestDevice(new LineSocket(connectTcp(port, '127.0.0.1')) as never)
    device.notify('connect', { deviceId: 'd', trace })
    await device.next(({ method }) => method === 'welcome')
    await request(app, 'POST', '/devices/d/messages', Buffer.of(1, 2))
    const { params, tracestate } = await device.message()
    t.equal(params.base64, 'AQI=')
    t.equal(tracestate !== undefined, asks, String(trace))
    device.socket.close(1000, '')
    await until(() => app.devices.size === 0)
  }
})

t.test('a request that throws when it is read fails the call, and takes no place in flight', async t => {
  const app = await listen(t, { maxCalls: 1 })
  const device = await connect(app.url, 'd', traced('d'))
  device.handle('m', () => 'x')
  const request = { get id (): string { throw new Error('odd') } }
  await t.rejects(app.devices.call('d', 'm', {}, { request }), { message: 'odd' })
  await t.rejects(async () => await app.devices.get('d')!.call('m', {}, { request }), { message: 'odd' })
  t.equal(await app.devices.call('d', 'm'), 'x')
})

t.test('a codec that wraps the one for JSON-RPC encodes for every device, also for one that asks for a trace', async t => {
  const inner = jsonrpc()
  const app = await listen(t, { codecs: [{ ...inner, encode: message => `\n${String(inner.encode(message))}` }] })
  const socket = new WebSocket(`${app.url.replace('http', 'ws')}${traced('d').path}`)
  const [frame] = await once(socket, 'message')
  t.match(String(frame), /^\n\{"jsonrpc"/)
})

t.test('bytes are sent with a trace', async t => {
  const app = await node(t)
  const device = await connect(app.url, 'd', traced('d'))
  await request(app, 'POST', '/devices/d/messages', Buffer.from('{\n'), { 'x-request-id': 'order-17' })
  const { data, tracestate } = await device.message()
  t.equal(tracestate, 'fastify-devices=order-17')
  t.strictSame(data, Buffer.from('{\n'))
})

t.test('a protocol without a place for the trace is served without it', async t => {
  const app = await node(t, { codecs: [jsonrpc(), ...ocpp()] })
  const charger = await connect(app.url, 'c', { path: '/ocpp/c?trace=1', protocols: ['ocpp1.6'], unwelcomed: true })
  const frame = new Promise<unknown[]>(resolve => { charger.socket.once('message', (text: Buffer) => resolve(JSON.parse(text.toString()))) })
  await until(() => app.devices.has('c'))
  t.match(await request(app, 'POST', '/devices/c/messages', { method: 'Reset', params: {} }, { traceparent, 'x-request-id': 'order-17' }), { status: 200 })
  const [, id, ...rest] = await frame
  t.strictSame(rest, ['Reset', {}])
  charger.socket.send(JSON.stringify([4, id, 'InternalError', '', {}]))
  await until(() => about(app.lines, 'order-17').includes('message not acknowledged'))
})

t.test('whatever a device sends as its trace, its call is answered', async t => {
  const app = await node(t)
  const ids: string[] = []
  app.devices.handle('look', (_params, { id, traceparent, tracestate }) => {
    ids.push(id)
    return { traceparent, tracestate }
  })
  const device = await connect(app.url, 'd')
  const look = async (members: object) => {
    device.send({ jsonrpc: '2.0', id: ids.length, method: 'look', ...members })
    return (await device.answer(ids.length)).result
  }
  for (const members of [
    { traceparent: 7, tracestate: 'fastify-devices=forged' }, { traceparent: null }, { traceparent: { toString: 1 } }, { traceparent: '0'.repeat(60_000) },
    { traceparent: traceparent.replace(traceId, '0'.repeat(32)), tracestate: 'fastify-devices=forged' }, { tracestate: 'fastify-devices=forged' }
  ]) t.strictSame(await look(members), {})
  for (const tracestate of [7, [], '=', 'fastify-devices', 'fastify-devices=', `fastify-devices=${'x'.repeat(257)}`, 'fastify-devices=a\nb', 'x'.repeat(60_000), ','.repeat(60_000)]) {
    t.strictSame(await look({ traceparent, tracestate }), { traceparent })
  }
  t.notOk(ids.some(id => id.includes('forged')))
  t.equal(new Set(ids).size, ids.length, 'each call has an id of its own')
})

t.test('a worker is given the id that the gateway uses, and logs with it', async t => {
  const backplane = localBackplane()
  const app = await node(t, { backplane })
  const { worker, lines } = await employ(t, backplane)
  worker.handle('fail', async (_params, { device }) => {
    device.send(1)
    await app.devices.disconnect('d')
    throw new Error('broken')
  })
  worker.handle('refuse', () => { throw new Failure('forbidden') })
  const call = async (method: string) => {
    const device = await connect(app.url, 'd')
    device.send({ jsonrpc: '2.0', id: 1, method, traceparent, tracestate: 'fastify-devices=order-17' })
    return device
  }
  const refused = await call('refuse')
  t.match(await refused.answer(1), { error: { code: -32008 } })
  t.strictSame(about(lines, 'order-17'), ['call refused', 'call answered'])
  t.match(lines.at(-1), { reason: 'forbidden', deviceId: 'd', method: 'refuse' })
  t.strictSame(about(app.lines, 'order-17'), ['call refused'])
  await refused.ask('refuse')
  const { reqId } = app.lines.at(-1)!
  t.strictSame(about(lines, reqId), ['call refused', 'call answered'], 'without a trace the gateway makes the id')
  await refused.close()
  const device = await call('fail')
  await device.closed
  await until(() => about(lines, 'order-17').includes('handler failed'))
})

t.test('a node logs under the id of the request that it could not carry out', async t => {
  const backplane = localBackplane()
  const [a, b] = [await node(t, { backplane }), await node(t, { backplane })]
  const device = (await connect(b.url, 'd')).handle('reboot', () => { throw { code: 42, message: 'no' } })
  t.match(await request(a, 'POST', '/devices/d/calls/reboot', {}, { 'x-request-id': 'order-17' }), { status: 422 })
  t.match(b.lines.filter(({ reqId }) => reqId === 'order-17'), [{ msg: 'request to device answered', deviceId: 'd', kind: 'call', reason: 'refused' }])
  await device.close()
})

/** A letter keeps the id and the trace of its request until its device has it. */
async function keepsTrace (t: Test, make: () => Promise<Options>, again = make): Promise<void> {
  const first = Fastify({ ...logger([]), requestIdHeader: 'x-request-id' } as FastifyServerOptions) as unknown as FastifyInstance
  await first.register(devices, await make())
  const { url } = await open(t, first)
  const headers = { traceparent, tracestate: 'a=1', 'x-request-id': 'order-17' }
  for (const deviceId of ['asks', 'asks-not']) {
    t.match(await request({ url }, 'POST', `/devices/${deviceId}/messages?ttl=600`, 1, headers), { status: 202 })
    t.match(await request({ url }, 'POST', `/devices/${deviceId}/messages?ttl=600`, 2, { 'x-request-id': 'ü,=' }), { status: 202 })
    await first.devices.send(deviceId, 3, { ttl: 600_000 })
  }
  const [receipt] = (await first.devices.letters('asks')).receipts
  t.notOk('context' in receipt!)
  if (again !== make) await first.close()
  const app = again === make ? first : await listen(t, await again())
  const at = again === make ? url : (app as unknown as { url: string }).url
  const seen = async (device: TestDevice) => [await device.message(), await device.message(), await device.message()].map(traceOf)
  t.strictSame(await seen(await connect(at, 'asks', traced('asks'))), [[traceparent, 'fastify-devices=order-17,a=1'], [undefined, undefined], [undefined, undefined]])
  t.strictSame(await seen(await connect(at, 'asks-not')), Array.from({ length: 3 }, () => [undefined, undefined]))
}

t.test('letters in memory keep the trace', async t => await keepsTrace(t, async () => ({ mailbox: memoryMailbox() })))

t.test('letters on disk keep the trace, also over a restart', async t => {
  const path = await mkdtemp(join(tmpdir(), 'letters-'))
  t.teardown(() => rm(path, { recursive: true, force: true }))
  await keepsTrace(t, async () => ({ mailbox: await diskMailbox({ path }) }), async () => ({ mailbox: await diskMailbox({ path }) }))
})

t.test('with a contract a request is passed on as without', async t => {
  const { contract } = await import('../lib/index.ts')
  const kiosk = contract({ commands: { reboot: {} }, topics: { news: {} } })
  const app = await node(t, { contract: kiosk })
  const typed = app.devices.as(kiosk)
  const device = (await connect(app.url, 'd', traced('d'))).handle('reboot', () => ({}))
  await device.ask('subscribe', { topics: ['news'] })
  const request = { id: 'order-17', traceparent }
  await typed.call('d', 'reboot', undefined, { request })
  await typed.send('d', 1, { request })
  await typed.broadcast(2, { request })
  await typed.broadcast({}, { topic: 'news', request })
  for await (const outcome of typed.sendMany([{ to: 'd', data: 3 }], { request })) if (outcome instanceof Failure) throw outcome
  for (let count = 0; count < 5; count++) {
    t.strictSame(traceOf(await device.next(({ method }) => method !== undefined)), [traceparent, 'fastify-devices=order-17'])
  }
})
