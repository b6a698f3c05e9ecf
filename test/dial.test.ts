import { once } from 'node:events'
import { mkdtempSync } from 'node:fs'
import { connect as connectTcp, createServer, type AddressInfo, type Socket } from 'node:net'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import t, { type Test } from 'tap'
import { WebSocketServer } from 'ws'
import { connect as connectClient, type Client, type ConnectOptions } from '../lib/client/index.ts'
import { tcpSocket, type TcpSocketOptions } from '../lib/client/tcp.ts'
import { jsonrpc, localBackplane, type Codec, type DialConnection, type DialOptions, type DialStatus, type Options } from '../lib/index.ts'
import { tcp } from '../lib/transports/tcp/index.ts'
import { certificate } from './certificates.ts'
import { gate } from './fakes.ts'
import { connect, connectLines, listen, request, until } from './support.ts'

const ca = certificate('ca.pem')
const tls = { key: certificate('server.key'), cert: certificate('server.pem') }
const quick = { minDelay: 10, maxDelay: 50 }
const path = join(mkdtempSync(join(tmpdir(), 'devices-')), 'door.sock')

/** A gateway with a transport of each kind, and their addresses. */
async function gateway (t: Pick<Test, 'teardown'>, options: Options = {}) {
  const [plain, secure] = [tcp({ port: 0 }), tcp({ port: 0, tls })]
  const app = await listen(t, { ...options, transports: [plain, secure] })
  const sockets = new Set<Socket>()
  app.server.on('connection', socket => sockets.add(socket))
  const portOf = (door: { address: unknown }) => (door.address as AddressInfo).port
  return {
    app,
    ws: `${app.url.replace('http', 'ws')}/ws`,
    tcp: `tcp://127.0.0.1:${portOf(plain)}`,
    tls: `tcp://127.0.0.1:${portOf(secure)}`,
    cut () { for (const socket of sockets) socket.resetAndDestroy() }
  }
}

async function becomes (dialled: DialConnection, state: DialStatus['state']): Promise<DialStatus> {
  await until(() => dialled.status.state === state)
  return dialled.status
}

t.test('two gateways are bridged: what is asked of the one is answered by the other, over whichever transport', async t => {
  const b = await gateway(t, { authenticate: ({ deviceId, token }) => deviceId === 'gateway-a' && token === 'secret', authorizeTopic: () => true })
  b.app.devices.handle('sum', (params, { device }) => ({ sum: (params as number[]).reduce((x, y) => x + y), asked: device.id }))
  for (const [url, more] of [[b.ws, {}], [b.tcp, {}], [b.tls, { tls: { ca } }]] as Array<[string, object]>) {
    const a = await listen(t)
    const heard: unknown[] = []
    a.devices.on('message', (data, device) => { heard.push([device.id, data]) })
    const dialled = a.devices.dial(url, { deviceId: 'gateway-b', as: 'gateway-a', token: () => 'secret', ...quick, ...more })
    await becomes(dialled, 'connected')
    t.match(await request(a, 'POST', '/devices/gateway-b/calls/sum', [1, 2, 3]), { status: 200, body: { sum: 6, asked: 'gateway-a' } }, url)
    t.match(await request(a, 'GET', '/devices/gateway-b'), { body: { connected: true, address: '127.0.0.1', generation: Number } })
    a.devices.handle('name', () => 'a')
    t.equal(await b.app.devices.call('gateway-a', 'name'), 'a')
    t.match(await b.app.devices.send('gateway-a', { n: 1 }, { ttl: 60_000, confirm: true }), { status: 'delivered' })
    await b.app.devices.send('gateway-a', Buffer.from('bytes'))
    await until(() => heard.length === 2)
    const [first, second] = heard as [unknown, [string, Uint8Array]]
    t.strictSame(first, ['gateway-b', { n: 1 }])
    t.strictSame([second[0], Buffer.from(second[1]).toString()], ['gateway-b', 'bytes'])
    t.match(await a.devices.send('gateway-b', Buffer.from('back')), { status: 'sent' })
    dialled.close()
    t.match(await becomes(dialled, 'stopped'), { code: 1000 })
    await until(() => b.app.devices.size === 0)
    t.match(await b.app.devices.describe('gateway-a'), { lastDisconnect: { code: 1000 } })
    t.equal(a.devices.size, 0)
    t.strictSame(a.devices.stats().unexpected, {})
  }
})

t.test('a dialled connection is ready with its first connection, and never if it stops before', async t => {
  const [a, b] = [await listen(t), await gateway(t, { authenticate: ({ deviceId }) => deviceId === 'a' })]
  b.app.devices.handle('sum', ({ a, b }: any) => a + b)
  const dialled = a.devices.dial(b.ws, { deviceId: 'b', as: 'a', ...quick })
  await dialled.ready
  t.equal(await a.devices.call('b', 'sum', { a: 1, b: 2 }), 3)
  b.cut()
  await becomes(dialled, 'waiting')
  await dialled.ready
  dialled.close()
  await dialled.ready
  await t.rejects(a.devices.dial(b.tcp, { deviceId: 'c', as: 'stranger', ...quick }).ready, { reason: 'dropped', message: /4501/ })
  const stopped = a.devices.dial('ws://127.0.0.1:1', { deviceId: 'd', ...quick })
  stopped.close()
  await t.rejects(stopped.ready, { code: 'DEVICE_DROPPED', message: /stopped/ })
})

t.test('a codec that throws anything ends the connection, and no more', async t => {
  const [a, b] = [await listen(t), await gateway(t)]
  for (const [at, thrown] of [{ code: 1000, reason: Symbol('odd') }, { code: 4501, reason: { toString () { throw new Error('odd') } } }].entries()) {
    const codec: Codec = { ...jsonrpc(), subprotocol: 'odd', encode () { throw thrown } } // eslint-disable-line
    const dialled = a.devices.dial(b.tcp, { deviceId: `b${at}`, as: 'a', codec, ...quick })
    await t.rejects(dialled.ready, { code: 'DEVICE_DROPPED' })
    t.equal(dialled.status.state, 'stopped')
  }
})

t.test('a cut heals, and letters wait for that', async t => {
  const [a, b] = [await listen(t), await gateway(t)]
  const seen: unknown[] = []
  b.app.devices.on('message', data => { seen.push(data) })
  const dialled = a.devices.dial(b.ws, { deviceId: 'gateway-b', as: 'gateway-a', ...quick })
  await becomes(dialled, 'connected')
  const generation = a.devices.get('gateway-b')!.generation
  b.cut()
  await until(() => !a.devices.has('gateway-b'))
  await a.devices.send('gateway-b', 'kept', { ttl: 60_000 })
  await until(() => seen.length === 1)
  t.ok(a.devices.get('gateway-b')!.generation > generation)
  t.strictSame(seen, ['kept'])
})

t.test('it does not come back once it is told not to, replaced, or not let in', async t => {
  const [a, b] = [await listen(t), await gateway(t, { authenticate: ({ deviceId }) => deviceId !== 'stranger', authorizeTopic: () => true })]
  const to = (url: string, options: Partial<DialOptions> = {}) => a.devices.dial(url, { deviceId: 'b', as: 'a', ...quick, ...options })
  const removed = to(b.ws)
  await becomes(removed, 'connected')
  await b.app.devices.disconnect('a')
  t.match(await becomes(removed, 'stopped'), { code: 4511, reason: 'removed through REST' })
  const overTcp = to(b.tcp)
  await becomes(overTcp, 'connected')
  await b.app.devices.disconnect('a')
  t.match(await becomes(overTcp, 'stopped'), { code: 4511, reason: 'removed through REST' })
  const replaced = to(b.ws)
  await becomes(replaced, 'connected')
  const device = await connect(a.url, 'b')
  t.match(await becomes(replaced, 'stopped'), { code: 4509 })
  await device.close()
  t.match(await becomes(to(b.tcp, { as: 'stranger' }), 'stopped'), { code: 4501 })
  const refused = to(b.ws, { as: 'stranger' })
  t.match(await becomes(refused, 'waiting'), { code: 1006, reason: /401/, retryIn: Number })
  refused.close()
  t.match(refused.status, { state: 'stopped' })
})

t.test('a connection whose codec has no close notice ends all the same', async t => {
  const b = await gateway(t)
  const a = await listen(t)
  const lines = jsonrpc({ bytes: 'base64' })
  const codec: Codec = {
    ...lines,
    encode (message) {
      if ('method' in message && message.method === 'close') throw undefined // eslint-disable-line
      return lines.encode(message)
    }
  }
  const dialled = a.devices.dial(b.tcp, { deviceId: 'b', as: 'a', codec })
  await becomes(dialled, 'connected')
  await a.devices.disconnect('b')
  t.match(await becomes(dialled, 'stopped'), { code: 4511 })
  await until(() => !b.app.devices.has('a'))
})

t.test('a device that says to come back at once, again and again, is dialled ever more rarely', async t => {
  t.intercept(Math, 'random', { value: () => 0.5 })
  const waits: unknown[] = []
  const stream = { write (line: string) { waits.push(JSON.parse(line).retryIn) } }
  const a = await listen(t, {}, { logger: { level: 'info', stream }, disableRequestLogging: true })
  const device = new WebSocketServer({ port: 0, host: '127.0.0.1' })
  t.teardown(() => device.close())
  await once(device, 'listening')
  device.on('connection', socket => socket.close(1012, 'retry=0'))
  a.devices.dial(`ws://127.0.0.1:${(device.address() as AddressInfo).port}`, { deviceId: 'b', minDelay: 100, maxDelay: 500 })
  const told = () => waits.filter(wait => wait !== undefined)
  await until(() => told().length >= 5)
  t.strictSame(told().slice(0, 5), [50, 100, 200, 250, 250])
})

t.test('a server that cannot be reached is retried until the connection is closed', async t => {
  const a = await listen(t, { admissionTimeout: 50 })
  for (const url of ['ws://127.0.0.1:9', 'tcp://127.0.0.1:9', 'unix:/nowhere/at/all']) {
    const dialled = a.devices.dial(url, { deviceId: 'b', ...quick })
    t.match(await becomes(dialled, 'waiting'), { code: 1006, reason: /ECONN|ENOENT/ })
    t.equal(dialled.deviceId, 'b')
    await becomes(dialled, 'connecting')
    dialled.close()
    await becomes(dialled, 'stopped')
  }
  const tokenless = a.devices.dial('tcp://127.0.0.1:9', { deviceId: 'b', token: async () => { throw new Error('no token') }, ...quick })
  t.match(await becomes(tokenless, 'waiting'), { reason: 'no token' })
  tokenless.close()
  const asking = a.devices.dial('tcp://127.0.0.1:9', { deviceId: 'b', token: () => new Promise(resolve => setTimeout(resolve, 20, 'late')), ...quick })
  asking.close()
  await becomes(asking, 'stopped')
  t.throws(() => a.devices.dial('ftp://x', { deviceId: 'b' }), /ws: wss: tcp: unix:/)
  t.throws(() => a.devices.dial('ws://x', { deviceId: 'a b' }), { code: 'ID_INVALID' })
  t.throws(() => a.devices.dial('tcp://x', { deviceId: 'b' }), { message: /no port/ })
  t.throws(() => a.devices.dial('ws://x', { deviceId: 'b', fist: 1 } as DialOptions), { message: /dial\(\) has no option "fist"/ })
  for (const wrong of [{ minDelay: 0 }, { maxDelay: 1e12 }, { token: 7 }] as object[]) {
    t.throws(() => a.devices.dial('ws://x', { deviceId: 'b', ...wrong }), { message: /dial\(\): the option "\w+" is wrong/ })
  }
})

t.test('a server that is silent or sends nonsense is given up in time', async t => {
  const a = await listen(t, { admissionTimeout: 50 })
  const server = createServer({ allowHalfOpen: true }, socket => {
    socket.on('error', () => {}).once('data', () => socket.write('[]\n'))
  })
  t.teardown(() => server.close())
  await once(server.listen(0, '127.0.0.1'), 'listening')
  const { port } = server.address() as AddressInfo
  const dialled = a.devices.dial(`tcp://127.0.0.1:${port}`, { deviceId: 'b', as: 'a', ...quick })
  await becomes(dialled, 'waiting')
  dialled.close()
  let ends = 0
  const ending = createServer({ allowHalfOpen: true }, socket => { ends++; socket.on('error', () => {}).end() })
  t.teardown(() => ending.close())
  await once(ending.listen(0, '127.0.0.1'), 'listening')
  const ended = a.devices.dial(`tcp://127.0.0.1:${(ending.address() as AddressInfo).port}`, { deviceId: 'b', as: 'a', ...quick })
  await until(() => ends > 1)
  ended.close()
  const mute = a.devices.dial(`ws://127.0.0.1:${port}`, { deviceId: 'b', ...quick })
  await becomes(mute, 'waiting')
  mute.close()
  t.equal(a.devices.size, 0)
})

t.test('a server that takes its time is left, though it says something, and so is a token that never comes', async t => {
  const a = await listen(t, { admissionTimeout: 300 })
  const talking = createServer(socket => {
    const dripping = setInterval(() => socket.write(' \n'), 10)
    socket.on('error', () => {}).on('close', () => clearInterval(dripping)).resume()
  })
  const heading = createServer(socket => {
    socket.write('HTTP/1.1 101 Switching Protocols\r\nwhatever: ')
    const dripping = setInterval(() => socket.write('a'), 10)
    socket.on('error', () => {}).on('close', () => clearInterval(dripping)).resume()
  })
  for (const server of [talking, heading]) {
    t.teardown(() => server.close())
    await once(server.listen(0, '127.0.0.1'), 'listening')
  }
  const at = (server: typeof talking) => `127.0.0.1:${(server.address() as AddressInfo).port}`
  const slow = { deviceId: 'b', as: 'a', minDelay: 60_000, maxDelay: 60_000 }
  for (const dialled of [
    a.devices.dial(`tcp://${at(talking)}`, slow),
    a.devices.dial(`ws://${at(heading)}`, slow),
    a.devices.dial(`tcp://${at(talking)}`, { ...slow, token: () => new Promise(() => {}) })
  ]) {
    t.match(await becomes(dialled, 'waiting'), { code: 1006, reason: 'No answer in time' })
    dialled.close()
  }
})

t.test('messages that a device sends at once are handled after its registration', async t => {
  const backplane = localBackplane()
  const door = gate()
  const a = await listen(t, { backplane: { ...backplane, own: async (...owned) => { await door.opened; return await backplane.own(...owned) } } })
  a.devices.handle('known', (_params, { device }) => ({ known: a.devices.has(device.id), generation: device.generation }))
  const answers: unknown[] = []
  const server = createServer(socket => {
    socket.on('error', () => {}).on('data', chunk => {
      for (const line of chunk.toString().trim().split('\n')) answers.push(JSON.parse(line))
    })
    socket.write('{"jsonrpc":"2.0","id":1,"method":"known"}\n', () => setTimeout(() => door.open(), 20))
  })
  t.teardown(() => server.close())
  await once(server.listen(0, '127.0.0.1'), 'listening')
  a.devices.dial(`tcp://127.0.0.1:${(server.address() as AddressInfo).port}`, { deviceId: 'plc', ...quick })
  await until(() => answers.length === 2)
  t.match(answers, [{ method: 'welcome' }, { id: 1, result: { known: true, generation: Number } }])
})

t.test('a server that breaks TLS is left', async t => {
  const [a, b] = [await listen(t, { pingInterval: 600_000 }), await gateway(t)]
  let other: Socket
  const between = createServer(socket => {
    other = socket.on('error', () => {})
    const onwards = connectTcp(Number(new URL(b.tls).port), '127.0.0.1').on('error', () => {})
    socket.pipe(onwards).pipe(socket)
  })
  t.teardown(() => between.close())
  await once(between.listen(0, '127.0.0.1'), 'listening')
  const dialled = a.devices.dial(`tcp://127.0.0.1:${(between.address() as AddressInfo).port}`, { deviceId: 'b', as: 'a', tls: { ca }, minDelay: 60_000, maxDelay: 60_000 })
  await becomes(dialled, 'connected')
  other!.write('what is no record of TLS')
  t.match(await becomes(dialled, 'waiting'), { code: 1006 })
})

t.test('a device that listens need not be introduced to', async t => {
  const a = await listen(t)
  const server = createServer(socket => {
    socket.on('error', () => {}).on('data', chunk => {
      for (const line of chunk.toString().trim().split('\n')) {
        const { id, method } = JSON.parse(line)
        if (id !== undefined) socket.write(`{"jsonrpc":"2.0","id":${JSON.stringify(id)},"result":"${method}"}\n`)
      }
    })
  })
  t.teardown(() => server.close())
  await once(server.listen(0, '127.0.0.1'), 'listening')
  a.devices.dial(`tcp://127.0.0.1:${(server.address() as AddressInfo).port}`, { deviceId: 'plc', ...quick })
  await until(() => a.devices.has('plc'))
  t.equal(await a.devices.call('plc', 'read'), 'read')

  const web = new WebSocketServer({ port: 0, host: '127.0.0.1' })
  t.teardown(() => { for (const socket of web.clients) socket.terminate(); web.close() })
  await once(web, 'listening')
  let asked = ''
  web.on('connection', (socket, { url }) => {
    asked = url!
    socket.on('message', data => { const { id } = JSON.parse(String(data)); if (id !== undefined) socket.send(JSON.stringify({ jsonrpc: '2.0', id, result: 'web' })) })
  })
  const address = `ws://127.0.0.1:${(web.address() as AddressInfo).port}/listening`
  a.devices.dial(address, { deviceId: 'web', ...quick })
  await until(() => a.devices.has('web'))
  t.equal(await a.devices.call('web', 'read'), 'web')
  t.equal(asked, '/listening')
})

t.test('an application that closes ends its dialled connections, and dials no more', async t => {
  const [a, b] = [await listen(t, { drainTimeout: 500, closeTimeout: 60_000 }), await gateway(t)]
  const server = createServer({ allowHalfOpen: true }, socket => { socket.on('error', () => {}).resume() })
  t.teardown(() => server.close())
  await once(server.listen(0, '127.0.0.1'), 'listening')
  const lingering = a.devices.dial(`tcp://127.0.0.1:${(server.address() as AddressInfo).port}`, { deviceId: 'c' })
  const [connected, waiting] = [a.devices.dial(b.ws, { deviceId: 'b', as: 'a' }), a.devices.dial('tcp://127.0.0.1:9', { deviceId: 'd', minDelay: 60_000 })]
  const web = new WebSocketServer({ port: 0, host: '127.0.0.1' })
  t.teardown(() => { for (const socket of web.clients) socket.terminate(); web.close() })
  await once(web, 'listening')
  web.on('connection', socket => socket.pause())
  const deaf = a.devices.dial(`ws://127.0.0.1:${(web.address() as AddressInfo).port}`, { deviceId: 'f' })
  await becomes(lingering, 'connected')
  await becomes(deaf, 'connected')
  await becomes(connected, 'connected')
  await becomes(waiting, 'waiting')
  const connecting = a.devices.dial('tcp://127.0.0.1:9', { deviceId: 'e', token: () => new Promise(() => {}) })
  const closing = a.close()
  await closing
  t.match([connected.status, waiting.status], [{ state: 'stopped', code: 1012 }, { state: 'stopped' }])
  await becomes(lingering, 'stopped')
  await becomes(deaf, 'stopped')
  t.match(await b.app.devices.describe('a'), { lastDisconnect: { code: 1012 } })
  t.throws(() => a.devices.dial(b.ws, { deviceId: 'f' }), { code: 'NODE_DRAINING' })
  t.strictSame(connecting.status, { state: 'stopped' }, 'a token that never comes holds nothing up')
})

function client (t: Pick<Test, 'teardown'>, url: string, options: Partial<ConnectOptions> = {}, own: TcpSocketOptions = {}): Client {
  const client = connectClient(url, { deviceId: 'd', ...quick, WebSocket: tcpSocket(own), ...options })
  t.teardown(() => client.close())
  return client
}

t.test('the client goes over TCP, TLS and Unix sockets as it does over WebSocket', async t => {
  const b = await gateway(t, { authenticate: ({ token }) => token === 'any ö token', authorizeTopic: () => true })
  const here = tcp({ path })
  await listen(t, { transports: [here] })
  for (const [url, options, own] of [[b.tcp, { token: 'any ö token' }, {}], [b.tls.replace('127.0.0.1', 'localhost'), { token: () => 'any ö token' }, { tls: { ca } }]] as Array<[string, object, TcpSocketOptions]>) {
    b.app.devices.on('connected', device => { device.send('hello') })
    const device = client(t, url, options, own).handle('bytes', params => ({ data: params.data.toReversed() }))
    const seen: unknown[] = []
    device.on('message', ({ data }) => { seen.push(data) })
    t.ok((await device.call('ping')).now)
    t.strictSame(Buffer.from((await b.app.devices.call('d', 'bytes', { data: Buffer.from([1, 2, 255]) }) as { data: Buffer }).data), Buffer.from([255, 2, 1]))
    t.match(await b.app.devices.send('d', { note: 'has "base64" in it' }, { ttl: 60_000, confirm: true }), { status: 'delivered' })
    t.match(await b.app.devices.send('d', { base64: 'AAH/', note: 1 }, { ttl: 60_000, confirm: true }), { status: 'delivered' })
    t.match(seen.slice(-2), [{ note: 'has "base64" in it' }, { note: 1 }])
    await b.app.devices.disconnect('d')
    await until(() => device.status.state === 'stopped')
    t.match(device.status, { code: 4511, reason: 'removed through REST' })
  }
  const local = client(t, `unix:${path}`)
  t.ok((await local.call('ping')).now)
  local.close()
})

t.test('the client over TCP reconnects, sends a close notice, and accepts no endless line', async t => {
  const b = await gateway(t)
  const device = client(t, b.tcp)
  t.ok((await device.call('ping')).now)
  device.close()
  await until(() => !b.app.devices.has('d'))
  t.match(await b.app.devices.describe('d'), { lastDisconnect: { code: 1000 } })
  let connections = 0
  const server = createServer(socket => {
    connections++
    socket.on('error', () => {}).write('x'.repeat(2_000))
  })
  t.teardown(() => server.close())
  await once(server.listen(0, '127.0.0.1'), 'listening')
  const short = client(t, `tcp://127.0.0.1:${(server.address() as AddressInfo).port}`, {}, { maxMessage: 1_000 })
  await until(() => connections > 1)
  short.close()
  const other = await connectLines(connectTcp(Number(new URL(b.tcp).port), '127.0.0.1'), 'other')
  await other.close()
})
