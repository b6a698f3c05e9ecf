import { once } from 'node:events'
import { connect as connectTcp, type AddressInfo, type Socket } from 'node:net'
import t, { type Test } from 'tap'
import { WebSocket } from 'ws'
import { connect as connectClient } from '../lib/client/index.ts'
import type { Options } from '../lib/index.ts'
import { tcp } from '../lib/transports/tcp/index.ts'
import { connect, introduce, LineSocket, listen, TestDevice, until } from './support.ts'

const atTcp = async (t: Pick<Test, 'teardown'>, options: Options = {}) => {
  const door = tcp({ port: 0 })
  const app = await listen(t, { ...options, transports: [door] })
  const reach = (): Socket => connectTcp((door.address as AddressInfo).port, '127.0.0.1')
  return { app, reach }
}

/** A device that has sent its introduction and answers nothing. */
const mute = (socket: Socket) => {
  const device = new TestDevice(new LineSocket(socket) as unknown as WebSocket)
  device.notify('connect', { deviceId: 'd' })
  return device
}

/** A device whose WebSocket answers no ping by itself, and the payload of the first. */
const unanswering = (url: string) => {
  const socket = new WebSocket(`${url.replace('http', 'ws')}/ws?deviceId=d`, { autoPong: false })
  const pinged = once(socket, 'ping').then(([payload]) => payload as Buffer, () => Buffer.alloc(0))
  return Object.assign(new TestDevice(socket), { pinged })
}

const isPing = ({ method }: { method?: string }) => method === 'ping'

t.test('a handshake that its device has given up takes no device over', async t => {
  const app = await listen(t)
  const older = await connect(app.url, 'd')
  const { generation } = app.devices.get('d')!
  for (const end of ['close', 'terminate'] as const) {
    const gone = unanswering(app.url)
    await gone.pinged
    gone.notify('message', { data: 'said before it left' })
    gone.socket.pong('a pong to nothing')
    gone.socket[end]()
    await gone.closed
    t.strictSame(gone.seen, [])
  }
  t.ok((await older.ask('ping')).result.now, 'the connection it has goes on')
  t.equal(app.devices.get('d')!.generation, generation)
  t.equal(app.devices.size, 1)
})

t.test('a newcomer is asked for a sign of life only where there is an older connection', async t => {
  const app = await listen(t)
  const first = await connect(app.url, 'd', { autoPong: false })
  t.ok((await first.ask('ping')).result.now)
  const second = unanswering(app.url)
  second.socket.pong(await second.pinged)
  await second.next(({ method }) => method === 'welcome')
  t.match(await first.closed, { code: 4509 })
})

t.test('what a newcomer says before it is welcomed comes after that, whole and in order', async t => {
  const app = await listen(t)
  await connect(app.url, 'd')
  const heard: unknown[] = []
  app.devices.on('message', data => heard.push(data))
  const newer = unanswering(app.url)
  const payload = await newer.pinged
  const texts = Array.from({ length: 50 }, (_, at) => `${at} ${'x'.repeat(1_000)}`)
  for (const text of texts) newer.notify('message', { data: text })
  newer.socket.pong(payload)
  await newer.next(({ method }) => method === 'welcome')
  t.equal(newer.seen[0]!.method, 'welcome')
  await until(() => heard.length === texts.length)
  t.strictSame(heard, texts)
})

t.test('a newcomer that never answers is told to come back later', async t => {
  const { app, reach } = await atTcp(t, { admissionTimeout: 200 })
  const older = await connect(app.url, 'd')
  t.match(await unanswering(app.url).closed, { code: 1013 })
  t.match(await mute(reach()).closed, { code: 1013 })
  t.ok((await older.ask('ping')).result.now)
})

t.test('what a newcomer says before it answers is held up to a bound, and keeps it out beyond that', async t => {
  const app = await listen(t, { admissionTimeout: 500 })
  const older = await connect(app.url, 'd')
  const flood = unanswering(app.url)
  const payload = await flood.pinged
  for (let count = 0; count < 100; count++) flood.notify('message', { data: 'x'.repeat(50_000) })
  flood.socket.pong(payload)
  t.match(await flood.closed, { code: 1013 })
  t.ok((await older.ask('ping')).result.now)
})

t.test('over TCP the end of a connection counts, and not what came before it', async t => {
  const { app, reach } = await atTcp(t)
  const older = await introduce(reach(), 'd')
  for (const leave of [(socket: Socket) => socket.end(), (socket: Socket) => socket.resetAndDestroy(), 'goodbye'] as const) {
    const socket = reach()
    const gone = mute(socket)
    gone.notify('message', { data: 'sent with the introduction' })
    await gone.next(isPing)
    if (leave === 'goodbye') gone.socket.close(1000, '')
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

t.test('over TCP any line after the ping is a sign of life, and all lines come in order', async t => {
  const { app, reach } = await atTcp(t)
  const heard: unknown[] = []
  app.devices.on('message', data => heard.push(data))
  const older = await introduce(reach(), 'd')
  for (const answer of ['', JSON.stringify({ jsonrpc: '2.0', method: 'message', params: { data: 2 } })]) {
    const newer = mute(reach())
    newer.notify('message', { data: 1 })
    await newer.next(isPing)
    newer.socket.send(answer)
    await newer.next(({ method }) => method === 'welcome')
  }
  t.match(await older.closed, { code: 4509 })
  await until(() => heard.length === 3)
  t.strictSame(heard, [1, 1, 2])
})

t.test('a client that gives up handshakes is never stopped by one of them', async t => {
  const app = await listen(t)
  const states: string[] = []
  const client = connectClient(app.url.replace('http', 'ws') + '/ws', { deviceId: 'd', WebSocket })
  t.teardown(() => client.close())
  client.on('status', ({ state }) => { states.push(state) })
  await until(() => states.includes('connected'))
  // handshakes of the same device from before, of which nobody wants to know any more
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
