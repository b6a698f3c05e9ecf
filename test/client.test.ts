import { once } from 'node:events'
import type { Server } from 'node:http'
import type { Socket } from 'node:net'
import Fastify from 'fastify'
import t, { type Test } from 'tap'
import WebSocket, { WebSocketServer } from 'ws'
import { connect as connectClient, type Client, type ConnectOptions, type Received, type Status } from '../lib/client/index.ts'
import { waitOf } from '../lib/retry.ts'
import devices from '../lib/index.ts'
import { gate, reasonOf } from './fakes.ts'
import { listen, until } from './support.ts'

const quick = { first: 10, most: 50, WebSocket: WebSocket as unknown as NonNullable<ConnectOptions['WebSocket']> }

function client (t: Pick<Test, 'teardown'>, url: string, options: Partial<ConnectOptions> = {}): Client {
  const client = connectClient(`${url}/ws`, { deviceId: 'd', ...quick, ...options })
  t.teardown(() => client.close())
  return client
}

async function becomes (client: Client, state: Status['state']): Promise<Status> {
  await until(() => client.status.state === state)
  return client.status
}

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
  const doors = [gate(), gate()]
  const begun: unknown[] = []
  device.on('message', async ({ data }) => { begun.push(data); await doors[data]!.opened })
  await becomes(device, 'connected')
  const sent = [0, 1].map(n => app.devices.send('d', n, { ttl: 60_000, confirm: true }))
  await until(() => begun.length === 1)
  t.equal((await app.devices.describe('d')).waiting, 2)
  doors[0]!.open()
  t.equal((await sent[0]!).status, 'delivered')
  await until(() => begun.length === 2)
  doors[1]!.open()
  t.equal((await sent[1]!).status, 'delivered')
  t.strictSame(begun, [0, 1])
})

t.test('a listener that fails refuses its letter, is told of, and holds nobody up', async t => {
  const app = await listen(t)
  const errors: unknown[] = []
  const device = client(t, app.url).on('error', error => errors.push(error))
  const listener = ({ data }: Received) => { if (data === 'bad') throw new Error('cannot') }
  device.on('message', listener)
  await becomes(device, 'connected')
  const bad = app.devices.send('d', 'bad', { ttl: 60_000, confirm: true })
  const good = app.devices.send('d', 'good', { ttl: 60_000, confirm: true })
  await t.rejects(bad, { code: 'DEVICE_REFUSED' })
  t.equal((await good).status, 'delivered')
  t.match(errors, [{ message: 'cannot' }])
  device.off('message', listener)
  t.equal((await app.devices.send('d', 'bad', { ttl: 60_000, confirm: true })).status, 'delivered')
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

t.test('a device that is told not to come back does not', async t => {
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
  t.equal(reason, `retry=${retryIn}`)
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

t.test('a line that has fallen silent is noticed', async t => {
  const server = new WebSocketServer({ port: 0, host: '127.0.0.1' })
  t.teardown(() => { for (const socket of server.clients) socket.terminate(); server.close() })
  await once(server, 'listening')
  let connections = 0
  server.on('connection', socket => {
    connections++
    socket.send('{"jsonrpc":"2.0","method":"welcome","params":{"heartbeat":20}}')
    if (connections > 1) return
    socket.on('message', data => {
      const { id } = JSON.parse(String(data))
      if (pings++ === 0) socket.send(JSON.stringify({ jsonrpc: '2.0', id, result: {} }))
    })
  })
  let pings = 0
  const device = client(t, `http://127.0.0.1:${(server.address() as { port: number }).port}`)
  let late = false
  device.handle('late', () => { late = true })
  const ended = new Promise<Status>(resolve => device.on('status', status => { if (status.code !== undefined) resolve(status) }))
  t.match(await ended, { code: 1006 })
  t.ok(pings >= 2)
  for (const socket of server.clients) socket.send('{"jsonrpc":"2.0","id":1,"method":"late"}')
  await until(() => connections === 2)
  t.notOk(late, 'what an old line says late is not heard')
})

t.test('it remembers a bounded number of messages', async t => {
  const app = await listen(t)
  const device = client(t, app.url)
  let seen = 0
  device.on('message', () => { seen++ })
  await becomes(device, 'connected')
  for (let n = 0; n < 1_100; n++) await app.devices.send('d', n)
  await until(() => seen === 1_100)
})

t.test('what comes faster than it is handled waits within a bound', async t => {
  const server = new WebSocketServer({ port: 0, host: '127.0.0.1' })
  t.teardown(() => { for (const socket of server.clients) socket.terminate(); server.close() })
  await once(server, 'listening')
  server.on('connection', socket => {
    socket.send('{"jsonrpc":"2.0","method":"welcome","params":{"heartbeat":60000}}')
    for (let n = 0; n < 10_005; n++) socket.send(`{"jsonrpc":"2.0","method":"message","params":{"id":"${n}","data":${n}}}`)
  })
  const door = gate()
  const seen: number[] = []
  const device = client(t, `http://127.0.0.1:${(server.address() as { port: number }).port}`)
  const errors: unknown[] = []
  device.on('message', async ({ data }) => { await door.opened; seen.push(data) }).on('error', error => errors.push(error))
  await until(() => errors.length === 5)
  t.match(errors[0], { reason: 'busy' })
  door.open()
  await until(() => seen.length === 10_000)
  t.strictSame(seen, Array.from({ length: 10_000 }, (_, n) => n))
})

t.test('a server that asks too much at once, or answers what nobody asked, is borne', async t => {
  const server = new WebSocketServer({ port: 0, host: '127.0.0.1' })
  t.teardown(() => { for (const socket of server.clients) socket.terminate(); server.close() })
  await once(server, 'listening')
  const answers: any[] = []
  server.on('connection', socket => {
    socket.on('message', data => answers.push(JSON.parse(String(data))))
    socket.send('{"jsonrpc":"2.0","method":"welcome","params":{"heartbeat":60000}}')
    socket.send('{"jsonrpc":"2.0","id":1,"result":"nobody asked"}')
    for (let id = 0; id < 129; id++) socket.send(`{"jsonrpc":"2.0","id":${id},"method":"wait"}`)
  })
  client(t, `http://127.0.0.1:${(server.address() as { port: number }).port}`).handle('wait', () => new Promise(() => {}))
  await until(() => answers.length === 1)
  t.match(answers, [{ id: 128, error: { code: -32006 } }])
})

t.test('how long to wait follows from the goodbye', async t => {
  const backoff = { first: 1_000, most: 30_000 }
  for (const code of [1000, 4500, 4509, 4999]) t.equal(waitOf(code, '', 0, backoff), undefined)
  t.equal(waitOf(1012, 'retry=8143', 3, backoff), 8_143)
  for (const code of [1001, 1006, 1012, 4000, 4008, 4499, 3000]) {
    for (const [tries, most] of [[0, 1_000], [3, 8_000], [10, 30_000], [5_000, 30_000]] as const) {
      const wait = waitOf(code, 'retry=soon', tries, backoff)!
      t.ok(wait >= 0 && wait <= most)
    }
  }
})

t.test('an address may be relative, where there is a page', async t => {
  const app = await listen(t)
  const global = globalThis as { location?: unknown }
  t.teardown(() => { delete global.location })
  global.location = { href: `${app.url}/page` }
  const device = connectClient('/ws', { deviceId: 'd', ...quick })
  t.teardown(() => device.close())
  t.ok((await device.call('ping')).now)
  await new Promise(resolve => setTimeout(resolve, 5 * quick.first))
  await app.devices.disconnect('d')
  await becomes(device, 'stopped')
})

t.test('without a WebSocket to use, it says so', async t => {
  const global = globalThis as { WebSocket?: unknown }
  const own = global.WebSocket
  t.teardown(() => { global.WebSocket = own })
  global.WebSocket = undefined
  const device = connectClient('http://127.0.0.1:9/ws', { deviceId: 'd', first: 1, most: 1 })
  t.teardown(() => device.close())
  const error = await new Promise(resolve => device.on('error', resolve))
  t.type(error, TypeError)
})
