import { randomBytes } from 'node:crypto'
import { mkdtempSync } from 'node:fs'
import { connect as connectTcp, type AddressInfo, type Socket } from 'node:net'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { connect as connectTls } from 'node:tls'
import t from 'tap'
import { tcp, type TcpTransport, type TcpOptions } from '../lib/transports/tcp/index.ts'
import { certificate } from './certificates.ts'
import { transportContract, type TransportFixture } from './contracts/transport.ts'
import { fakeLog } from './fakes.ts'
import { connect, connectLines, listen, refusal, request, until, type TestDevice } from './support.ts'

const serverCertificate = { key: certificate('server.key'), cert: certificate('server.pem') }
const ca = certificate('ca.pem')
const folder = mkdtempSync(join(tmpdir(), 'devices-'))
let sockets = 0

const portOf = (transport: TcpTransport) => (transport.address as AddressInfo).port

/** A fixture for a transport that `tcp()` returns. */
function tcpFixture (optionsOf: () => TcpOptions, dial: (transport: TcpTransport) => Socket, address: string | undefined): TransportFixture {
  const transports = new WeakMap<object, TcpTransport>()
  return {
    async serve (t, options) {
      const transport = tcp(optionsOf())
      const app = Object.assign(await listen(t, { ...options, transports: [transport] }), { address })
      transports.set(app, transport)
      return app
    },
    connect: (served, deviceId) => connectLines(dial(transports.get(served)!), deviceId)
  }
}

transportContract(t, 'a WebSocket', {
  serve: async (t, options) => Object.assign(await listen(t, options), { address: '127.0.0.1' }),
  connect: (served, deviceId) => connect(served.url, deviceId)
})

transportContract(t, 'TCP', tcpFixture(() => ({ port: 0 }), transport => connectTcp(portOf(transport), '127.0.0.1'), '127.0.0.1'))

transportContract(t, 'a Unix socket', tcpFixture(() => ({ path: join(folder, `${++sockets}.sock`) }), transport => connectTcp(transport.address as string), undefined))

transportContract(t, 'TLS', tcpFixture(() => ({ port: 0, tls: serverCertificate }), transport => connectTls({ port: portOf(transport), host: '127.0.0.1', ca }), '127.0.0.1'))

t.test('a broadcast that is too large for one protocol reaches the devices of the others', async t => {
  const transport = tcp({ port: 0 })
  const log = fakeLog()
  const app = await listen(t, { transports: [transport], maxBuffered: 65_536 }, { loggerInstance: log })
  const one = await connect(app.url, 'one')
  await connectLines(connectTcp(portOf(transport), '127.0.0.1'), 'line')
  const two = await connect(app.url, 'two')
  t.match(await app.devices.broadcast(Buffer.alloc(60_000)), { sent: 2 })
  for (const device of [one, two]) t.equal((await device.message()).data!.length, 60_000)
  t.equal(log.lines.filter(({ words }) => words === 'broadcast not encoded for all codecs').length, 1)
  await t.rejects(app.devices.broadcast(Buffer.alloc(70_000)), { code: 'MESSAGE_TOO_LARGE' })
})

/** Bytes that a device has received on the wire. */
const bytesReadBy = (device: TestDevice) => (device.socket as unknown as { _socket: Socket })._socket.bytesRead

t.test('large messages are compressed for devices that negotiated it, once for all, and arrive unchanged', async t => {
  const app = await listen(t, { compression: { threshold: 1_024 } })
  const text = 'the same again and again '.repeat(1_000)
  const [one, two] = [await connect(app.url, 'one', { perMessageDeflate: true }), await connect(app.url, 'two', { perMessageDeflate: true })]
  const plain = await connect(app.url, 'plain', { perMessageDeflate: false })
  const narrow = await connect(app.url, 'narrow', { perMessageDeflate: { serverMaxWindowBits: 9 } })
  t.match(one.socket.extensions, 'permessage-deflate')
  t.equal(plain.socket.extensions, '')
  for (let round = 0; round < 3; round++) {
    await app.devices.broadcast(text)
    for (const device of [one, two, plain, narrow]) t.equal((await device.message()).params.data, text)
  }
  for (const device of [one, two]) t.ok(bytesReadBy(device) < 10_000, 'much less than uncompressed')
  for (const device of [plain, narrow]) t.ok(bytesReadBy(device) > 75_000)
  const noise = randomBytes(10_000)
  for (const data of [noise, Buffer.from(text)]) {
    await app.devices.send('one', data)
    t.strictSame((await one.message()).data, data)
  }
  await app.devices.send('one', 'short')
  t.equal((await one.message()).params.data, 'short')
  app.devices.handle('length', params => (params as { text: string }).text.length)
  t.equal((await one.ask('length', { text })).result, text.length)
})

t.test('compressed input is inflated up to the maximum size of a message', async t => {
  const app = await listen(t, { compression: { threshold: 0 } })
  const bomb = await connect(app.url, 'bomb', { perMessageDeflate: { threshold: 0 } })
  bomb.notify('message', { data: '0'.repeat(5_000_000) })
  await until(() => !app.devices.has('bomb'))
  t.equal((await app.devices.describe('bomb')).lastDisconnect!.code, 1009)
  t.ok(app.devices.stats().bytes.in < 65_536)
})

t.test('input that cannot be inflated ends the connection with its own reason', async t => {
  const app = await listen(t, { compression: { threshold: 0 } })
  const device = await connect(app.url, 'd', { perMessageDeflate: true })
  const { _socket: raw } = device.socket as unknown as { _socket: Socket }
  raw.write(Buffer.from([0xc1, 0x84, 0, 0, 0, 0, 0xff, 0xff, 0xff, 0xff])) // an unfragmented message, compressed and masked
  t.equal((await device.closed).code, 1007)
  t.match(await app.devices.describe('d'), { lastDisconnect: { code: 1007, reason: 'sent what cannot be inflated' } })
})

t.test('origins may be a function', async t => {
  const app = await listen(t, { authenticate: false, guard: false, origins: origin => origin.endsWith('.example') })
  await connect(app.url, 'a', { headers: { origin: 'https://shop.example' } })
  await connect(app.url, 'b', { headers: { origin: app.url } })
  t.match(await refusal(app.url, '/ws?deviceId=d', { headers: { origin: 'https://evil.test' } }), { status: 403, body: { code: 'ORIGIN_REFUSED' } })
  t.match(await request(app, 'GET', '/devices', undefined, { origin: 'https://evil.test' }), { status: 403, body: { code: 'ORIGIN_REFUSED' } })
  t.equal((await request(app, 'GET', '/devices', undefined, { origin: 'https://shop.example' })).status, 200)
})

t.test('devices in the middle of their close handshake get no more messages, and delay no broadcast', async t => {
  const app = await listen(t)
  const codes: number[] = []
  app.devices.on('disconnected', (_device, { code }) => { codes.push(code) })
  const devices = await Promise.all(Array.from({ length: 30 }, (_, n) => connect(app.url, `d${n}`)))
  for (const { socket } of devices) socket.close()
  while (app.devices.size > 0) {
    await app.devices.broadcast('first')
    await app.devices.broadcast('second, in the same turn')
    await new Promise(resolve => setImmediate(resolve))
  }
  t.strictSame(codes, devices.map(() => 1005))
})
