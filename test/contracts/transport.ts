import type { Test } from 'tap'
import type { Options } from '../../lib/index.ts'
import { until, type Seen, type Served, type TestDevice } from '../support.ts'

/** Starts an application with the transport, and connects devices to it. */
export interface TransportFixture {
  serve (t: Pick<Test, 'teardown'>, options?: Options): Promise<Served>
  connect (served: Served, deviceId: string): Promise<TestDevice>
}

const bytesOf = ({ data, params, result }: Seen) => data ?? Buffer.from((params ?? result).base64, 'base64')

/** Tests what every transport must do. Call it from a test file with a fixture for the transport. */
export function transportContract (t: Test, name: string, { serve, connect }: TransportFixture): void {
  void t.test(`${name} keeps the transport contract`, async t => {
    await t.test('a device gets the welcome first, and its addresses are known', async t => {
      const app = await serve(t)
      const device = await connect(app, 'd')
      t.match(device.seen[0], { method: 'welcome', params: { deviceId: 'd', generation: Number, heartbeat: 25_000, now: Number, waiting: 0 } })
      t.match(await app.devices.describe('d'), { connected: true, protocol: 'jsonrpc', address: app.address, localAddress: app.address })
      t.match(app.devices.get('d'), { address: app.address, localAddress: app.address })
    })

    await t.test('no message overtakes the welcome', async t => {
      const app = await serve(t)
      app.devices.on('connected', async ({ deviceId }) => {
        for (let turn = 0; turn < 10; turn++) {
          await undefined
          app.devices.get(deviceId)?.send(turn)
          void app.devices.broadcast(turn)
        }
      }, { everywhere: true })
      const device = await connect(app, 'd')
      await device.next(({ params }) => params?.data === 9)
      t.equal(device.seen[0]!.method, 'welcome')
    })

    await t.test('a device that reads is not slow, however much is broadcast in one turn', async t => {
      const app = await serve(t)
      const device = await connect(app, 'd')
      const text = 'x'.repeat(60_000)
      for (let n = 0; n < 30; n++) void app.devices.broadcast({ n, text })
      for (let n = 0; n < 30; n++) t.equal((await device.message()).params.data.n, n)
    })

    await t.test('letters that exceed the output limit arrive as there is room', async t => {
      const app = await serve(t, { maxBuffered: 65_536, maxLetterBytes: 1_048_576 })
      const text = 'x'.repeat(20_000)
      for (let n = 0; n < 40; n++) await app.devices.send('d', { n, text }, { ttl: 60_000 })
      const seen: number[] = []
      const device = (await connect(app, 'd')).handle('message', ({ data }) => { seen.push(data.n); return {} })
      await until(async () => (await app.devices.describe('d')).waiting === 0)
      t.strictSame(seen, Array.from({ length: 40 }, (_, n) => n))
      t.equal(device.seen[0]!.params.waiting, 40)
      t.strictSame(app.devices.stats().closeCodes, {})
    })

    await t.test('messages go both ways and keep their order', async t => {
      const app = await serve(t)
      const received: unknown[] = []
      app.devices.on('message', data => { received.push(data) })
      const device = await connect(app, 'd')
      const texts = Array.from({ length: 100 }, (_, n) => `${n} \u2028 \n é 🦊`)
      await Promise.all(texts.map(text => app.devices.send('d', text)))
      for (const text of texts) t.equal((await device.message()).params.data, text)
      for (const text of texts) device.notify('message', { data: text })
      await until(() => received.length === texts.length)
      t.strictSame(received, texts)
      await app.devices.broadcast('all')
      t.equal((await device.message()).params.data, 'all')
    })

    await t.test('calls are answered in both directions', async t => {
      const app = await serve(t)
      app.devices.handle('double', params => ({ is: 2 * (params as { n: number }).n }))
      const device = (await connect(app, 'd')).handle('add', ({ a, b }) => a + b).handle('refuse', () => { throw { code: 42, message: 'blocked' } }) // eslint-disable-line
      t.equal(await app.devices.call('d', 'add', { a: 1, b: 2 }), 3)
      await t.rejects(app.devices.call('d', 'refuse'), { code: 'DEVICE_REFUSED', device: { code: 42 } })
      await t.rejects(app.devices.call('d', 'never', {}, { timeout: 20 }), { code: 'DEVICE_TIMEOUT' })
      t.strictSame((await device.ask('double', { n: 4 })).result, { is: 8 })
      t.equal((await device.ask('nope')).error!.code, -32601)
      device.send([{ jsonrpc: '2.0', id: 1, method: 'ping' }, { jsonrpc: '2.0', id: 2, method: 'nope' }])
      t.match([await device.answer(1), await device.answer(2)], [{ result: { now: Number } }, { error: { code: -32601 } }])
    })

    await t.test('letters wait, arrive in order, and are removed once acknowledged', async t => {
      const app = await serve(t)
      for (let n = 0; n < 50; n++) await app.devices.send('d', n, { ttl: 60_000 })
      const seen: number[] = []
      const device = (await connect(app, 'd')).handle('message', ({ data }) => { seen.push(data); return {} })
      await until(async () => (await app.devices.describe('d')).waiting === 0)
      t.strictSame(seen, Array.from({ length: 50 }, (_, n) => n))
      t.equal(device.seen[0]!.params.waiting, 50)
      t.equal((await app.devices.send('d', 'now', { ttl: 60_000, confirm: true })).status, 'delivered')
    })

    await t.test('binary data arrives unchanged', async t => {
      const app = await serve(t)
      const bytes = Buffer.from(Array.from({ length: 512 }, (_, n) => n % 256))
      const device = await connect(app, 'd')
      await app.devices.send('d', bytes)
      t.strictSame(bytesOf(await device.message()), bytes)
      void app.devices.send('d', bytes, { ttl: 60_000 })
      t.strictSame(bytesOf(await device.message()), bytes)
    })

    await t.test('a publication reaches the subscribers of its topic', async t => {
      const app = await serve(t)
      const [listener, other] = [await connect(app, 'listener'), await connect(app, 'other')]
      t.strictSame((await listener.ask('subscribe', { topics: ['news/+'] })).result, { topics: ['news/+'] })
      await other.ask('publish', { topic: 'news/a', data: 1 })
      t.match((await listener.message()).params, { topic: 'news/a', data: 1 })
      t.strictSame((await listener.ask('unsubscribe', { topics: ['news/+'] })).result, { topics: [] })
      t.match(await app.devices.broadcast(2, { topic: 'news/a' }), { sent: 0 })
      t.equal(other.seen.length, 2)
    })

    await t.test('the newest connection of a device wins', async t => {
      const app = await serve(t)
      const older = await connect(app, 'd')
      const newer = await connect(app, 'd')
      t.match(await older.closed, { code: 4509, reason: 'replaced by a newer connection' })
      t.ok((await newer.ask('ping')).result.now)
      t.equal(app.devices.size, 1)
    })

    await t.test('a device that leaves is disconnected, with a close code or without', async t => {
      const app = await serve(t)
      const codes: number[] = []
      app.devices.on('disconnected', (_device, { code }) => { codes.push(code) })
      const [polite, broken] = [await connect(app, 'polite'), await connect(app, 'broken')]
      polite.socket.close(4321, 'lunch')
      await until(() => codes.length === 1)
      const call = app.devices.call('broken', 'never')
      broken.socket.terminate()
      await t.rejects(call, { code: 'DEVICE_DROPPED' })
      await until(() => codes.length === 2)
      t.equal(codes[0], 4321)
      t.ok([1005, 1006].includes(codes[1]!), 'some transports know one way to end only')
      t.equal(app.devices.size, 0)
      t.match(await app.devices.describe('polite'), { lastDisconnect: { code: 4321, reason: 'lunch' } })
    })

    await t.test('a device is disconnected with the code of the reason', async t => {
      const app = await serve(t, { authenticate: ({ deviceId }) => deviceId === 'expiring' ? { expiresAt: Date.now() + 50 } : true, stallTimeout: 200, maxBuffered: 4_096 })
      const removed = await connect(app, 'removed')
      await app.devices.disconnect('removed')
      t.match(await removed.closed, { code: 4511, reason: 'removed through REST' })
      t.match(await (await connect(app, 'expiring')).closed, { code: 4005 })
    })

    await t.test('what exceeds a limit is refused or ends the connection, as documented', async t => {
      const app = await serve(t, { rate: 1, burst: 30, maxDepth: 5, maxBatch: 3, maxMessage: 2_000 })
      const device = await connect(app, 'd')
      device.send({ jsonrpc: '2.0', id: 'deep', method: 'ping', params: [[[[[[]]]]]] })
      t.equal((await device.answer('deep')).error!.code, -32600)
      device.send(Array.from({ length: 4 }, (_, id) => ({ jsonrpc: '2.0', id, method: 'ping' })))
      t.equal((await device.answer(null)).error!.code, -32600)
      for (let id = 100; id < 170; id++) device.send({ jsonrpc: '2.0', id, method: 'ping' })
      t.match(await device.closed, { code: 4029 })
      t.ok(device.seen.some(({ error }) => error?.code === -32005))
      const large = await connect(app, 'large')
      large.socket.send(JSON.stringify({ jsonrpc: '2.0', method: 'message', params: { data: 'x'.repeat(2_000) } }))
      await until(() => !app.devices.has('large'))
      t.equal((await app.devices.describe('large')).lastDisconnect!.code, 1009)
      await large.closed
    })

    await t.test('a device that reads nothing is disconnected, and the others are not affected', async t => {
      const app = await serve(t, { stallTimeout: 300, maxBuffered: 50_000_000, pingInterval: 60_000 })
      const [deaf, other] = [await connect(app, 'deaf'), await connect(app, 'other')]
      deaf.socket.pause()
      const sending = Array.from({ length: 400 }, () => app.devices.send('deaf', 'x'.repeat(60_000)).catch(() => {}))
      await until(() => !app.devices.has('deaf'))
      await Promise.all(sending)
      t.equal((await app.devices.describe('deaf')).lastDisconnect!.code, 4008)
      t.ok((await other.ask('ping')).result.now)
      deaf.socket.terminate()
    })

    await t.test('a sender that awaits each message sends no faster than the device reads', async t => {
      const app = await serve(t, { maxBuffered: 200_000 })
      const device = await connect(app, 'd')
      device.socket.pause()
      const sending = Array.from({ length: 2_000 }, (_, n) => app.devices.send('d', `${n} ${'x'.repeat(10_000)}`))
      await t.rejects(sending.at(-1)!, { code: 'DEVICE_CONGESTED' })
      device.socket.resume()
      const sent = (await Promise.allSettled(sending)).flatMap(({ status }, n) => status === 'fulfilled' ? [n] : [])
      t.ok(sent.length > 10)
      const seen: number[] = []
      while (seen.length < sent.length) seen.push(Number.parseInt((await device.message()).params.data))
      t.strictSame(seen, sent)
    })

    await t.test('broadcasts that are not read count against the output limit', async t => {
      const app = await serve(t, { maxBuffered: 200_000 })
      const deaf = await connect(app, 'deaf')
      deaf.socket.pause()
      while (app.devices.has('deaf')) {
        await app.devices.broadcast('x'.repeat(60_000))
        await new Promise(resolve => setImmediate(resolve))
      }
      t.equal((await app.devices.describe('deaf')).lastDisconnect!.code, 4008)
      deaf.socket.terminate()
    })

    await t.test('a draining node lets calls finish and says when to reconnect', async t => {
      const app = await serve(t, { retrySpread: 1_000 })
      const [idle, busy] = [await connect(app, 'idle'), await connect(app, 'busy')]
      const call = app.devices.call('busy', 'work')
      const { id } = await busy.next(({ method }) => method === 'work')
      const closing = app.close()
      const { code, reason } = await idle.closed
      t.equal(code, 1012)
      t.match(reason, /^retry=\d{1,3}$/)
      busy.send({ jsonrpc: '2.0', id, result: 'done' })
      t.equal(await call, 'done')
      t.equal((await busy.closed).code, 1012)
      await closing
    })

    await t.test('after churn no connection is left', async t => {
      const app = await serve(t)
      for (let round = 0; round < 5; round++) {
        const devices = await Promise.all(Array.from({ length: 20 }, (_, n) => connect(app, `d${n % 10}`)))
        for (const [n, device] of devices.entries()) if (n % 2) device.socket.terminate()
      }
      for (const { id } of app.devices) await app.devices.disconnect(id)
      await until(() => app.devices.size === 0)
      t.equal(app.devices.stats().admissions, 100)
    })
  })
}
