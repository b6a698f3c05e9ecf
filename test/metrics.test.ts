import { once } from 'node:events'
import { connect as connectTcp, type AddressInfo } from 'node:net'
import Fastify, { type FastifyInstance } from 'fastify'
import t, { type Test } from 'tap'
import { WebSocket, WebSocketServer } from 'ws'
import devices, { Failure, localBackplane, memoryMailbox, type Mailbox, type Options } from '../lib/index.ts'
import metrics, { type MetricsOptions } from '../lib/observe/metrics/index.ts'
import { tcp } from '../lib/transports/tcp/index.ts'
import { Crowd } from './crowd.ts'
import { family, valuesIn } from './exposition.ts'
import { gate, turn, until } from './fakes.ts'
import { connect, connectLines, open, refusal, request, TestDevice } from './support.ts'

type App = FastifyInstance & { url: string }

async function host (t: Pick<Test, 'teardown'>, options: Options = {}, own: MetricsOptions = { path: '/metrics' }): Promise<FastifyInstance> {
  const app = Fastify() as FastifyInstance
  t.teardown(() => app.close())
  await app.register(devices, options)
  await app.register(metrics, own)
  await app.ready()
  return app
}

/** The text that Prometheus gets. */
async function scrape (app: FastifyInstance): Promise<string> {
  const { statusCode, body } = await app.inject('/metrics')
  if (statusCode !== 200) throw new Error(`${statusCode} ${body}`)
  return body
}

/** A device that counts the payload bytes in both directions. */
function counting (url: string, deviceId: string, bytes: { in: number, out: number }): TestDevice {
  const socket = new WebSocket(`${url.replace('http', 'ws')}/ws?deviceId=${deviceId}`)
  const send = socket.send.bind(socket)
  socket.on('message', (frame: Buffer) => { bytes.out += frame.length })
  socket.send = (data: string) => {
    bytes.in += Buffer.byteLength(data)
    send(data)
  }
  return new TestDevice(socket)
}

async function load (app: App, bytes: { in: number, out: number }): Promise<void> {
  const [a, b, c] = ['a', 'b', 'c'].map(id => counting(app.url, id, bytes)) as [TestDevice, TestDevice, TestDevice]
  for (const device of [a, b, c]) await device.next(({ method }) => method === 'welcome')
  a.handle('message', ({ data }) => {
    if (data.refuse) throw { code: 1, message: 'no' } // eslint-disable-line no-throw-literal
    return {}
  })
  a.handle('reboot', ({ delay }) => ({ in: delay }))
  a.handle('refuse', () => { throw { code: 7, message: 'no' } }) // eslint-disable-line no-throw-literal

  const post = async (path: string, body: unknown = {}) => (await request(app, 'POST', path, body)).status
  for (let n = 0; n < 5; n++) await post('/devices/b/messages', { n })
  await post('/broadcast', { hello: 'all €' })
  for (let n = 0; n < 3; n++) await post('/devices/a/calls/reboot', { delay: n })
  await post('/devices/a/calls/refuse')
  await post('/devices/b/calls/made-up?timeout=0.02')

  await a.ask('meter', { watts: 1 })
  await a.ask('meter', { watts: 2 })
  await a.ask('meter', { watts: 'many' })
  await a.ask('nonsense')

  for (const data of [{ n: 1 }, { n: 2 }, { refuse: true }]) await post('/devices/a/messages?ttl=60&confirm=true', data)
  await post('/devices/away/messages?ttl=60', 'waits')
  await post('/devices/away/messages?ttl=60', 'is cancelled')
  await post('/devices/away/messages?ttl=60&collapse=k', 'is replaced')
  await post('/devices/away/messages?ttl=60&collapse=k', 'waits too')
  const { body: { messages } } = await request(app, 'GET', '/devices/away/messages')
  await request(app, 'DELETE', `/devices/away/messages/${messages[1].id}`)
  await post('/devices/away/messages?ttl=0.01', 'expires')
  await until(() => app.devices.stats().letters.expired === 1)

  await refusal(app.url, '/ws?deviceId=no%20id')
  b.socket.close(4_999, 'made up')
  await b.closed
  await app.devices.disconnect('c')
  await c.closed
  await until(() => app.devices.size === 1)
}

t.test('the metrics agree with what devices, callers and letters did, and with the bytes that the devices counted', async t => {
  const app = Fastify() as FastifyInstance
  await app.register(devices, { contract: { commands: { reboot: {}, refuse: {} } }, pingInterval: 20 })
  await app.devices.send('early', 1, { ttl: 60_000 }) // before the metrics are registered
  await app.register(metrics, { path: '/metrics' })
  app.devices.handle('meter', { params: { type: 'object', properties: { watts: { type: 'number' } } } }, () => ({}))
  const served = await open(t, app)
  const bytes = { in: 0, out: 0 }
  await load(served, bytes)
  await until(async () => family(await scrape(app), 'devices_pong_seconds_count')['']! >= 3)

  const text = await scrape(app)
  t.strictSame(family(text, 'devices_connected'), { 'websocket jsonrpc': 1 })
  t.strictSame(family(text, 'devices_admissions_total'), { '': 3 })
  t.strictSame(family(text, 'devices_refusals_total'), { 'bad-id': 1 })
  t.strictSame(family(text, 'devices_disconnects_total'), { 4511: 1, other: 1 })
  t.strictSame(family(text, 'devices_calls_total'), { 'in ok': 2, 'in bad-params': 1, 'in unknown-method': 1, 'out ok': 3, 'out refused': 1, 'out timeout': 1 })
  t.strictSame(family(text, 'devices_letters_total'), { queued: 9, delivered: 2, expired: 1, cancelled: 1, replaced: 1, refused: 1, 'dead-lettered': 0, damaged: 0 })
  t.strictSame(family(text, 'devices_letters_waiting'), { '': 3 })
  t.strictSame(family(text, 'devices_backplane_up'), { '': 1 })
  t.strictSame(family(text, 'devices_bytes_total'), bytes)
  // in: 4 calls, 3 acknowledgements, 4 answers; out: 3 welcomes, 5 messages, 3 of the broadcast, 5 calls, 4 answers, 3 letters
  t.strictSame(family(text, 'devices_messages_total'), { in: 11, out: 23 })
  t.strictSame(family(text, 'devices_call_duration_seconds_count'), { 'in meter': 3, 'in other': 1, 'out reboot': 3, 'out refuse': 1, 'out other': 1 })
})

t.test('durations are in seconds, in buckets that include the smaller ones', async t => {
  const app = await host(t, {}, { path: '/metrics', methods: ['slow'] })
  const device = await connect((await open(t, app)).url, 'd')
  await app.devices.call('d', 'slow', {}, { timeout: 60 }).catch(() => {})
  await device.close()
  const text = await scrape(app)
  const buckets = Object.values(family(text, 'devices_call_duration_seconds_bucket'))
  t.strictSame([buckets[0], buckets[1], buckets[2], buckets.at(-1)], [0, 0, 0, 1])
  t.strictSame(buckets, buckets.toSorted((one, other) => one - other))
  const sum = family(text, 'devices_call_duration_seconds_sum')['out slow']!
  t.ok(sum >= 0.05 && sum < 60, String(sum))
  t.ok(text.includes('devices_call_duration_seconds_bucket{le="+Inf",direction="out",method="slow"} 1'))
})

t.test('devices are counted by transport and protocol, whichever way they came, and are gone when they have left', async t => {
  const [entry, crowd, nameless] = [tcp({ port: 0 }), new Crowd('crowd'), new Crowd()]
  const app = await open(t, await host(t, { transports: [entry, crowd, nameless] }))
  const listener = new WebSocketServer({ port: 0, host: '127.0.0.1' })
  t.teardown(() => listener.close())
  await once(listener, 'listening')
  const { port } = entry.address as AddressInfo
  const web = await connect(app.url, 'web')
  const line = await connectLines(connectTcp(port, '127.0.0.1'), 'line')
  const dialled = [
    app.devices.dial(`ws://127.0.0.1:${(listener.address() as AddressInfo).port}`, { deviceId: 'hall' }),
    app.devices.dial(`tcp://127.0.0.1:${port}`, { deviceId: 'loop', as: 'self' })
  ]
  for (const { ready } of dialled) await ready
  for (const each of [crowd, nameless]) await each.connect(each === crowd ? 'one' : 'two')
  await until(() => app.devices.size === 7)
  const all = { 'websocket jsonrpc': 1, 'tcp jsonrpc': 2, 'dialled jsonrpc': 2, 'crowd jsonrpc': 1, 'other jsonrpc': 1 }
  t.strictSame(family(await scrape(app), 'devices_connected'), all)
  await connect(app.url, 'web')
  t.same(await web.closed, { code: 4509, reason: 'replaced by a newer connection' })
  t.strictSame(family(await scrape(app), 'devices_connected'), all, 'a connection that was replaced does not count')

  for (const connection of dialled) connection.close()
  line.socket.terminate()
  for (const each of [crowd, nameless]) each.leave()
  await app.devices.disconnect('web')
  await until(() => app.devices.size === 0)
  t.strictSame(family(await scrape(app), 'devices_connected'), Object.fromEntries(Object.keys(all).map(labels => [labels, 0])))
})

t.test('ten thousand devices and a thousand made-up names add no series', async t => {
  const crowd = new Crowd('crowd')
  const app = await host(t, {
    transports: [crowd],
    contract: { methods: { declared: {} }, commands: { command: {}, shared: {} } },
    rate: 1_000_000,
    burst: 1_000_000,
    callTimeout: 600_000 // calls end as `dropped`, however slow the machine is
  }, { path: '/metrics', methods: ['listed'] })
  app.devices.handle('handled', () => ({}))
  /** Each device calls five methods, and five of its own are called. The calls end when the devices leave. */
  const connectAndCall = async (count: number, names: number) => {
    const calls: Array<Promise<unknown>> = []
    for (let number = 0; number < count; number++) {
      const session = await crowd.connect(`device-${number}`)
      const methods = [`made-up-${number % names}`, 'handled', 'declared', 'command', 'listed']
      for (const [id, method] of methods.entries()) session.receive(JSON.stringify({ jsonrpc: '2.0', id, method }), 60)
      for (const method of methods) calls.push(app.devices.call(session.id, method).catch(() => {}))
    }
    return calls
  }
  const few = await connectAndCall(10, 10)
  crowd.leave()
  await Promise.all(few)
  const before = Object.keys(valuesIn(await scrape(app)))

  const many = await connectAndCall(10_000, 1_000)
  t.strictSame(family(await scrape(app), 'devices_connected'), { 'crowd jsonrpc': 10_000 })
  t.comment(`a scrape at 10,000 devices ${await timed(() => scrape(app))}`)
  crowd.leave()
  await Promise.all(many)
  const text = await scrape(app)
  t.strictSame(Object.keys(valuesIn(text)), before)
  t.strictSame(family(text, 'devices_call_duration_seconds_count'), {
    'in other': 20_020, 'in handled': 10_010, 'in declared': 10_010, 'in listed': 10_010, 'out other': 30_030, 'out command': 10_010, 'out listed': 10_010
  })
  t.notMatch(text, /device-|made-up/)
})

/** How long some work takes, which is at least as long as it blocks the event loop. */
async function timed (work: () => Promise<unknown>): Promise<string> {
  const times: number[] = []
  for (let round = 0; round < 21; round++) {
    await turn()
    const started = performance.now()
    await work()
    times.push(performance.now() - started)
  }
  times.sort((one, other) => one - other)
  return `takes ${times[10]!.toFixed(1)} ms (median), ${times.at(-1)!.toFixed(1)} ms at most`
}

t.test('reasons and close codes that an application or a device has made up add no series', async t => {
  let asked = 0
  let mayConnect = false
  const authenticate = () => {
    if (mayConnect) return true as const
    throw new Failure(`unknown customer ${++asked}` as 'forbidden')
  }
  const app = await open(t, await host(t, { authenticate }))
  app.devices.handle('fail', () => { throw new Failure(`no such thing ${++asked}` as 'forbidden') })
  for (let n = 0; n < 20; n++) await refusal(app.url, `/ws?deviceId=d${n}`)
  t.strictSame(family(await scrape(app), 'devices_refusals_total'), { other: 20 })
  mayConnect = true
  for (let code = 3_000; code < 3_010; code++) {
    const device = await connect(app.url, 'd')
    await device.ask('fail')
    device.socket.close(code)
    await device.closed
  }
  await until(() => app.devices.size === 0)
  const text = await scrape(app)
  t.strictSame(family(text, 'devices_calls_total'), { 'in other': 10 })
  t.strictSame(family(text, 'devices_disconnects_total'), { other: 10 })
})

t.test('each message of a batch that comes too fast is a refusal', async t => {
  const app = await open(t, await host(t, { rate: 1, burst: 25 }))
  const device = await connect(app.url, 'd')
  const batchFrom = (first: number) => Array.from({ length: 20 }, (_, n) => ({ jsonrpc: '2.0', id: first + n, method: 'ping' }))
  device.send(batchFrom(1))
  device.send(batchFrom(21))
  t.match(await device.answer(40), { error: { code: -32005 } })
  t.strictSame(family(await scrape(app), 'devices_refusals_total'), { 'too-fast': 20 })
})

t.test('a mailbox that fails, does not answer or does not count is left out, and the rest is there', async t => {
  const answers: Array<Mailbox['size']> = [
    async () => { throw new Error('secret') }, () => { throw new Error('secret') }, async () => NaN, async () => -1, async () => '7' as never, undefined
  ]
  for (const size of answers) {
    const { size: _, ...mailbox } = memoryMailbox()
    const text = await scrape(await host(t, { mailbox: size ? { ...mailbox, size } : mailbox }))
    t.strictSame(family(text, 'devices_letters_waiting'), {})
    t.strictSame(family(text, 'devices_backplane_up'), { '': 1 })
    t.notMatch(text, 'secret')
  }
})

t.test('a mailbox that does not answer delays a scrape once, and is not asked again until it has answered', async t => {
  const answer = gate<number>()
  let asked = 0
  const app = await host(t, { mailbox: { ...memoryMailbox(), size: () => { asked++; return answer.opened } } })
  const texts = await Promise.all([scrape(app), scrape(app)])
  texts.push(await scrape(app))
  for (const text of texts) t.strictSame(family(text, 'devices_letters_waiting'), {})
  t.equal(asked, 1)
  answer.open(5)
  await until(async () => family(await scrape(app), 'devices_letters_waiting')[''] === 5)
})

t.test('a backplane that is down is 0', async t => {
  const app = await host(t, { backplane: { ...localBackplane(), health: async () => ({ ok: false, reason: 'NATS unreachable' }) } })
  t.strictSame(family(await scrape(app), 'devices_backplane_up'), { '': 0 })
})

t.test('the route is protected by guard and authorize, and has the content type of the registry', async t => {
  const allowed: unknown[] = []
  const app = await host(t, {
    guard: ({ headers }) => headers.authorization === 'Bearer secret' && { name: 'prometheus' },
    authorize: (caller, operation) => { allowed.push([caller, operation]); return caller.name === 'prometheus' }
  }, { path: '/metrics', prefix: '/ops', logLevel: 'warn' } as MetricsOptions)
  t.equal((await app.inject('/metrics')).statusCode, 404)
  t.match((await app.inject('/ops/metrics')).json(), { statusCode: 401, code: 'UNAUTHENTICATED' })
  const answer = await app.inject({ url: '/ops/metrics', headers: { authorization: 'Bearer secret' } })
  t.equal(answer.statusCode, 200)
  t.equal(answer.headers['content-type'], 'text/plain; version=0.0.4; charset=utf-8')
  t.match(answer.body, /^devices_backplane_up 1$/m)
  t.strictSame(allowed, [[{ name: 'prometheus' }, { action: 'metrics' }]])
})
