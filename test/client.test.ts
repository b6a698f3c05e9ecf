import { once } from 'node:events'
import { writeFile } from 'node:fs/promises'
import type { Server } from 'node:http'
import { createServer, type AddressInfo, type Socket } from 'node:net'
import { join } from 'node:path'
import { pathToFileURL } from 'node:url'
import { gzipSync } from 'node:zlib'
import { build } from 'esbuild'
import Fastify from 'fastify'
import t, { type Test } from 'tap'
import WebSocket, { WebSocketServer } from 'ws'
import { tcpSocket } from '../lib/client/tcp.ts'
import { connect as connectClient, Failure, Refusal, type Client, type ConnectOptions, type Received, type Status } from '../lib/client/index.ts'
import { reconnectDelay } from '../lib/protocol/reconnect.ts'
import devices from '../lib/index.ts'
import { launch } from './browser.ts'
import { gate, reasonOf } from './fakes.ts'
import { withProgram } from './programs.ts'
import { root } from './root.ts'
import { listen, open, until } from './support.ts'

const quick = { minDelay: 10, maxDelay: 50, WebSocket }

function client (t: Pick<Test, 'teardown'>, url: string, options: Partial<ConnectOptions> = {}): Client {
  const client = connectClient(`${url}/ws`, { deviceId: 'd', ...quick, ...options })
  t.teardown(() => client.close())
  return client
}

async function becomes (client: Client, state: Status['state']): Promise<Status> {
  await until(() => client.status.state === state)
  return client.status
}

/** A server that says what a test tells it to each connection, the first of which is number 1. */
async function server (t: Test, onConnection: (socket: WebSocket, number: number) => void, { heartbeat = 60_000, welcomes = true } = {}): Promise<{ url: string, clients: Set<WebSocket> }> {
  const server = new WebSocketServer({ port: 0, host: '127.0.0.1' })
  t.teardown(() => { for (const socket of server.clients) socket.terminate(); server.close() })
  await once(server, 'listening')
  let connections = 0
  server.on('connection', socket => {
    if (welcomes) socket.send(`{"jsonrpc":"2.0","method":"welcome","params":{"heartbeat":${heartbeat}}}`)
    onConnection(socket, ++connections)
  })
  return { url: `http://127.0.0.1:${(server.address() as AddressInfo).port}`, clients: server.clients }
}

/** What a device says, each time it does. */
function hears (socket: WebSocket, listener: (message: any) => void): void {
  socket.on('message', data => listener(JSON.parse(String(data))))
}

const letter = (id: string) => JSON.stringify({ jsonrpc: '2.0', id, method: 'message', params: { id, data: id } })

t.test('a device answers, asks and is told', async t => {
  const app = await listen(t)
  app.devices.handle('echo', params => params)
  const notices: unknown[] = []
  app.devices.handle('log', params => { notices.push(params) })
  const device = client(t, app.url).handle('add', ({ a, b }) => a + b).handle('refuse', () => { throw new Error('accident') })
  t.strictSame(await device.call('echo', { n: 1 }), { n: 1 }, 'a call waits for the connection')
  t.equal(device.status.state, 'connected')
  t.equal(await app.devices.call('d', 'add', { a: 1, b: 2 }), 3)
  await t.rejects(app.devices.call('d', 'refuse'), { code: 'DEVICE_REFUSED', device: { code: -32603 } })
  await t.rejects(app.devices.call('d', 'unheard-of'), { code: 'METHOD_UNKNOWN' })
  t.equal(device.notify('log', { line: 1 }), true)
  const published = new Promise(resolve => device.subscribe('a/b', resolve))
  await device.publish('a/b', { n: 1 })
  t.match(await published, { topic: 'a/b', data: { n: 1 }, id: String })
  await until(() => notices.length === 1)
  t.equal(await reasonOf(device.call('nope')), 'unknown-method')
  t.strictSame(Buffer.from((await device.call('echo', { data: Buffer.from([0, 255]) })).data), Buffer.from([0, 255]))
})

t.test('a message is acknowledged once its listeners have finished, and the next one waits for that', async t => {
  const app = await listen(t)
  const device = client(t, app.url)
  const gates = [gate(), gate()]
  const begun: unknown[] = []
  device.on('message', async ({ data }) => { begun.push(data); await gates[data]!.opened })
  await becomes(device, 'connected')
  const sent = [0, 1].map(n => app.devices.send('d', n, { ttl: 60_000, confirm: true }))
  await until(() => begun.length === 1)
  t.equal((await app.devices.describe('d')).waiting, 2)
  gates[0]!.open()
  t.equal((await sent[0]!).status, 'delivered')
  await until(() => begun.length === 2)
  gates[1]!.open()
  t.equal((await sent[1]!).status, 'delivered')
  t.strictSame(begun, [0, 1])
})

t.test('a letter at which a listener throws is told of, holds nobody up, and comes again', async t => {
  const app = await listen(t)
  const errors: unknown[] = []
  const shown: unknown[] = []
  const device = client(t, app.url).on('error', error => errors.push(error))
  device.on('message', ({ data }) => {
    shown.push(data)
    if (data === 'bad' && errors.length === 0) throw new Error('cannot')
  })
  await becomes(device, 'connected')
  const bad = app.devices.send('d', 'bad', { ttl: 60_000, confirm: true })
  const good = app.devices.send('d', 'good', { ttl: 60_000, confirm: true })
  t.equal((await good).status, 'delivered')
  t.equal((await bad).status, 'delivered')
  t.match(errors, [{ message: 'cannot' }])
  t.strictSame(shown, ['bad', 'good', 'bad'])
})

t.test('a listener refuses a letter in its own words, and for good', async t => {
  const app = await listen(t)
  const errors: unknown[] = []
  const device = client(t, app.url).on('error', error => errors.push(error)).on('message', () => { throw new Refusal('Too hot', 42) })
  await becomes(device, 'connected')
  await t.rejects(app.devices.send('d', 1, { ttl: 60_000, confirm: true }), { code: 'DEVICE_REFUSED', device: { code: 42, message: 'Too hot' } })
  t.strictSame(errors, [])
})

t.test('a letter that nobody listens to waits until somebody does', async t => {
  const app = await listen(t)
  const errors: unknown[] = []
  const shown: unknown[] = []
  const listener = () => {}
  const device = client(t, app.url).on('error', error => errors.push(error)).on('message', listener).off('message', listener)
  await becomes(device, 'connected')
  device.subscribe('news', () => {})
  await t.rejects(app.devices.send('d', 0, { confirm: true }), { code: 'DEVICE_REFUSED', device: { code: -32603 } })
  const { id } = await app.devices.send('d', 1, { ttl: 60_000 })
  await until(() => errors.length === 2)
  t.match(errors, [{ message: /No message listener/ }, { message: /No message listener/ }])
  t.equal((await app.devices.receipt('d', id)).status, 'queued')
  device.on('message', ({ data }) => shown.push(data))
  await until(async () => (await app.devices.receipt('d', id)).status === 'delivered')
  t.strictSame(shown, [1])
})

const connections = new WeakMap<object, Set<Socket>>()

/** The connections of an application from now on, to cut them. */
function sockets ({ server }: { server: Server }): Set<Socket> {
  let all = connections.get(server)
  if (!all) {
    connections.set(server, all = new Set())
    server.on('connection', socket => all!.add(socket))
  }
  return all
}

t.test('whatever happens to the line, each letter is seen once and in order, and what was subscribed is back', async t => {
  const app = await listen(t)
  sockets(app)
  const device = client(t, app.url)
  const seen: number[] = []
  const news: unknown[] = []
  device.on('message', async ({ data, topic }) => {
    if (topic !== undefined) return
    seen.push(data)
    await new Promise(resolve => setTimeout(resolve, 2))
  })
  const listener = ({ data }: Received) => { news.push(data) }
  const leave = device.subscribe('news/+', listener)
  for (let n = 0; n < 100; n++) {
    await app.devices.send('d', n, { ttl: 60_000 })
    if (n % 10 === 5) {
      await becomes(device, 'connected')
      for (const socket of sockets(app)) socket.resetAndDestroy()
      await until(() => device.status.state !== 'connected')
    }
  }
  await until(() => seen.length >= 100)
  await becomes(device, 'connected')
  await until(async () => (await app.devices.describe('d')).waiting === 0)
  t.strictSame(seen, Array.from({ length: 100 }, (_, n) => n))

  await until(() => app.devices.get('d')!.topics.size === 1)
  await app.devices.broadcast('extra', { topic: 'news/x' })
  await until(() => news.length === 1)
  const leaveToo = device.subscribe('news/+', () => {})
  leave()
  leave()
  t.equal(app.devices.get('d')!.topics.size, 1)
  leaveToo()
  await until(() => app.devices.get('d')!.topics.size === 0)
})

t.test('a device does not reconnect after a close code that forbids it', async t => {
  const app = await listen(t)
  const device = client(t, app.url)
  const states: string[] = []
  device.on('status', ({ state }) => states.push(state))
  await becomes(device, 'connected')
  await app.devices.disconnect('d')
  t.match(await becomes(device, 'stopped'), { code: 4511, reason: 'removed through REST' })
  t.equal(await reasonOf(device.call('ping')), 'dropped')
  t.equal(device.notify('ping'), false)
  t.strictSame(states, ['connected', 'stopped'])
})

t.test('of two clients with one id the newer stays, and the older stops', async t => {
  const app = await listen(t)
  const older = client(t, app.url)
  await becomes(older, 'connected')
  const newer = client(t, app.url)
  await becomes(newer, 'connected')
  t.match(await becomes(older, 'stopped'), { code: 4509 })
  t.ok((await newer.call('ping')).now)
})

t.test('a node that leaves says when to come back, and is found again', async t => {
  const app = await listen(t, { retrySpread: 50 })
  const { port } = new URL(app.url)
  const device = client(t, app.url)
  await becomes(device, 'connected')
  const waiting = new Promise<Status>(resolve => device.on('status', status => { if (status.code === 1012) resolve(status) }))
  await app.close()
  const { retryIn, reason } = await waiting
  t.ok(retryIn! >= Number(reason!.slice('retry='.length)))
  const call = device.call('ping', undefined, { timeout: 20_000 })
  const again = Fastify()
  await again.register(devices)
  t.teardown(() => again.close())
  await again.listen({ port: Number(port), host: '127.0.0.1' })
  t.ok((await call).now, 'a call that waited is made then')
})

t.test('calls wait for the connection within their time and their number', async t => {
  const device = client(t, 'http://127.0.0.1:9', { maxWaiting: 2 })
  const giveUp = new AbortController()
  const calls = [device.call('a', undefined, { timeout: 30 }), device.call('b', undefined, { signal: giveUp.signal }), device.call('c')]
  t.equal(await reasonOf(calls[2]!), 'busy')
  t.equal(await reasonOf(calls[0]!), 'timeout')
  giveUp.abort()
  t.equal(await reasonOf(calls[1]!), 'dropped')
  const last = device.publish('a', 1)
  await becomes(device, 'waiting')
  device.close()
  t.equal(await reasonOf(last), 'dropped')
  t.equal(device.status.state, 'stopped')
})

t.test('a call that was under way when the line broke is not made again', async t => {
  const app = await listen(t)
  sockets(app)
  let made = 0
  app.devices.handle('slow', () => { made++; return new Promise(() => {}) })
  const device = client(t, app.url)
  const call = device.call('slow')
  await until(() => made === 1)
  for (const socket of sockets(app)) socket.resetAndDestroy()
  t.equal(await reasonOf(call), 'dropped')
  await becomes(device, 'connected')
  t.equal(made, 1)
})

t.test('a token is asked for anew before each connection', async t => {
  const app = await listen(t, { authenticate: ({ token }) => token === 'right' })
  const tokens = ['wrong', new Error('no network'), 'not fit for a header', undefined, 'right']
  const errors: unknown[] = []
  const device = client(t, app.url, {
    token: async () => {
      const token = tokens.shift()
      if (token instanceof Error) throw token
      return token
    }
  }).on('error', error => errors.push(error))
  await becomes(device, 'connected')
  t.strictSame(tokens, [])
  t.match(errors, [{ message: 'no network' }, SyntaxError])
  t.equal(app.devices.stats().refusals.unauthenticated, 2)

  const fixed = client(t, app.url, { deviceId: 'e', token: 'right' })
  await becomes(fixed, 'connected')
})

t.test('a client that is closed while it asks for its token stays closed', async t => {
  const asked = gate<string>()
  const device = client(t, 'http://127.0.0.1:9', { token: () => asked.opened })
  device.close()
  asked.open('token')
  await new Promise(resolve => setImmediate(resolve))
  t.equal(device.status.state, 'stopped')
})

t.test('a silent connection is terminated', async t => {
  let connections = 0
  let pings = 0
  const { url, clients } = await server(t, (socket, number) => {
    connections = number
    if (number > 1) return
    hears(socket, ({ id }) => {
      if (pings++ === 0) socket.send(JSON.stringify({ jsonrpc: '2.0', id, error: { code: -32005, message: 'Too many messages' } }))
    })
  }, { heartbeat: 20 })
  const device = client(t, url)
  let late = false
  device.handle('late', () => { late = true })
  const ended = new Promise<Status>(resolve => device.on('status', status => { if (status.code !== undefined) resolve(status) }))
  t.match(await ended, { code: 1006 })
  t.ok(pings >= 2, 'whatever is answered shows that it is not')
  for (const socket of clients) socket.send('{"jsonrpc":"2.0","id":1,"method":"late"}')
  await until(() => connections === 2)
  t.notOk(late, 'late messages on an old connection are ignored')
})

t.test('what comes faster than it is handled waits within a bound', async t => {
  const { url } = await server(t, socket => {
    for (let n = 0; n < 10_005; n++) socket.send(`{"jsonrpc":"2.0","method":"message","params":{"id":"${n}","data":${n}}}`)
  })
  const door = gate()
  const seen: number[] = []
  const device = client(t, url)
  const errors: unknown[] = []
  device.on('message', async ({ data }) => { await door.opened; seen.push(data) }).on('error', error => errors.push(error))
  await until(() => errors.length === 5)
  t.match(errors[0], { reason: 'busy' })
  door.open()
  await until(() => seen.length === 10_000)
  t.strictSame(seen, Array.from({ length: 10_000 }, (_, n) => n))
})

t.test('a server that asks too much at once, or answers what nobody asked, is borne', async t => {
  const answers: any[] = []
  const { url } = await server(t, socket => {
    hears(socket, message => answers.push(message))
    socket.send('{"jsonrpc":"2.0","id":1,"result":"nobody asked"}')
    for (let id = 0; id < 1_001; id++) socket.send(`{"jsonrpc":"2.0","id":${id},"method":"wait"}`)
  })
  client(t, url).handle('wait', () => new Promise(() => {}))
  await until(() => answers.length === 1)
  t.match(answers, [{ id: 1_000, error: { code: -32006 } }])
})

t.test('the reconnection delay follows from the close code and reason', async t => {
  const backoff = { minDelay: 1_000, maxDelay: 30_000 }
  for (const code of [1000, 4500, 4509, 4999]) t.equal(reconnectDelay(code, '', 0, backoff), undefined)
  t.equal(reconnectDelay(1012, 'retry=8143', 3, backoff), 8_143)
  for (const code of [1001, 1006, 1012, 4000, 4008, 4499, 3000]) {
    for (const [tries, most] of [[0, 1_000], [3, 8_000], [10, 30_000], [5_000, 30_000]] as const) {
      const wait = reconnectDelay(code, 'retry=soon', tries, backoff)!
      t.ok(wait >= 0 && wait <= most)
    }
  }
})

t.test('a server that says to come back at once, again and again, is tried ever more rarely', async t => {
  t.intercept(Math, 'random', { value: () => 0.5 })
  t.equal(reconnectDelay(1012, 'retry=0', 0, { minDelay: 1_000, maxDelay: 30_000 }), 500)
  t.equal(reconnectDelay(1012, 'retry=8143', 6, { minDelay: 1_000, maxDelay: 30_000 }), 15_000)
  const { url } = await server(t, socket => socket.close(1012, 'retry=0'))
  const device = client(t, url, { minDelay: 10, maxDelay: 50 })
  const waits: unknown[] = []
  device.on('status', ({ state, retryIn }) => { if (state === 'waiting') waits.push(retryIn) })
  await until(() => waits.length >= 5)
  t.strictSame(waits.slice(0, 5), [5, 10, 20, 25, 25])
})

t.test('an address may be relative, where there is a page', async t => {
  const app = await listen(t)
  const global = globalThis as { location?: unknown }
  t.teardown(() => { delete global.location })
  global.location = { href: `${app.url}/page` }
  const device = connectClient('/ws', { deviceId: 'd', ...quick })
  t.teardown(() => device.close())
  t.ok((await device.call('ping')).now)
  await new Promise(resolve => setTimeout(resolve, 5 * quick.minDelay))
  await app.devices.disconnect('d')
  await becomes(device, 'stopped')
})

t.test('without a WebSocket, connect throws', async t => {
  const global = globalThis as { WebSocket?: unknown }
  const own = global.WebSocket
  t.teardown(() => { global.WebSocket = own })
  global.WebSocket = undefined
  t.throws(() => connectClient('http://127.0.0.1:9/ws', { deviceId: 'd' }), { message: /option "WebSocket"/ })
})

t.test('an invalid URL throws at once', async t => {
  t.throws(() => connectClient('nowhere', { deviceId: 'd', ...quick }), { code: 'ERR_INVALID_URL' })
  t.throws(() => connectClient('localhost:3000/ws', { deviceId: 'd', ...quick }), { message: /Invalid URL/ })
})

t.test('an unknown option is refused by its name', async t => {
  const unknown = { deviceId: 'd', ...quick, retries: 3 } // in plain JavaScript no compiler finds it
  t.throws(() => connectClient('ws://127.0.0.1:9/ws', unknown), new TypeError('Unknown option "retries"'))
})

t.test('an invalid device id throws at once', async t => {
  for (const deviceId of [undefined, '', 'a b', 'x'.repeat(129)]) {
    t.throws(() => connectClient('ws://127.0.0.1:9/ws', { deviceId: deviceId!, ...quick }), { message: /"deviceId"/ })
  }
})

t.test('a call that there is no connection for says why', async t => {
  const app = await listen(t, { authenticate: ({ token }) => token === 'right' })
  const stranger = client(t, app.url)
  await t.rejects(stranger.call('ping', undefined, { timeout: 500 }), { reason: 'timeout', message: /^No connection: .*401/ })
  const device = client(t, app.url, { deviceId: 'e', token: 'right' })
  await becomes(device, 'connected')
  await app.devices.disconnect('e')
  await becomes(device, 'stopped')
  await t.rejects(device.call('ping'), { reason: 'dropped', message: 'No connection: removed through REST' })
})

t.test('why there is no connection is told where it is known', async t => {
  const app = await listen(t, { authenticate: () => false })
  const reasonOf = async (url: string, options: object) => {
    const device = connectClient(url, { deviceId: 'd', ...quick, ...options })
    t.teardown(() => device.close())
    return (await becomes(device, 'waiting')).reason
  }
  t.match(await reasonOf(`${app.url}/ws`, {}), /401/)
  t.match(await reasonOf('tcp://127.0.0.1:1', { WebSocket: tcpSocket() }), /ECONNREFUSED/)
})

t.test('an attempt that gets no answer is given up, and the next one waits longer', async t => {
  const mute = createServer().listen(0, '127.0.0.1')
  const taken: Socket[] = []
  mute.on('connection', socket => taken.push(socket.resume()))
  t.teardown(() => { for (const socket of taken) socket.destroy(); mute.close() })
  await once(mute, 'listening')
  const { random } = Math
  t.teardown(() => { Math.random = random })
  Math.random = () => 1
  const waits: Status[] = []
  const device = client(t, `http://127.0.0.1:${(mute.address() as AddressInfo).port}`, { timeout: 30, minDelay: 1, maxDelay: 4 })
  device.on('status', status => { if (status.state === 'waiting') waits.push(status) })
  await until(() => waits.length === 4)
  t.match(waits, [1, 2, 4, 4].map(retryIn => ({ code: 1006, retryIn })))
  await until(() => taken.length >= 4 && taken.slice(0, 4).every(({ closed, readableEnded }) => closed || readableEnded))
})

t.test('a server that lets in and does not welcome, and a token that never comes, are given up as well', async t => {
  let connections = 0
  const { url, clients } = await server(t, () => { connections++ }, { welcomes: false })
  class Bare extends WebSocket {} // as in browsers, there is no harder way to end it than `close`
  Object.defineProperty(Bare.prototype, 'terminate', { value: undefined })
  const device = client(t, url, { timeout: 200, WebSocket: Bare })
  await until(() => connections === 2)
  t.match(device.status, { state: 'connecting' })
  device.close()
  await until(() => clients.size === 0)

  let asked = 0
  client(t, url, { timeout: 30, token: () => new Promise<string>(() => { asked++ }) })
  await until(() => asked === 2)
  t.equal(connections, 2)
})

t.test('whenever it is closed, it stays closed', async t => {
  const { url } = await server(t, () => {})
  const states: string[] = []
  const asked = gate<string>()
  const whileAsked = client(t, url, { token: () => asked.opened }).on('status', ({ state }) => states.push(state))
  whileAsked.close()
  whileAsked.close()
  asked.fail(new Error('no token'))
  const whileConnecting = client(t, url)
  await new Promise(resolve => setImmediate(resolve))
  whileConnecting.close()
  const whileTold = client(t, url)
  whileTold.on('status', ({ state }) => { if (state === 'connected') whileTold.close() }).on('status', ({ state }) => states.push(state))
  t.equal(await reasonOf(whileTold.call('never answered')), 'dropped')
  const whileWaiting = client(t, 'http://127.0.0.1:9')
  await becomes(whileWaiting, 'waiting')
  whileWaiting.close()
  const onError = client(t, url, { token: () => { throw new Error('no token') } })
  onError.on('error', () => onError.close())
  await becomes(onError, 'stopped')
  await new Promise(resolve => setTimeout(resolve, 3 * quick.maxDelay))
  for (const device of [whileAsked, whileConnecting, whileTold, whileWaiting, onError]) t.match(device.status, { state: 'stopped', code: 1000 })
  t.strictSame(states, ['stopped', 'stopped'], 'each is told once, and nothing after it')
})

t.test('a call that is followed by the end is dropped, and so is one that nobody wants any more', async t => {
  const app = await listen(t)
  const device = client(t, app.url)
  await becomes(device, 'connected')
  const call = device.call('ping')
  device.close()
  t.equal(await reasonOf(call), 'dropped')
  const away = client(t, 'http://127.0.0.1:9', { timeout: Infinity })
  t.equal(await reasonOf(away.call('ping', undefined, { signal: AbortSignal.abort() })), 'dropped')
  const patient = away.call('ping', undefined, { timeout: Infinity })
  await becomes(away, 'waiting')
  away.close()
  t.equal(await reasonOf(patient), 'dropped')
})

t.test('more calls than a server takes at a time wait for their turn', async t => {
  const app = await listen(t)
  app.devices.handle('work', async params => {
    await new Promise(resolve => setTimeout(resolve, 5))
    return params
  })
  const device = client(t, app.url)
  const calls = Array.from({ length: 100 }, (_, n) => device.call('work', { n }))
  t.strictSame(await Promise.all(calls), Array.from({ length: 100 }, (_, n) => ({ n })))
})

t.test('what cannot be encoded is the fault of who asks, and an internal error of who answers', async t => {
  const app = await listen(t)
  const errors: unknown[] = []
  const device = client(t, app.url).handle('big', async () => 1n).on('error', error => errors.push(error))
  await becomes(device, 'connected')
  await t.rejects(device.call('echo', { big: 1n }), { reason: 'bad-params', message: /BigInt/ })
  await t.rejects(app.devices.call('d', 'big'), { code: 'DEVICE_REFUSED', device: { code: -32603 } })
  t.match(errors, [TypeError])
})

t.test('a handler may refuse in its own words; an accident is told to whoever listens for errors', async t => {
  const app = await listen(t)
  const errors: unknown[] = []
  const device = client(t, app.url).on('error', error => errors.push(error))
    .handle('refuse', () => { throw new Failure('refused', { detail: { code: 42, message: 'Too hot' } }) })
    .handle('stumble', () => { throw new Error('accident') })
  await becomes(device, 'connected')
  await t.rejects(app.devices.call('d', 'refuse'), { code: 'DEVICE_REFUSED', device: { code: 42, message: 'Too hot' } })
  await t.rejects(app.devices.call('d', 'stumble'), { code: 'DEVICE_REFUSED', device: { code: -32603, message: 'Internal error' } })
  t.match(errors, [{ message: 'accident' }])
})

t.test('what listeners for the status and for errors throw harms nobody', async t => {
  const app = await listen(t)
  const errors: unknown[] = []
  const device = client(t, app.url)
    .on('status', ({ state }) => { throw new Error(state) })
    .on('error', () => { throw new Error('once more') })
    .on('error', error => errors.push(error))
    .on('message', ({ data }) => { if (data === 'bad') throw new Error('cannot') })
  t.ok((await device.call('ping')).now)
  await t.rejects(app.devices.send('d', 'bad', { confirm: true }), { code: 'DEVICE_REFUSED' })
  t.equal((await app.devices.send('d', 'good', { ttl: 60_000, confirm: true })).status, 'delivered')
  await app.devices.disconnect('d')
  await until(() => errors.length === 3)
  t.match(errors, [{ message: 'connected' }, { message: 'cannot' }, { message: 'stopped' }])
})

t.test('a letter that comes again while it is being handled is not shown again, and acknowledged all the same', async t => {
  const acknowledged: string[] = []
  let connections = 0
  const { url, clients } = await server(t, (socket, number) => {
    connections = number
    hears(socket, ({ id }) => acknowledged.push(`${id} on ${number}`))
    for (const id of ['a', 'b']) socket.send(letter(id))
  })
  const door = gate()
  const shown: string[] = []
  const device = client(t, url).on('message', async ({ id }) => { shown.push(id); await door.opened })
  await until(() => shown.length === 1)
  for (const socket of clients) socket.terminate()
  await until(() => connections === 2 && device.status.state === 'connected')
  door.open()
  await until(() => acknowledged.length === 2)
  t.strictSame(acknowledged, ['a on 2', 'b on 2'])
  t.strictSame(shown, ['a', 'b'])
})

t.test('notices do not make it forget letters', async t => {
  const acknowledged: string[] = []
  const { url } = await server(t, socket => {
    hears(socket, ({ id }) => acknowledged.push(id))
    socket.send(letter('a'))
    for (let n = 0; n < 1_100; n++) socket.send(`{"jsonrpc":"2.0","method":"message","params":{"id":"n${n}","data":${n}}}`)
    socket.send(letter('a'))
  })
  const shown: string[] = []
  client(t, url).on('message', ({ id }) => shown.push(id))
  await until(() => acknowledged.length === 2)
  t.equal(shown.length, 1_101)
})

t.test('it remembers as many letters as can be in flight, and no more', async t => {
  let acknowledged = 0
  const { url } = await server(t, socket => {
    hears(socket, () => {
      if (++acknowledged <= 1_000) socket.send(letter(String(acknowledged)))
      else if (acknowledged === 1_001) for (const id of ['1', '0']) socket.send(letter(id))
    })
    socket.send(letter('0'))
  })
  const shown: string[] = []
  client(t, url).on('message', ({ id }) => shown.push(id))
  await until(() => acknowledged === 1_003)
  t.strictSame(shown.slice(1_000), ['1000', '0'])
})

t.test('after close, no message is delivered', async t => {
  const app = await listen(t)
  const device = client(t, app.url)
  const door = gate()
  const shown: unknown[] = []
  device.on('message', async ({ data }) => { shown.push(data); await door.opened })
  await becomes(device, 'connected')
  for (const n of [0, 1]) await app.devices.send('d', n, { ttl: 60_000 })
  await until(() => shown.length === 1)
  device.close()
  door.open()
  await until(() => !app.devices.has('d'))
  const next = client(t, app.url).on('message', ({ data }) => shown.push(data))
  await becomes(next, 'connected')
  await until(() => shown.length === 3)
  t.strictSame(shown, [0, 0, 1])
})

t.test('a message may be nested as deep as the server lets it', async t => {
  const app = await listen(t)
  const device = client(t, app.url)
  let deep: any = 'bottom'
  for (let level = 0; level < 100; level++) deep = [deep]
  const shown = new Promise(resolve => device.on('message', ({ data }) => resolve(data)))
  await becomes(device, 'connected')
  t.equal((await app.devices.send('d', deep, { ttl: 60_000, confirm: true })).status, 'delivered')
  t.strictSame(await shown, deep)
})

t.test('a filter that is refused takes no other with it', async t => {
  const app = await listen(t, { authorizeTopic: (_device, topic) => !topic.startsWith('secret') })
  const device = client(t, app.url)
  const errors: unknown[] = []
  device.on('error', error => errors.push(error))
  for (const filter of ['a', 'secret/#', 'b']) device.subscribe(filter, () => {})
  await until(() => errors.length === 1)
  t.match(errors, [{ message: 'subscribe secret/#: Not allowed', reason: 'refused', device: { code: -32008 } }])
  await until(() => app.devices.get('d')!.topics.size === 2)
  t.strictSame([...app.devices.get('d')!.topics], ['a', 'b'])
})

t.test('a filter that a server says nothing about is named', async t => {
  const { url } = await server(t, () => {})
  const device = client(t, url, { timeout: 50 })
  const error = new Promise(resolve => device.on('error', resolve))
  device.subscribe('a', () => {})
  t.match(await error, { message: 'subscribe a: No answer in time', reason: 'timeout' })
})

t.test('who unsubscribes before the server has answered is not subscribed', async t => {
  const asked = gate()
  const app = await listen(t, { authorizeTopic: async () => { await asked.opened; return true } })
  const device = client(t, app.url)
  await becomes(device, 'connected')
  device.subscribe('a', () => {})()
  device.subscribe('b', () => {})
  asked.open()
  await until(() => app.devices.get('d')!.topics.size > 0 && app.devices.get('d')!.topics.has('b'))
  t.strictSame([...app.devices.get('d')!.topics], ['b'])
})

t.test('a subscription is told again to a server that has too much to do, until the line ends', async t => {
  const asked: string[][] = []
  const { url, clients } = await server(t, socket => {
    hears(socket, ({ id, params }) => {
      asked.push(params.topics)
      const busy = { error: { code: -32005, message: 'Too many messages' } }
      socket.send(JSON.stringify({ jsonrpc: '2.0', id, ...(asked.length === 2 ? { result: {} } : busy) }))
    })
  })
  const errors: unknown[] = []
  const device = client(t, url).on('error', error => errors.push(error))
  device.subscribe('a', () => {})
  device.subscribe('b', () => {})
  await until(() => asked.length === 2)
  t.strictSame(asked, [['a', 'b'], ['a', 'b']])
  device.subscribe('c', () => {})
  await until(() => asked.length === 3)
  for (const socket of clients) socket.terminate()
  await until(() => asked.length === 4)
  t.strictSame(asked[3], ['a', 'b', 'c'])
  t.strictSame(errors, [])
})

/** The client as an application would bundle it, minified. */
async function bundled (outfile: string): Promise<Uint8Array> {
  const entry = join(root, 'lib/client/index.ts')
  const { outputFiles } = await build({ entryPoints: [entry], outfile, bundle: true, minify: true, format: 'esm', platform: 'browser', write: false })
  return outputFiles[0]!.contents
}

t.test('bundled and minified it is small, needs nothing of Node, and works', async t => {
  const outfile = join(t.testdir(), 'client.mjs')
  const contents = await bundled(outfile)
  const size = gzipSync(contents).length
  t.comment(`${size} bytes gzipped`)
  t.ok(size < 6_000, `${size} bytes gzipped`)
  const text = Buffer.from(contents).toString()
  t.notMatch(text, /\bnode:|\brequire\(|\bimport\b/)
  await writeFile(outfile, contents)
  const { connect } = await import(pathToFileURL(outfile).href) as { connect: typeof connectClient }
  const app = await listen(t)
  const device = connect(`${app.url}/ws`, { deviceId: 'd', ...quick })
  t.teardown(() => device.close())
  t.ok((await device.call('ping')).now)
})

withProgram(t, 'chromium', 'a page connects by a relative address; one that is refused cannot know why, and asks on', async (t, path) => {
  const tokens: unknown[] = []
  const gateway = Fastify()
  await gateway.register(devices, {
    authenticate ({ token, deviceId }) {
      tokens.push(token)
      return deviceId === 'd'
    }
  })
  const contents = Buffer.from(await bundled('client.mjs'))
  const html = '<!doctype html><link rel="icon" href="data:,"><script type="module">import * as client from "/client.mjs"; globalThis.client = client</script>'
  gateway.get('/client.mjs', (_request, reply) => reply.type('text/javascript').send(contents))
  gateway.get('/', (_request, reply) => reply.type('text/html').send(html))
  const { url } = await open(t, gateway)
  const browser = await launch(t, path)
  const page = await browser.newPage()
  await page.goto(url)
  await page.waitForFunction('globalThis.client')
  const now = await page.evaluate(`(async () => {
    const device = client.connect('/ws', { deviceId: 'd', token: () => 'right' })
    const { now } = await device.call('ping')
    device.close()
    return now
  })()`)
  t.type(now, 'number')
  const statuses = await page.evaluate(`new Promise(resolve => {
    const statuses = []
    let asked = 0
    const device = client.connect('/ws', { deviceId: 'e', minDelay: 10, maxDelay: 20, token: () => 'wrong-' + ++asked })
    device.on('status', status => {
      if (status.state === 'waiting') statuses.push(status)
      if (statuses.length < 3) return
      device.close()
      resolve(statuses)
    })
  })`)
  t.match(statuses, [1, 2, 3].map(() => ({ state: 'waiting', code: 1006, reason: '' })))
  t.strictSame(tokens, ['right', 'wrong-1', 'wrong-2', 'wrong-3'])
})

t.test('messages on a connection that was given up are ignored', async t => {
  const listeners = new Map<string, (event: any) => void>()
  class Zombie {
    binaryType = ''
    addEventListener (type: string, listener: (event: any) => void): void { listeners.set(type, listener) }
    send (): void {}
    close (): void {}
  }
  const seen: unknown[] = []
  const device = connectClient('ws://127.0.0.1:1/ws', { deviceId: 'd', WebSocket: Zombie }).on('message', ({ data }) => { seen.push(data) })
  const message = (data: string) => listeners.get('message')!({ data: JSON.stringify({ jsonrpc: '2.0', method: 'message', params: { id: data, data } }) })
  await until(() => listeners.has('message'))
  message('before')
  await until(() => seen.length > 0)
  device.close()
  message('after')
  await new Promise(resolve => setImmediate(resolve))
  t.strictSame(seen, ['before'])
})
