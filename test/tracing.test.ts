import { channel } from 'node:diagnostics_channel'
import { once } from 'node:events'
import { request as sendRequest, type IncomingMessage } from 'node:http'
import { context, diag, SpanKind, SpanStatusCode, trace, type TracerProvider } from '@opentelemetry/api'
import { AsyncLocalStorageContextManager } from '@opentelemetry/context-async-hooks'
import { BasicTracerProvider, InMemorySpanExporter, SimpleSpanProcessor, type ReadableSpan } from '@opentelemetry/sdk-trace-base'
import Fastify, { type FastifyInstance } from 'fastify'
import t, { type Test } from 'tap'
import { WebSocket } from 'ws'
import { connect as connectClient, Refusal, type Client, type ConnectOptions } from '../lib/client/index.ts'
import { tcpSocket } from '../lib/client/tcp.ts'
import devices, { contract, Failure, jsonrpc, localBackplane } from '../lib/index.ts'
import { deviceTracer } from '../lib/observe/device-tracer.ts'
import { traceDevices, type Operation } from '../lib/observe/tracing.ts'
import { ocpp } from '../lib/protocol/ocpp.ts'
import { memoryMailbox } from '../lib/storage/memory.ts'
import { tcp } from '../lib/transports/tcp/index.ts'
import { createWorker } from '../lib/workers/worker.ts'
import { overEngines } from './engines.ts'
import { all as collect } from './fakes.ts'
import { connect, listen, open, request, until } from './support.ts'

const traceId = '4bf92f3577b34da6a3ce929d0e0e4736'
const parentId = '00f067aa0ba902b7'
const traceparent = `00-${traceId}-${parentId}-01`
const traced = (deviceId: string) => ({ path: `/ws?deviceId=${deviceId}&trace=1` })

context.setGlobalContextManager(new AsyncLocalStorageContextManager().enable())

interface Recorder {
  tracerProvider: TracerProvider
  spans: () => ReadableSpan[]
  /** The span with this name; of several, the first that has ended. */
  span: (name: string) => ReadableSpan
}

function recorder (): Recorder {
  const exporter = new InMemorySpanExporter()
  const tracerProvider = new BasicTracerProvider({ spanProcessors: [new SimpleSpanProcessor(exporter)] })
  const spans = () => exporter.getFinishedSpans()
  return { tracerProvider, spans, span: name => spans().find(span => span.name === name)! }
}

/** Records what this process does until the test ends. */
function recorded (t: Test, options: { methods?: string[] } = {}): Recorder {
  const all = recorder()
  t.teardown(traceDevices({ ...options, tracerProvider: all.tracerProvider }))
  return all
}

type Tree = [span: string, ...children: Tree[]]

/** The spans below a parent, each with its node or device and its children, in the order in which they ended. */
function treeBelow (spans: ReadableSpan[], parentSpanId: string | undefined): Tree[] {
  return spans.filter(span => span.parentSpanContext?.spanId === parentSpanId).map(span => treeOf(span, spans))
}

function treeOf (span: ReadableSpan, spans: ReadableSpan[]): Tree {
  const { name, kind, attributes } = span
  const tree: Tree = [`${SpanKind[kind]} ${name} at ${String(attributes['fastify_devices.node'] ?? 'the device')}`]
  tree.push(...treeBelow(spans, span.spanContext().spanId))
  return tree
}

async function device (t: Test, url: string, deviceId: string, { tracerProvider }: Recorder, options: Partial<ConnectOptions> = {}): Promise<Client> {
  const client = connectClient(`${url}/ws`, { deviceId, WebSocket, tracer: deviceTracer({ tracerProvider }), ...options })
  t.teardown(() => client.close())
  await until(() => client.status.state === 'connected')
  return client
}

overEngines(t, 'one trace from REST on node 1 through node 2 to a worker and back has the spans in one tree', async (t, engine) => {
  const server = await engine.start(t)
  const all = recorded(t, { methods: ['reboot'] })
  const [one, two] = [await listen(t, { node: 'n1', ...await server.join() }), await listen(t, { node: 'n2', ...await server.join() })]
  const worker = await createWorker({ node: 'w', backplane: (await server.join()).backplane })
  t.teardown(() => worker.close())
  worker.handle('note', async () => {
    trace.getTracer('app').startSpan('of the application').end()
    return all.tracerProvider.getTracer('app').startActiveSpan('read the database', span => {
      span.end()
      return { noted: true }
    })
  })
  const kiosk = await device(t, two.url, 'd', all)
  kiosk.handle('reboot', async () => await kiosk.call('note'))
  await until(async () => await kiosk.call('note').then(() => true, () => false))
  t.match(await request(one, 'POST', '/devices/d/calls/reboot', {}, { traceparent, tracestate: 'vendor=1' }), { status: 200, body: { noted: true } })
  const spans = () => all.spans().filter(span => span.spanContext().traceId === traceId)
  await until(() => spans().length >= 9)
  t.strictSame(treeBelow(spans(), parentId), [
    ['INTERNAL call reboot at n1',
      ['CLIENT node/call at n1',
        ['SERVER node/call at n2',
          ['CLIENT reboot at n2',
            ['SERVER reboot at the device',
              ['CLIENT note at the device',
                ['SERVER note at n2',
                  ['CLIENT note at n2',
                    ['SERVER note at w', ['INTERNAL read the database at the device']]]]]]]]]]
  ])
  t.ok(spans().every(span => span.spanContext().traceState?.get('vendor') === '1'))
  t.ok(spans().every(({ status }) => status.code === SpanStatusCode.UNSET))
})

t.test('a message, a letter and a broadcast are traced from their sender to their device', async t => {
  const all = recorded(t)
  const shared = { backplane: localBackplane(), mailbox: memoryMailbox() }
  const [one, two] = [await listen(t, { node: 'n1', ...shared }), await listen(t, { node: 'n2', ...shared })]
  const ids: string[] = []
  const kiosk = await device(t, two.url, 'd', all)
  kiosk.on('message', ({ id }) => { ids.push(id) })
  const sent = async (work: () => Promise<unknown>, count: number) => {
    const before = all.spans().length
    await all.tracerProvider.getTracer('app').startActiveSpan('the application', async span => {
      await work()
      span.end()
    })
    await until(() => all.spans().length >= before + count)
    return treeBelow(all.spans().slice(before), undefined)
  }
  const process: Tree = ['CONSUMER process at the device']
  t.strictSame(await sent(() => two.devices.send('d', 1), 4), [['INTERNAL the application at the device', ['PRODUCER send at n2', ['CLIENT message at n2', process]]]], 'to a device at this node')
  t.strictSame(await sent(() => one.devices.send('d', 2), 6), [['INTERNAL the application at the device',
    ['PRODUCER send at n1', ['CLIENT node/send at n1', ['SERVER node/send at n2', ['CLIENT message at n2', process]]]]]], 'to a device at another node')
  t.strictSame(await sent(() => two.devices.send('d', 3, { confirm: true }), 4), [['INTERNAL the application at the device',
    ['PRODUCER send at n2', ['CLIENT message at n2', process]]]], 'with an acknowledgement')
  t.strictSame(await sent(() => one.devices.send('d', 4, { ttl: 60_000 }), 4), [['INTERNAL the application at the device', ['PRODUCER send at n1', ['CLIENT message at n2', process]]]], 'a letter')
  t.strictSame(await sent(() => one.devices.broadcast(5), 3), [['INTERNAL the application at the device', ['PRODUCER broadcast at n1', process]]], 'a broadcast')
  t.strictSame(await sent(async () => two.devices.get('d')!.send(6), 3), [['INTERNAL the application at the device', ['CLIENT message at n2', process]]], 'without a send')
  const [many] = await sent(async () => await collect(one.devices.sendMany([{ to: 'd', data: 7 }, { to: 'd', data: 8, ttl: 60_000 }])), 9)
  t.strictSame(many!.slice(1).map(([name]) => name), ['PRODUCER send at n1', 'PRODUCER send at n1'], 'each of many')
  await kiosk.call('publish', { topic: 'news', data: 9 })
  t.equal(all.spans().findLast(({ name }) => name === 'broadcast')!.attributes['messaging.destination.name'], 'news')
  const first = all.span('send').attributes
  t.match(first, { 'messaging.system.name': 'fastify_devices', 'messaging.operation.type': 'send', 'fastify_devices.device.id': 'd', 'messaging.message.id': String })
  t.equal(all.span('process').attributes['messaging.message.id'], ids[0])
  t.equal(all.spans().find(({ name, attributes }) => name === 'send' && attributes['messaging.message.id'] === ids[3])?.attributes['fastify_devices.node'], 'n1')
})

t.test('a letter that has waited is part of the trace of its sender, not of the connection', async t => {
  const all = recorded(t)
  const app = await listen(t)
  await request(app, 'POST', '/devices/d/messages?ttl=60', 1, { traceparent })
  const kiosk = connectClient(`${app.url}/ws`, { deviceId: 'd', WebSocket, tracer: deviceTracer({ tracerProvider: all.tracerProvider }) })
  t.teardown(() => kiosk.close())
  kiosk.on('message', () => {})
  await until(() => all.spans().some(({ name }) => name === 'message'))
  t.equal(all.span('message').spanContext().traceId, traceId)
  t.equal(all.span('message').parentSpanContext?.spanId, all.span('send').spanContext().spanId)
})

t.test('a failure is the type of the error, and its code that of the answer', async t => {
  const all = recorded(t, { methods: ['refuse'] })
  const backplane = localBackplane()
  const [app, other] = [await listen(t, { node: 'n1', backplane }), await listen(t, { node: 'n2', backplane })]
  const kiosk = await device(t, app.url, 'd', all)
  kiosk.on('error', () => {})
  kiosk.handle('refuse', () => { throw new Refusal('Too hot', 42) })
  app.devices.handle('fail', () => { throw new Error('broken') })
  app.devices.handle('refuse', () => { throw new Refusal('Too cold', 43) })
  const failed = (span: ReadableSpan) => [span.attributes['error.type'], span.attributes['rpc.status_code'], span.status.code]
  const spans = (name: string, kind: SpanKind, node?: string) => all.spans().filter(span => span.name === name && span.kind === kind && span.attributes['fastify_devices.node'] === node)
  await t.rejects(other.devices.call('d', 'refuse'), { code: 'DEVICE_REFUSED' })
  t.strictSame(spans('call refuse', SpanKind.INTERNAL, 'n2').map(failed), [['refused', '42', SpanStatusCode.ERROR]])
  t.strictSame(spans('node/call', SpanKind.CLIENT, 'n2').map(failed), [['refused', '42', SpanStatusCode.ERROR]])
  t.strictSame(spans('node/call', SpanKind.SERVER, 'n1').map(failed), [['refused', undefined, SpanStatusCode.ERROR]])
  t.strictSame(spans('refuse', SpanKind.CLIENT, 'n1').map(failed), [['refused', '42', SpanStatusCode.ERROR]])
  await until(() => spans('refuse', SpanKind.SERVER).length === 1)
  t.strictSame(spans('refuse', SpanKind.SERVER).map(failed), [['refused', undefined, SpanStatusCode.ERROR]])
  await t.rejects(kiosk.call('fail'))
  t.strictSame(spans('fail', SpanKind.SERVER, 'n1').map(failed), [['internal', '-32603', SpanStatusCode.ERROR]])
  await t.rejects(kiosk.call('refuse'))
  t.strictSame(spans('refuse', SpanKind.SERVER, 'n1').map(failed), [['refused', '43', SpanStatusCode.ERROR]])
  kiosk.handle('break', () => { throw new Error('broken') })
  await t.rejects(app.devices.call('d', 'break'))
  await until(() => spans('break', SpanKind.SERVER).length === 1)
  t.strictSame(spans('break', SpanKind.SERVER).map(failed), [['internal', undefined, SpanStatusCode.ERROR]])
  await t.rejects(app.devices.send('away', 1), { code: 'DEVICE_OFFLINE' })
  t.strictSame(failed(all.spans().findLast(({ name }) => name === 'send')!), ['offline', undefined, SpanStatusCode.ERROR])
  await t.rejects(app.devices.send('not valid', 1), { code: 'ID_INVALID' })
  t.strictSame(failed(all.spans().findLast(({ name }) => name === 'send')!), ['bad-id', undefined, SpanStatusCode.ERROR])
  const broken = await listen(t, { mailbox: { ...memoryMailbox(), put: () => Promise.reject(new Error('broken')) } })
  await t.rejects(broken.devices.send('away', 1, { ttl: 60_000 }), { message: 'broken' })
  t.strictSame(failed(all.spans().findLast(({ name }) => name === 'send')!), ['internal', undefined, SpanStatusCode.ERROR])
})

t.test('a span is named after a method only if the contract, a handler or the application names it', async t => {
  const all = recorded(t, { methods: ['named'] })
  const shop = contract({ commands: { declared: {} } })
  const app = await listen(t, { contract: shop })
  app.devices.handle('handled', () => ({}))
  const kiosk = await connect(app.url, 'd')
  for (const method of ['declared', 'named', 'x'.repeat(70)]) {
    kiosk.handle(method, () => ({}))
    t.match(await request(app, 'POST', `/devices/d/calls/${method}`, {}), { status: 200 })
  }
  for (const method of ['handled', 'made-up', 'ping']) await kiosk.ask(method)
  t.strictSame(new Set(all.spans().map(({ name }) => name)), new Set(['call declared', 'declared', 'call named', 'named', 'call', 'jsonrpc', 'handled']))
  const unknown = all.spans().filter(({ name }) => name === 'jsonrpc')
  t.match(unknown.map(({ attributes }) => [attributes['rpc.method'], attributes['rpc.method_original']]), [['_OTHER', 'x'.repeat(64)], ['_OTHER', 'made-up']])
  t.match(all.span('declared').attributes, { 'rpc.system.name': 'jsonrpc', 'jsonrpc.protocol.version': '2.0', 'rpc.method': 'declared' })
})

t.test('a method of the contract has its name in a span, also if nobody handles it, or if a letter is a call of it', async t => {
  const all = recorded(t)
  const app = await listen(t, { contract: contract({ methods: { declared: {} }, commands: { Reset: {} } }), codecs: [jsonrpc(), ...ocpp()] })
  const kiosk = await connect(app.url, 'd')
  await kiosk.ask('declared')
  t.match(all.span('declared').attributes, { 'rpc.method': 'declared', 'error.type': 'unknown-method' })
  const charger = await connect(app.url, 'c', { path: '/ocpp/c', protocols: ['ocpp1.6'], unwelcomed: true })
  charger.socket.on('message', (text: Buffer) => charger.socket.send(JSON.stringify([3, JSON.parse(text.toString())[1], { status: 'Accepted' }])))
  await until(() => app.devices.has('c'))
  await app.devices.send('c', { method: 'Reset', params: { type: 'Soft' } }, { ttl: 60_000, confirm: true })
  t.match(all.span('Reset').attributes, { 'rpc.system.name': 'ocpp1.6', 'rpc.method': 'Reset' })
})

t.test('each line of a bulk send is part of the trace of its request, whenever it arrives', async t => {
  const all = recorded(t)
  const host = Fastify() as FastifyInstance
  host.addHook('onRoute', route => {
    const { handler } = route
    route.handler = function (request, reply) { // as @fastify/otel does
      return all.tracerProvider.getTracer('host').startActiveSpan('request', span => {
        reply.raw.on('close', () => span.end())
        return handler.call(this, request, reply)
      })
    }
  })
  await host.register(devices)
  const app = await open(t, host)
  const kiosk = await connect(app.url, 'd')
  const upload = sendRequest({ port: new URL(app.url).port, method: 'POST', path: '/messages', headers: { 'content-type': 'application/x-ndjson' } })
  const responded = once(upload, 'response') as Promise<[IncomingMessage]>
  upload.write('{"to":"d","data":1}\n')
  await kiosk.message()
  upload.end('{"to":"d","data":2}\n')
  const [response] = await responded
  response.resume()
  await until(() => all.span('request') !== undefined)
  const { spanId } = all.span('request').spanContext()
  t.strictSame(all.spans().filter(({ name }) => name === 'send').map(span => span.parentSpanContext?.spanId), [spanId, spanId])
})

t.test('whatever a part of the application throws, the span ends, and nothing else does', async t => {
  const all = recorded(t)
  const { put, ...mailbox } = memoryMailbox()
  // eslint-disable-next-line prefer-promise-reject-errors
  const app = await listen(t, { mailbox: { ...mailbox, put: () => Promise.reject(undefined) } })
  app.devices.handle('own', async () => { throw new Failure('of the application' as 'forbidden') })
  const kiosk = await connect(app.url, 'd')
  t.match(await kiosk.ask('own'), { error: {} })
  t.match(all.span('own').attributes, { 'error.type': 'of the application', 'rpc.status_code': '-32603' })
  await app.devices.send('away', 1, { ttl: 60_000 }).catch(() => {})
  t.equal(all.span('send').attributes['error.type'], 'internal')
})

t.test('a span processor that throws breaks nothing that it records', async t => {
  const processorWith = (part: object) => ({ onStart () {}, onEnd () {}, shutdown: async () => {}, forceFlush: async () => {}, ...part })
  const reported: unknown[] = []
  diag.setLogger({ error: (_text, error) => reported.push(error), warn () {}, info () {}, debug () {}, verbose () {} })
  t.teardown(() => diag.disable())
  const broken = new Error('broken')
  for (const part of [{ onStart () { throw broken } }, { onEnd () { throw broken } }]) {
    const tracerProvider = new BasicTracerProvider({ spanProcessors: [processorWith(part)] })
    const stop = traceDevices({ tracerProvider })
    t.teardown(stop)
    const app = await listen(t)
    app.devices.handle('hello', () => ({ from: 'the server' }))
    const client = await device(t, app.url, 'd', { ...recorder(), tracerProvider })
    const messages: unknown[] = []
    client.on('message', ({ data }) => messages.push(data))
    client.on('error', () => {})
    client.handle('hello', () => ({ from: 'the device' }))
    client.handle('refuse', () => { throw new Refusal('no') })
    client.handle('later', async () => { throw new Refusal('no') })
    t.match(await app.devices.send('d', 1), { status: 'sent' })
    t.match(await app.devices.send('d', 2, { confirm: true }), { status: 'delivered' })
    t.strictSame(await app.devices.call('d', 'hello'), { from: 'the device' })
    for (const method of ['refuse', 'later']) await t.rejects(app.devices.call('d', method), { code: 'DEVICE_REFUSED' })
    t.strictSame(await client.call('hello'), { from: 'the server' })
    t.strictSame(messages, [1, 2])
    t.ok(reported.length > 0)
    t.ok(reported.splice(0).every(error => error === broken))
    stop()
  }
})

t.test('a device that speaks another protocol is called in that protocol', async t => {
  const all = recorded(t, { methods: ['Reset'] })
  const app = await listen(t, { codecs: [jsonrpc(), ...ocpp()] })
  const charger = await connect(app.url, 'c', { path: '/ocpp/c', protocols: ['ocpp1.6'], unwelcomed: true })
  charger.socket.on('message', (text: Buffer) => charger.socket.send(JSON.stringify([3, JSON.parse(text.toString())[1], { status: 'Accepted' }])))
  await until(() => app.devices.has('c'))
  await app.devices.call('c', 'Reset', { type: 'Soft' })
  t.equal(all.span('Reset').attributes['rpc.system.name'], 'ocpp1.6')
  t.notOk('jsonrpc.protocol.version' in all.span('Reset').attributes)
})

t.test('an active span is the parent, else the request is; and a handler passes its own span on', async t => {
  const all = recorded(t)
  const app = await listen(t)
  app.devices.handle('forward', async (_params, context) => {
    await app.devices.send('other', 1, { request: context })
    return context.id
  })
  const [kiosk, other] = [await connect(app.url, 'd'), await connect(app.url, 'other', traced('other'))]
  kiosk.send({ jsonrpc: '2.0', id: 1, method: 'forward', traceparent, tracestate: 'fastify-devices=order-17' })
  t.equal((await kiosk.answer(1)).result, 'order-17')
  t.match(await other.message(), { traceparent: new RegExp(`^00-${traceId}-${all.span('message').spanContext().spanId}-01$`), tracestate: 'fastify-devices=order-17' })
  t.equal(all.span('send').parentSpanContext?.spanId, all.span('forward').spanContext().spanId)
  t.equal(all.span('forward').parentSpanContext?.spanId, parentId)
  await all.tracerProvider.getTracer('app').startActiveSpan('the application', async span => {
    await app.devices.broadcast(1, { request: { id: 'order-18', traceparent } })
    span.end()
    const { spanId } = all.span('broadcast').spanContext()
    t.equal(all.span('broadcast').parentSpanContext?.spanId, span.spanContext().spanId)
    t.match(await other.message(), { traceparent: `00-${span.spanContext().traceId}-${spanId}-01`, tracestate: 'fastify-devices=order-18' })
  })
})

t.test('without a provider the trace of the request is passed on', async t => {
  t.teardown(traceDevices())
  const app = await listen(t)
  const kiosk = await connect(app.url, 'd', traced('d'))
  await request(app, 'POST', '/devices/d/messages', 1, { traceparent })
  t.equal((await kiosk.message()).traceparent, traceparent)
  await app.devices.send('d', 2)
  t.equal((await kiosk.message()).traceparent, undefined)
})

t.test('a request that throws when it is read fails as without tracing', async t => {
  const all = recorded(t)
  const app = await listen(t)
  await connect(app.url, 'd', traced('d'))
  await t.rejects(app.devices.call('d', 'm', {}, { request: { get id (): string { throw new Error('odd') } } }), { message: 'odd' })
  t.strictSame(all.spans(), [])
})

t.test('after the end nothing is recorded, and what has begun is recorded to its end', async t => {
  const all = recorder()
  const stop = traceDevices({ tracerProvider: all.tracerProvider, methods: ['slow'] })
  const app = await listen(t)
  const kiosk = await connect(app.url, 'd')
  const called = app.devices.call('d', 'slow')
  const { id } = await kiosk.next(({ method }) => method === 'slow')
  stop()
  kiosk.send({ jsonrpc: '2.0', id, result: 1 })
  await called
  await app.devices.send('d', 1)
  t.strictSame(all.spans().map(({ name }) => name), ['slow', 'call slow'])
  t.throws(() => traceDevices({ tracer: 1 } as object), { message: /traceDevices\(\) has no option "tracer"/ })
  t.throws(() => deviceTracer({ tracer: 1 } as object), { message: /deviceTracer\(\) has no option "tracer"/ })
})

t.test('a device over TCP asks for the trace too, and bytes keep it', async t => {
  const all = recorded(t)
  const transport = tcp({ port: 0 })
  const app = await listen(t, { transports: [transport] })
  const { port } = transport.address as { port: number }
  app.devices.handle('store', ({ data }: any) => ({ data }))
  const kiosk = await device(t, `tcp://127.0.0.1:${port}`, 'd', all, { WebSocket: tcpSocket() })
  kiosk.on('message', async ({ data }) => { await kiosk.call('store', { data }) })
  await request(app, 'POST', '/devices/d/messages', Buffer.of(1, 2), { traceparent })
  await until(() => all.spans().some(({ name }) => name === 'process'))
  t.ok(all.spans().every(span => span.spanContext().traceId === traceId))
  t.equal(all.spans().filter(({ name }) => name === 'store').length, 2)
})

t.test('a handler of a device that returns at once has a span too', async t => {
  const all = recorder()
  const { run } = deviceTracer({ tracerProvider: all.tracerProvider })
  t.equal(run({ kind: 'notice', method: 'now' }, () => 7), 7)
  t.throws(() => run({ kind: 'notice', method: 'now' }, () => { throw new Failure('busy') }), { code: 'CALLS_EXCEEDED' })
  t.strictSame(all.spans().map(({ attributes }) => attributes['error.type']), [undefined, 'busy'])
})

t.test('a subscriber of the channel may replace the trace, and is told of the end', async t => {
  const ends: unknown[] = []
  const subscriber = (message: unknown) => {
    const operation = message as Operation
    operation.request = { traceparent }
    operation.onEnd((failure, value) => ends.push([operation.facts.kind, (failure as Failure | undefined)?.reason, value]))
  }
  const operations = channel('fastify-devices:operation')
  operations.subscribe(subscriber)
  t.teardown(() => operations.unsubscribe(subscriber))
  const app = await listen(t)
  const kiosk = await connect(app.url, 'd', traced('d'))
  const sent = await app.devices.send('d', 1)
  t.equal((await kiosk.message()).traceparent, traceparent)
  await t.rejects(app.devices.send('d', 1, { ttl: -1 }))
  t.strictSame(ends, [['notify', undefined, undefined], ['send', undefined, sent], ['send', 'malformed', undefined]])
})

t.test('the route of devices is not traced as a request, whose span would never end', async t => {
  const configs: unknown[] = []
  const { default: Fastify } = await import('fastify')
  const { default: devices } = await import('../lib/index.ts')
  const app = Fastify()
  t.teardown(() => app.close())
  app.addHook('onRoute', ({ url, method, config }) => { if (url.startsWith('/ws') && method === 'GET') configs.push((config as { otel?: boolean }).otel) })
  await app.register(devices)
  await app.ready()
  t.strictSame(configs, [false, false])
})
