import { once } from 'node:events'
import { connect as connectTcp, type Socket } from 'node:net'
import { randomBytes } from 'node:crypto'
import t from 'tap'
import type { Session } from '../lib/connection/session.ts'
import { reasonOf } from './fakes.ts'
import { connect, listen, request, until, type TestDevice } from './support.ts'

/** A raw socket that has upgraded, to send what no client would. */
async function upgraded (url: string, deviceId: string, allowHalfOpen = false): Promise<Socket> {
  const socket = connectTcp({ port: Number(new URL(url).port), host: '127.0.0.1', allowHalfOpen })
  socket.on('error', () => {})
  socket.write(`GET /ws?deviceId=${deviceId} HTTP/1.1\r\nHost: localhost\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: ${randomBytes(16).toString('base64')}\r\n\r\n`)
  await once(socket, 'data')
  return socket
}

/** A masked client frame with the given first byte. */
function frame (firstByte: number, payload: Buffer): Buffer {
  const header = payload.length < 126 ? Buffer.from([firstByte, 0x80 | payload.length]) : Buffer.from([firstByte, 0x80 | 126, payload.length >> 8, payload.length & 255])
  return Buffer.concat([header, Buffer.alloc(4), payload])
}

const nested = (depth: number) => '['.repeat(depth) + ']'.repeat(depth)

t.test('a violation of WebSocket ends the connection with the documented code, and no other', async t => {
  const app = await listen(t)
  const control = await connect(app.url, 'control')
  const cases: Array<[string, number, Buffer[]]> = [
    ['invalid UTF-8', 1007, [frame(0x81, Buffer.from([0xff, 0xfe]))]],
    ['unmasked', 1002, [Buffer.from([0x81, 1, 0x61])]],
    ['reserved bits', 1002, [frame(0xf1, Buffer.from('{}'))]],
    ['unknown opcode', 1002, [frame(0x83, Buffer.from('{}'))]],
    ['too large', 1009, [frame(0x01, Buffer.alloc(40_000, 'x')), frame(0x80, Buffer.alloc(40_000, 'x'))]],
    ['too many fragments', 1008, [frame(0x01, Buffer.from('x')), ...Array.from({ length: 64 }, () => frame(0x00, Buffer.from('x')))]]
  ]
  for (const [what, code, frames] of cases) {
    const socket = await upgraded(app.url, 'hostile')
    const left = new Promise<number>(resolve => {
      const listener = (_device: unknown, { code }: { code: number }) => { app.devices.off('disconnected', listener); resolve(code) }
      app.devices.on('disconnected', listener)
    })
    socket.write(Buffer.concat(frames))
    t.equal(await left, code, what)
    socket.destroy()
    t.ok((await control.ask('ping')).result.now)
  }
  t.match(app.devices.stats().closeCodes, { 1002: 3, 1007: 1, 1008: 1, 1009: 1 })
})

t.test('an invalid message is answered with the documented code', async t => {
  const app = await listen(t)
  const device = await connect(app.url, 'd')
  const code = async (text: string, id: string | number | null = null) => {
    device.seen.length = 0
    device.socket.send(text)
    return (await device.answer(id)).error!.code
  }
  t.equal(await code('{'), -32700)
  t.equal(await code('1'), -32600)
  t.equal(await code('[]'), -32600)
  t.equal(await code('[[]]'), -32600)
  t.equal(await code(JSON.stringify(Array.from({ length: 21 }, () => ({ jsonrpc: '2.0', id: 1, method: 'ping' })))), -32600)
  t.equal(await code('{"jsonrpc":"2.0","id":1.5,"method":"ping"}'), -32600)
  t.equal(await code('{"jsonrpc":"2.0","id":{},"method":"ping"}'), -32600)
  t.equal(await code('{"jsonrpc":"1.0","id":7,"method":"ping"}', 7), -32600)
  t.equal(await code('{"jsonrpc":"2.0","id":7,"method":"ping","params":{"__proto__":1}}', 7), -32600)
  t.equal(await code(`{"jsonrpc":"2.0","id":7,"method":"ping","params":${nested(32)}}`, 7), -32600)
  t.equal(await code(`{"jsonrpc":"2.0","id":7,"method":"ping","params":${nested(10_000)}}`, 7), -32600)
  t.equal(await code('{"jsonrpc":"2.0","id":7,"method":"nope"}', 7), -32601)
  t.equal(await code('{"jsonrpc":"2.0","id":"x","method":"publish","params":{}}', 'x'), -32602)
  device.socket.send(Buffer.from('no newline'))
  t.equal((await device.answer(null)).error!.code, -32700)

  device.send({ jsonrpc: '2.0', id: 99, result: 'never asked' })
  device.send({ jsonrpc: '2.0', id: null, error: { code: 1, message: 'never asked' } })
  t.ok((await device.ask('publish', { topic: 'a', data: nested(20) })).result)
  t.match(app.devices.stats().unexpected, { late: 1, refused: 1, malformed: 10, unreadable: 2 })

  device.seen.length = 0
  device.send([{ jsonrpc: '2.0', id: 1, method: 'ping' }, { jsonrpc: '2.0', method: 'ping' }, 1, { jsonrpc: '2.0', id: 2, method: 'nope' }])
  await until(() => device.seen.length === 3)
  t.match(device.seen, [{ id: 1, result: {} }, { id: null, error: { code: -32600 } }, { id: 2, error: { code: -32601 } }])
})

t.test('compression is off by default, whatever a device offers', async t => {
  const app = await listen(t)
  const device = await connect(app.url, 'd', { perMessageDeflate: true })
  t.equal(device.socket.extensions, '')
})

t.test('calls in flight are counted in each direction', async t => {
  const app = await listen(t)
  app.devices.handle('wait', () => new Promise(() => {}))
  const device = await connect(app.url, 'd')
  for (let id = 0; id < 33; id++) device.send({ jsonrpc: '2.0', id, method: 'wait' })
  t.equal((await device.answer(32)).error!.code, -32006)
  t.equal(app.devices.stats().answers.busy, 1)

  const calls = Array.from({ length: 33 }, () => app.devices.call('d', 'never'))
  await t.rejects(calls[32]!, { code: 'CALLS_EXCEEDED', statusCode: 429 })
  device.socket.terminate()
  for (const call of calls.slice(0, 32)) await t.rejects(call, { code: 'DEVICE_DROPPED' })
  t.match(app.devices.stats().calls, { dropped: 32, busy: 1 })
})

t.test('topics are limited in number and length', async t => {
  const app = await listen(t)
  const device = await connect(app.url, 'd')
  const topics = Array.from({ length: 128 }, (_, n) => `t/${n}`)
  t.equal((await device.ask('subscribe', { topics })).result.topics.length, 128)
  t.equal((await device.ask('subscribe', { topics: ['t/0'] })).result.topics.length, 128)
  t.equal((await device.ask('subscribe', { topics: ['one more'] })).error!.code, -32010)
  t.match(await request(app, 'PUT', '/devices/d/topics/one-more'), { status: 429, body: { code: 'TOPICS_EXCEEDED' } })
  const other = await connect(app.url, 'other')
  t.ok((await other.ask('subscribe', { topics: ['x'.repeat(255), 'a/'.repeat(15) + 'a'] })).result)
  for (const topic of ['x'.repeat(256), 'a/'.repeat(16) + 'a', '', '$everyone', 'a\0']) {
    t.equal((await other.ask('subscribe', { topics: [topic] })).error!.code, -32011, topic.slice(0, 10))
  }
})

t.test('letters are limited in number and size', async t => {
  const app = await listen(t)
  for (let n = 0; n < 1_000; n++) await app.devices.send('many', n, { ttl: 60_000 })
  await t.rejects(app.devices.send('many', 1, { ttl: 60_000 }), { code: 'MAILBOX_FULL' })
  for (let n = 0; n < 16; n++) await app.devices.send('large', Buffer.alloc(65_536), { ttl: 60_000 })
  await t.rejects(app.devices.send('large', Buffer.alloc(1), { ttl: 60_000 }), { code: 'MAILBOX_FULL' })
  await t.rejects(app.devices.send('large', 1, { ttl: 604_800_001 }), { code: 'MESSAGE_MALFORMED' })
})

t.test('a device that sends too fast gets errors, and is disconnected if it goes on', async t => {
  const app = await listen(t)
  const device = await connect(app.url, 'flood')
  const other = await connect(app.url, 'other')
  for (let id = 0; id < 600; id++) device.send({ jsonrpc: '2.0', id, method: 'ping' })
  const { code } = await device.closed
  t.equal(code, 4029)
  t.match(await device.answer(0), { result: {} })
  const errors = device.seen.filter(({ error }) => error?.code === -32005)
  t.ok(errors.length >= 150, 'it got many errors before')
  t.ok(app.devices.stats().refusals['too-fast']! > 200)
  t.ok((await other.ask('ping')).result.now)
})

t.test('notices and pings count against the rate as well', async t => {
  const app = await listen(t, { rate: 1, burst: 10 })
  const device = await connect(app.url, 'd')
  for (let n = 0; n < 15; n++) device.notify('message', { data: n })
  t.equal((await device.answer(null)).error!.code, -32005)
  device.send([{ jsonrpc: '2.0', id: 1, result: 1 }, { jsonrpc: '2.0', id: 'x', method: 'ping' }])
  t.equal((await device.answer('x')).error!.code, -32005)
  for (let n = 0; n < 20; n++) device.socket.ping()
  t.equal((await device.closed).code, 4029)
})

t.test('a device that exceeds its rate a little for long is disconnected as well', async t => {
  const app = await listen(t, { rate: 50, burst: 20 })
  const device = await connect(app.url, 'd')
  const sending = setInterval(() => { for (let n = 0; n < 10; n++) device.notify('message', { data: n }) }, 10)
  t.teardown(() => clearInterval(sending))
  t.equal((await device.closed).code, 4029)
})

t.test('expected answers do not count against the rate, unexpected ones do', async t => {
  const app = await listen(t, { rate: 1, burst: 10 })
  for (let n = 0; n < 100; n++) await app.devices.send('d', n, { ttl: 60_000 })
  const device = (await connect(app.url, 'd')).handle('message', () => ({})).handle('add', ({ a }) => a + 1)
  await until(async () => (await app.devices.describe('d')).waiting === 0)
  t.equal(app.devices.stats().letters.delivered, 100)
  for (let a = 0; a < 20; a++) t.equal(await app.devices.call('d', 'add', { a }), a + 1)

  const waiting = app.devices.call('d', 'wait')
  const { id } = await device.next(({ method }) => method === 'wait')
  const late = Array.from({ length: 12 }, () => ({ jsonrpc: '2.0', id: 'never', result: 1 }))
  device.send(late)
  device.send([{ jsonrpc: '2.0', id, result: 'in a batch' }, { jsonrpc: '2.0', id: 'ping', method: 'ping' }])
  t.equal((await device.answer('ping')).error!.code, -32005)
  t.equal(await waiting, 'in a batch')
  device.send(late)
  t.equal((await device.closed).code, 4029)
})

t.test('a device that sends at its rate is never refused', async t => {
  const app = await listen(t, { rate: 1_000, burst: 20 })
  const device = await connect(app.url, 'd')
  for (let n = 0; n < 100; n++) {
    t.ok((await device.ask('ping')).result)
    await new Promise(resolve => setTimeout(resolve, 2))
  }
})

async function deaf (url: string, id: string): Promise<TestDevice> {
  const device = await connect(url, id)
  device.socket.pause()
  return device
}

t.test('a device with too much unread output is disconnected', async t => {
  const app = await listen(t)
  await deaf(app.url, 'deaf')
  const other = await connect(app.url, 'other')
  while (app.devices.has('deaf')) {
    await app.devices.broadcast('x'.repeat(60_000))
    await new Promise(resolve => setImmediate(resolve))
  }
  t.equal((await app.devices.describe('deaf')).lastDisconnect!.code, 4008)
  t.ok((await other.ask('ping')).result.now)
})

t.test('a device whose output makes no progress is disconnected in time', async t => {
  const app = await listen(t, { stallTimeout: 300, maxBuffered: 50_000_000, pingInterval: 60_000 })
  const device = await deaf(app.url, 'deaf')
  const sending = Array.from({ length: 1_000 }, () => app.devices.send('deaf', 'x'.repeat(60_000)))
  t.ok((await Promise.allSettled(sending)).some(({ status }) => status === 'rejected'))
  await until(() => !app.devices.has('deaf'))
  t.equal((await app.devices.describe('deaf')).lastDisconnect!.code, 4008)
  device.socket.resume()
})

t.test('a sender that awaits each message sends no faster than the device reads, and one that does not gets errors', async t => {
  const app = await listen(t, { maxBuffered: 200_000 })
  const device = await deaf(app.url, 'd')
  const sending = Array.from({ length: 2_000 }, (_, n) => app.devices.send('d', `${n} ${'x'.repeat(10_000)}`))
  await t.rejects(sending.at(-1)!, { code: 'DEVICE_CONGESTED', statusCode: 429 })
  app.devices.get('d')!.send('after them')
  device.socket.resume()
  const sent = (await Promise.allSettled(sending)).flatMap(({ status }, n) => status === 'fulfilled' ? [n] : [])
  t.ok(sent.length > 10)
  for (const n of sent) t.equal(Number.parseInt((await device.message()).params.data), n)
  t.equal((await device.message()).params.data, 'after them')

  for (let n = 0; n < 2_000; n++) await app.devices.send('d', 'y'.repeat(10_000))
  t.ok(app.devices.has('d'))
})

t.test('a message too large for the output of a device is refused, and the device stays connected', async t => {
  const app = await listen(t, { maxBuffered: 4_096 })
  const device = await connect(app.url, 'd')
  await t.rejects(app.devices.send('d', 'x'.repeat(4_096)), { code: 'MESSAGE_TOO_LARGE', statusCode: 413 })
  await t.rejects(app.devices.call('d', 'm', { x: 'x'.repeat(4_096) }), { code: 'MESSAGE_TOO_LARGE' })
  app.devices.handle('large', () => 'x'.repeat(4_096))
  t.equal((await device.ask('large')).error!.code, -32603)
  t.ok(app.devices.has('d'))
  await t.rejects(app.devices.send('away', 'x'.repeat(4_096), { ttl: 1_000 }), { code: 'MESSAGE_TOO_LARGE' })
})

t.test('a device that answers no ping is disconnected', async t => {
  const app = await listen(t, { pingInterval: 50, pongTimeout: 100 })
  const alive = await connect(app.url, 'alive')
  const socket = await upgraded(app.url, 'mute')
  await until(() => app.devices.has('mute'))
  await until(() => !app.devices.has('mute'))
  t.equal((await app.devices.describe('mute')).lastDisconnect!.code, 4012)
  t.ok((await alive.ask('ping')).result.now)
  socket.destroy()
})

t.test('a device that has sent a close frame has left, even while its connection lingers', async t => {
  const app = await listen(t)
  const socket = await upgraded(app.url, 'lingering', true)
  await until(() => app.devices.has('lingering'))
  socket.write(frame(0x88, Buffer.alloc(0)))
  await once(socket, 'end')
  await t.rejects(app.devices.send('lingering', 1), { code: 'DEVICE_DROPPED' })
  t.equal(app.devices.size, 0)
  socket.destroy()
})

t.test('a device that closes its side with unread output does not block the process', async t => {
  const app = await listen(t, { closeTimeout: 500 })
  const socket = await upgraded(app.url, 'full', true)
  await until(() => app.devices.has('full'))
  socket.pause()
  const device = app.devices.get('full')!
  const sending = Array.from({ length: 300 }, () => app.devices.send('full', 'x'.repeat(60_000)))
  const settled = Promise.allSettled(sending)
  await t.rejects(sending.at(-1)!, { code: 'DEVICE_CONGESTED' })
  socket.end()
  await new Promise(resolve => setTimeout(resolve, 50))
  await t.rejects(app.devices.send('full', 'one more'), { code: /DEVICE_/ })
  await until(() => device.left !== undefined)
  t.ok((await settled).some(({ status }) => status === 'fulfilled'))
  socket.destroy()
})

t.test('reconnecting does not refill the token bucket', async t => {
  const app = await listen(t, { rate: 1, burst: 10 })
  for (let n = 0; n < 2; n++) {
    const device = await connect(app.url, 'd')
    for (let id = 0; id < 5; id++) t.ok((await device.ask('ping')).result)
    await device.close()
  }
  const third = await connect(app.url, 'd')
  t.equal((await third.ask('ping')).error!.code, -32005)
  await connect(app.url, 'd')
  t.equal((await third.closed).code, 4509)
})

t.test('unsolicited pongs and the size of messages count against the rate', async t => {
  const app = await listen(t, { rate: 1, burst: 10 })
  const pongs = await connect(app.url, 'pongs')
  for (let n = 0; n < 30; n++) pongs.socket.pong()
  t.equal((await pongs.closed).code, 4029)
  const large = await connect(app.url, 'large')
  for (let n = 0; n < 3; n++) t.strictSame((await large.ask('publish', { topic: 'a', data: 'x'.repeat(40_000) })).result, n < 2 ? {} : undefined)
})

t.test('topic filters count against the rate, one token for each 8 of a message', async t => {
  const app = await listen(t, { rate: 1, burst: 20 })
  const filters = Array.from({ length: 128 }, (_, n) => `t/${n}`)
  const few = await connect(app.url, 'few')
  for (const topics of [filters.slice(0, 8), [], filters.slice(8, 16)]) t.ok((await few.ask('subscribe', { topics })).result)
  t.ok((await few.ask('ping')).result)
  for (const method of ['subscribe', 'unsubscribe']) {
    const many = await connect(app.url, method)
    t.ok((await many.ask(method, { topics: filters })).result)
    for (let n = 0; n < 4; n++) t.ok((await many.ask('ping')).result, '16 of 20 tokens were taken')
    t.equal((await many.ask(method, { topics: ['t/0'] })).error!.code, -32005)
  }
})

t.test('a device that sends a large message slowly is not mute', async t => {
  const app = await listen(t, { pingInterval: 50, pongTimeout: 100 })
  const socket = await upgraded(app.url, 'slow')
  await until(() => app.devices.has('slow'))
  const text = JSON.stringify({ jsonrpc: '2.0', id: 1, method: 'ping', params: { x: 'x'.repeat(1_000) } })
  const bytes = frame(0x81, Buffer.from(text))
  const answered = once(socket, 'data')
  for (let at = 0; at < bytes.length; at += 100) {
    socket.write(bytes.subarray(at, at + 100))
    await new Promise(resolve => setTimeout(resolve, 30))
  }
  await answered
  t.ok(app.devices.has('slow'))
  socket.destroy()
})

t.test('a wait for room ends when the device leaves', async t => {
  const app = await listen(t)
  const socket = await upgraded(app.url, 'full')
  socket.pause()
  await until(() => app.devices.has('full'))
  const session = app.devices.get('full') as unknown as Session
  let room: Promise<void> | undefined
  while (!room) {
    await app.devices.send('full', 'x'.repeat(60_000))
    room = session.room()
  }
  const reason = reasonOf(room)
  socket.destroy()
  t.equal(await reason, 'dropped')
  t.equal(session.room(), undefined)
})

t.test('a close that is never answered does not linger', async t => {
  const app = await listen(t, { closeTimeout: 50 })
  const socket = await upgraded(app.url, 'mute')
  await until(() => app.devices.has('mute'))
  await app.devices.disconnect('mute')
  await once(socket, 'close')
  t.equal(app.devices.size, 0)
})
