import { once } from 'node:events'
import { connect as connectTcp, type AddressInfo, type Socket } from 'node:net'
import t, { type Test } from 'tap'
import { WebSocket } from 'ws'
import { connect as connectClient } from '../lib/client/index.ts'
import type { Socket as GatewaySocket } from '../lib/connection/session-host.ts'
import { jsonrpc, localBackplane, type Backplane, type Gateway, type Options, type Owner } from '../lib/index.ts'
import { tcp } from '../lib/transports/tcp/index.ts'
import { reasonOf } from './fakes.ts'
import { connect, connectLines, LineSocket, listen, TestDevice, until } from './support.ts'

const listenWithTcp = async (t: Pick<Test, 'teardown'>, options: Options = {}) => {
  const transport = tcp({ port: 0 })
  const app = await listen(t, { ...options, transports: [transport] })
  const dial = (): Socket => connectTcp((transport.address as AddressInfo).port, '127.0.0.1')
  return { app, dial }
}

/** A device that has sent `connect` and answers nothing. */
const connectMute = (socket: Socket) => {
  const device = new TestDevice(new LineSocket(socket) as unknown as WebSocket)
  device.notify('connect', { deviceId: 'd' })
  return device
}

/** A device that answers no ping; `pinged` resolves with the payload of the first. */
const connectWithoutPong = (url: string) => {
  const socket = new WebSocket(`${url.replace('http', 'ws')}/ws?deviceId=d`, { autoPong: false })
  const pinged = once(socket, 'ping').then(([payload]) => payload as Buffer, () => Buffer.alloc(0))
  return Object.assign(new TestDevice(socket), { pinged })
}

const isPing = ({ method }: { method?: string }) => method === 'ping'

t.test('a handshake that its device has given up does not replace the connection', async t => {
  const app = await listen(t)
  const older = await connect(app.url, 'd')
  const { generation } = app.devices.get('d')!
  for (const end of ['close', 'terminate'] as const) {
    const gone = connectWithoutPong(app.url)
    await gone.pinged
    gone.notify('message', { data: 'sent before it left' })
    gone.socket.pong('an unsolicited pong')
    gone.socket[end]()
    await gone.closed
    t.strictSame(gone.seen, [])
  }
  t.ok((await older.ask('ping')).result.now, 'the older connection goes on')
  t.equal(app.devices.get('d')!.generation, generation)
  t.equal(app.devices.size, 1)
})

t.test('a new connection is probed only if there is an older one', async t => {
  const app = await listen(t)
  const first = await connect(app.url, 'd', { autoPong: false })
  t.ok((await first.ask('ping')).result.now)
  const second = connectWithoutPong(app.url)
  second.socket.pong(await second.pinged)
  await second.next(({ method }) => method === 'welcome')
  t.match(await first.closed, { code: 4509 })
})

t.test('a device that has left is not alive, one on a socket that cannot probe is', async t => {
  const shared = localBackplane()
  const owners: Owner[] = []
  const backplane: Backplane = {
    ...shared,
    async own (deviceId, owner) {
      owners.push(owner)
      return await shared.own(deviceId, owner)
    }
  }
  let gateway: Gateway
  const app = await listen(t, { backplane, transports: [{ async open (context) { ({ gateway } = context) }, async close () {} }] })
  const device = await connect(app.url, 'd')
  await device.close()
  await until(() => app.devices.size === 0)
  t.equal(await reasonOf(owners[0]!.confirmAlive!()), 'departed')

  const socket: GatewaySocket = { isOpen: true, sent: 0, buffered: 0, send () {}, onDrain () {}, close () {} }
  const session = gateway!.open({ deviceId: 'e', address: undefined, localAddress: undefined, credentials: {}, codec: jsonrpc() }, socket)
  await gateway!.enter(session)
  t.equal(await owners[1]!.confirmAlive!(), undefined)
  session.end('removed')
})

t.test('messages sent before the welcome are received after it, complete and in order', async t => {
  const app = await listen(t)
  await connect(app.url, 'd')
  const received: unknown[] = []
  app.devices.on('message', data => received.push(data))
  const newer = connectWithoutPong(app.url)
  const payload = await newer.pinged
  const texts = Array.from({ length: 50 }, (_, at) => `${at} ${'x'.repeat(1_000)}`)
  for (const text of texts) newer.notify('message', { data: text })
  newer.socket.pong(payload)
  await newer.next(({ method }) => method === 'welcome')
  t.equal(newer.seen[0]!.method, 'welcome')
  await until(() => received.length === texts.length)
  t.strictSame(received, texts)
})

t.test('a new connection that never answers the probe is closed, and may retry later', async t => {
  const { app, dial } = await listenWithTcp(t, { admissionTimeout: 200 })
  const older = await connect(app.url, 'd')
  t.match(await connectWithoutPong(app.url).closed, { code: 1013 })
  t.match(await connectMute(dial()).closed, { code: 1013 })
  t.ok((await older.ask('ping')).result.now)
})

t.test('messages sent before the answer to the probe are kept up to a limit, and beyond it the connection is refused', async t => {
  const app = await listen(t, { admissionTimeout: 500 })
  const older = await connect(app.url, 'd')
  const flood = connectWithoutPong(app.url)
  const payload = await flood.pinged
  for (let count = 0; count < 100; count++) flood.notify('message', { data: 'x'.repeat(50_000) })
  flood.socket.pong(payload)
  t.match(await flood.closed, { code: 1013 })
  t.ok((await older.ask('ping')).result.now)
})

t.test('over TCP a connection that ends during the probe takes nothing over, whatever it sent before', async t => {
  const { app, dial } = await listenWithTcp(t)
  const older = await connectLines(dial(), 'd')
  for (const leave of [(socket: Socket) => socket.end(), (socket: Socket) => socket.resetAndDestroy(), 'close'] as const) {
    const socket = dial()
    const gone = connectMute(socket)
    gone.notify('message', { data: 'sent with connect' })
    await gone.next(isPing)
    if (leave === 'close') gone.socket.close(1000, '')
    else {
      gone.notify('message', { data: 'sent after it' })
      leave(socket)
    }
    await gone.closed
    t.notOk(gone.seen.some(({ method }) => method === 'welcome'))
  }
  t.ok((await older.ask('ping')).result.now)
  t.equal(app.devices.size, 1)
})

t.test('over TCP any line after the ping proves life, and all lines arrive in order', async t => {
  const { app, dial } = await listenWithTcp(t)
  const received: unknown[] = []
  app.devices.on('message', data => received.push(data))
  const older = await connectLines(dial(), 'd')
  for (const answer of ['', JSON.stringify({ jsonrpc: '2.0', method: 'message', params: { data: 2 } })]) {
    const newer = connectMute(dial())
    newer.notify('message', { data: 1 })
    await newer.next(isPing)
    newer.socket.send(answer)
    await newer.next(({ method }) => method === 'welcome')
  }
  t.match(await older.closed, { code: 4509 })
  await until(() => received.length === 3)
  t.strictSame(received, [1, 1, 2])
})

t.test('a client is not stopped by handshakes that it gave up', async t => {
  const app = await listen(t)
  const states: string[] = []
  const client = connectClient(app.url.replace('http', 'ws') + '/ws', { deviceId: 'd', WebSocket })
  t.teardown(() => client.close())
  client.on('status', ({ state }) => { states.push(state) })
  await until(() => states.includes('connected'))
  // earlier handshakes of the same device, given up
  const raw = Array.from({ length: 20 }, () => {
    const socket = connectTcp(Number(new URL(app.url).port), '127.0.0.1')
    socket.write('GET /ws?deviceId=d HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n')
    socket.end()
    return socket.resume()
  })
  await Promise.all(raw.map(socket => once(socket, 'close')))
  t.ok((await client.call('ping') as { now: number }).now)
  t.strictSame(states.filter(state => state === 'stopped'), [])
  t.equal(client.status.state, 'connected')
})
