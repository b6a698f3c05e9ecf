import { readFileSync } from 'node:fs'
import type { ServerResponse } from 'node:http'
import { createServer as createTlsServer } from 'node:https'
import { createServer as createTcpServer, type AddressInfo } from 'node:net'
import { join } from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import t, { type Test } from 'tap'
import type { Backplane, Owner } from '../lib/cluster/backplane.ts'
import type { Device } from '../lib/connection/device.ts'
import type { WebhookOptions } from '../lib/gateway/webhook-options.ts'
import { Failure, localBackplane, memoryMailbox, type Mailbox } from '../lib/index.ts'
import { Events } from '../lib/messaging/events.ts'
import { Webhooks } from '../lib/observe/webhooks/index.ts'
import { diskMailbox } from '../lib/storage/disk/index.ts'
import { overEngines } from './engines.ts'
import { fakeLog, gate, turn } from './fakes.ts'
import { root } from './root.ts'
import { connect, listen, request, until } from './support.ts'
import { SECRET, WebhookReceiver, type ReceivedEvent } from './webhook-receiver.ts'

const DAY = 86_400_000

async function receiverFor (t: Pick<Test, 'teardown'>, secret?: string): Promise<WebhookReceiver> {
  const receiver = await WebhookReceiver.start(secret)
  t.teardown(() => receiver.close())
  return receiver
}

interface NodeOptions extends Partial<WebhookOptions> {
  mailbox?: Mailbox
  backplane?: Backplane
  node?: string
}

/** The webhooks of a node, with a clock that the test moves. */
function webhooksOf (t: Pick<Test, 'teardown'>, url: string, { mailbox = memoryMailbox(), backplane = localBackplane(), node = 'n1', ...options }: NodeOptions = {}) {
  const log = fakeLog()
  const events = new Events(log)
  const clock = { time: Date.now(), now: () => clock.time, uptime: 0, monotonic: () => clock.uptime, random: () => 1 }
  const webhooks = new Webhooks([{ url, secret: SECRET, name: 'hook', types: ['connected', 'disconnected', 'message', 'delivered'], ...options }], { node, mailbox, backplane, events, log, clock })
  t.teardown(() => webhooks.close())
  return {
    webhooks, log, mailbox, events, clock,
    /** A device sends a message; resolves with whether its event was stored. */
    message: async (deviceId: string, data: unknown) => await events.emit('message', data, { id: deviceId, generation: 1 } as Device),
    connected: (deviceId: string, generation = 1) => void events.emit('connected', { id: deviceId, generation, since: 1, address: '::1', protocol: 'jsonrpc' } as Device),
    report: async () => (await webhooks.report())[0]!,
    /** Moves the clock, and does what is due. */
    pass: (milliseconds: number) => {
      clock.time += milliseconds
      webhooks.tick()
    },
    lines: (words: string) => log.lines.filter(line => line.words === words)
  }
}

const dataOf = ({ body }: ReceivedEvent): unknown => body.data.message

t.test('an endpoint gets the events of devices and letters as signed CloudEvents', async t => {
  const receiver = await receiverFor(t)
  const app = await listen(t, { node: 'n1', webhooks: [{ url: receiver.url, secret: SECRET }] })
  const device = await connect(app.url, 'd')
  device.handle('message', () => ({}))
  await receiver.got(1)
  const { id: letterId } = await app.devices.send('d', 1, { ttl: 60_000 })
  await receiver.got(2)
  await device.close()
  const [connected, delivered, disconnected] = await receiver.got(3)

  t.strictSame(receiver.invalid, [])
  t.match(connected!.headers, { 'content-type': 'application/cloudevents+json', 'user-agent': 'fastify-devices (n1)' })
  t.match(connected!.body, {
    specversion: '1.0', id: connected!.id, source: '/nodes/n1', type: 'fastify-devices.connected', subject: 'd', time: /^\d{4}-\d\d-\d\dT[\d:.]+Z$/,
    datacontenttype: 'application/json', generation: /^\d{16}$/, data: { address: '127.0.0.1', protocol: 'jsonrpc', since: Number }
  })
  t.match(delivered!.body, { type: 'fastify-devices.delivered', subject: 'd', generation: undefined, data: { letterId } })
  t.match(disconnected!.body, { type: 'fastify-devices.disconnected', generation: connected!.body.generation, data: { code: 1005 } })
  t.equal(new Set(receiver.events.map(({ id }) => id)).size, 3)
})

t.test('an endpoint gets only the types that it asks for, and messages only if it asks for them', async t => {
  const [all, messages] = [await receiverFor(t), await receiverFor(t)]
  const app = await listen(t, { webhooks: [{ url: all.url, secret: SECRET }, { url: messages.url, secret: SECRET, types: ['message', 'message'] }] })
  const device = await connect(app.url, 'd')
  t.match(await device.ask('message', { data: { door: 'open' } }), { result: {} })
  await device.close()
  await all.got(2)
  await messages.got(1)
  t.strictSame(all.events.map(({ type }) => type), ['connected', 'disconnected'])
  t.match(messages.events, [{ type: 'message', body: { data: { message: { door: 'open' } } } }])
})

t.test('a message of bytes reaches the endpoint as base64', async t => {
  const receiver = await receiverFor(t)
  const { message } = webhooksOf(t, receiver.url)
  await message('d', Buffer.from([0, 255]))
  const [event] = await receiver.got(1)
  t.strictSame(event!.body.data, { base64: 'AP8=' })
})

t.test('each secret of a list signs, so that a receiver may still know only the old one', async t => {
  const [older, newer] = [Buffer.alloc(24, 1).toString('base64'), Buffer.alloc(64, 2).toString('base64')]
  for (const secret of [older, newer]) {
    const receiver = await receiverFor(t, secret)
    const { connected } = webhooksOf(t, receiver.url, { secret: [`whsec_${newer}`, older] })
    connected('d')
    await receiver.got(1)
    t.strictSame(receiver.invalid, [])
  }
})

/** A mailbox that stores nothing before the gate opens. */
function slowMailbox () {
  const stored = gate()
  const mailbox = memoryMailbox()
  const { put } = mailbox
  mailbox.put = async (...args) => {
    await stored.opened
    return await put(...args)
  }
  return { mailbox, stored }
}

t.test('a message of a device is answered once its event is stored', async t => {
  const receiver = await receiverFor(t)
  const { mailbox, stored } = slowMailbox()
  const app = await listen(t, { mailbox, webhooks: [{ url: receiver.url, secret: SECRET, types: ['message'] }] })
  const device = await connect(app.url, 'd')
  const answer = device.ask('message', { data: 1 })
  await device.ask('ping')
  t.notOk(device.seen.some(({ id }) => id === 'ask-1'))
  stored.open()
  t.match(await answer, { result: {} })
  await receiver.got(1)
})

t.test('a message whose event cannot be stored is refused, so that the device sends it again', async t => {
  const receiver = await receiverFor(t)
  const mailbox = memoryMailbox()
  mailbox.put = async () => { throw new Failure('mailbox-full') }
  const app = await listen(t, { mailbox, webhooks: [{ url: receiver.url, secret: SECRET, types: ['message'] }] })
  const device = await connect(app.url, 'd')
  t.match(await device.ask('message', { data: 1 }), { error: { code: -32603 } })
  t.match(await app.devices.webhooks(), [{ dropped: 1, waiting: 0 }])
})

t.test('events that find the queue full are counted, and logged once a minute', async t => {
  const receiver = await receiverFor(t)
  const mailbox = memoryMailbox()
  let puts = 0
  mailbox.put = async () => {
    puts++
    throw new Failure('mailbox-full')
  }
  const { message, report, pass, lines } = webhooksOf(t, receiver.url, { mailbox })
  for (let count = 0; count < 10; count++) t.equal(await message('d', count), false)
  t.equal(puts, 1, 'a full queue is not asked again at once')
  t.equal((await report()).dropped, 10)
  pass(0)
  pass(1_000)
  await message('d', 11)
  t.equal(puts, 2)
  pass(30_000)
  t.match(lines('webhook events dropped'), [{ level: 'error', fields: { webhook: 'hook', dropped: 10, reason: 'queue full' } }])
  pass(30_000)
  t.match(lines('webhook events dropped')[1], { fields: { dropped: 1 } })
  t.strictSame(lines('event listener failed'), [])
})

t.test('no more than a thousand events wait for a slow mailbox', async t => {
  const receiver = await receiverFor(t)
  const { mailbox, stored } = slowMailbox()
  const { connected, report } = webhooksOf(t, receiver.url, { mailbox })
  for (let count = 0; count < 1_010; count++) connected(`d${count}`)
  stored.open()
  await receiver.got(1_000)
  t.equal((await report()).dropped, 10)
})

t.test('a device whose event fails does not delay others, and its events stay in order', async t => {
  const receiver = await receiverFor(t)
  const { message, pass, report, lines, clock } = webhooksOf(t, receiver.url)
  let isBroken = true
  receiver.respond = (response, { deviceId }) => response.writeHead(deviceId === 'bad' && isBroken ? 500 : 200).end('ok')
  for (let count = 1; count <= 3; count++) for (const deviceId of ['bad', 'good']) await message(deviceId, count)
  await receiver.got(4)
  await until(async () => (await report()).inFlight === 0)
  t.strictSame(receiver.events.filter(({ deviceId }) => deviceId === 'good').map(dataOf), [1, 2, 3])
  t.match(await report(), { state: 'sending', waiting: 3, sent: 3, nextAttempt: clock.time + 1_000, lastFailure: { deviceId: 'bad', type: 'message', reason: 'status 500', at: clock.time } })

  for (const [failures, delay] of [1_000, 2_000, 4_000].entries()) {
    pass(delay - 1)
    t.equal((await report()).inFlight, 0)
    pass(1)
    await receiver.got(5 + failures)
    await until(async () => (await report()).inFlight === 0)
  }
  isBroken = false
  pass(8_000)
  await receiver.got(10)
  const bad = receiver.events.filter(({ deviceId }) => deviceId === 'bad')
  t.strictSame(bad.map(dataOf), [1, 1, 1, 1, 1, 2, 3])
  t.equal(new Set(bad.map(({ id }) => id)).size, 3, 'the id of an event is the same in each attempt')
  t.equal(lines('webhook failed').filter(({ level }) => level === 'warn').length, 1, 'one failure a minute is a warning')
  await until(async () => (await report()).waiting === 0)
  t.equal((await report()).nextAttempt, undefined)
})

t.test('an endpoint gets at most eight requests at a time', async t => {
  const receiver = await receiverFor(t)
  const open = gate()
  receiver.respond = response => void open.opened.then(() => response.end())
  const { connected, report } = webhooksOf(t, receiver.url)
  for (let count = 0; count < 20; count++) connected(`d${count}`)
  await receiver.got(8)
  t.match(await report(), { inFlight: 8, waiting: 20 })
  open.open()
  await receiver.got(20)
  t.equal(receiver.most, 8)
})

t.test('a request that hangs is given up after 15 seconds, and repeated', async t => {
  const receiver = await receiverFor(t)
  receiver.respond = () => {}
  const { connected, pass, report } = webhooksOf(t, receiver.url)
  connected('d')
  await receiver.got(1)
  pass(14_999)
  t.equal((await report()).inFlight, 1)
  pass(1)
  await until(async () => (await report()).inFlight === 0)
  t.match(await report(), { lastFailure: { reason: 'timeout' } })
  receiver.respond = response => response.end()
  pass(1_000)
  const [first, second] = await receiver.got(2)
  t.equal(first!.id, second!.id)
})

t.test('an endpoint that asks for a pause gets nothing until it is over', async t => {
  for (const [status, header, delay] of [[429, '30', 30_000], [503, 'date', 60_000], [503, '999999999', DAY]] as const) {
    const receiver = await receiverFor(t)
    const { connected, pass, report, clock } = webhooksOf(t, receiver.url)
    clock.time = Math.ceil(clock.time / 1_000) * 1_000 // dates have no milliseconds
    const retryAfter = header === 'date' ? new Date(clock.time + delay).toUTCString() : header
    receiver.respond = response => response.writeHead(status, { 'retry-after': retryAfter }).end()
    connected('a')
    await until(async () => (await report()).state === 'paused')
    connected('b')
    await turn()
    t.match(await report(), { state: 'paused', waiting: 2, nextAttempt: clock.time + delay, lastFailure: { reason: `status ${status}` } })
    receiver.respond = response => response.end()
    pass(delay - 1)
    await turn()
    t.equal(receiver.events.length, 1)
    if (delay === DAY) continue
    pass(1)
    await receiver.got(3)
  }
})

t.test('a pause that is over already, or that nobody can read, delays only the event, as other failures do', async t => {
  for (const retryAfter of ['soon', 'Thu, 01 Jan 1970 00:00:00 GMT', '0', '-5']) {
    const receiver = await receiverFor(t)
    const { connected, report, clock } = webhooksOf(t, receiver.url)
    receiver.respond = response => response.writeHead(503, { 'retry-after': retryAfter }).end()
    connected('d')
    await until(async () => (await report()).lastFailure !== undefined)
    await until(async () => (await report()).inFlight === 0)
    t.match(await report(), { state: 'sending', nextAttempt: clock.time + 1_000 }, retryAfter)
    t.equal(receiver.events.length, 1)
  }
})

t.test('a pause is not shortened by the failures of requests that were in flight', async t => {
  const receiver = await receiverFor(t)
  const { connected, report, clock } = webhooksOf(t, receiver.url)
  const responses: ServerResponse[] = []
  receiver.respond = response => { responses.push(response) }
  for (const id of ['a', 'b']) connected(id)
  await until(() => responses.length === 2)
  responses[0]!.writeHead(503, { 'retry-after': '3600' }).end()
  await until(async () => (await report()).inFlight === 1)
  responses[1]!.writeHead(503, { 'retry-after': '1' }).end()
  await until(async () => (await report()).inFlight === 0)
  t.match(await report(), { state: 'paused', nextAttempt: clock.time + 3_600_000 })
})

t.test('closing ends the requests of a sender that was woken before its node owned the endpoint', async t => {
  const receiver = await receiverFor(t)
  const requests: ServerResponse[] = []
  receiver.respond = response => { requests.push(response) }
  const shared = localBackplane()
  const owned = gate()
  const backplane: Backplane = {
    ...shared,
    own: async (...args) => {
      const ownership = await shared.own(...args)
      await owned.opened
      return ownership
    }
  }
  const { connected, webhooks } = webhooksOf(t, receiver.url, { backplane })
  connected('d')
  await until(async () => (await shared.ask('$webhooks/hook', { kind: 'wake' }))?.ok === true)
  await until(() => requests.length === 1)
  await webhooks.close()
  await until(() => requests[0]!.destroyed)
  owned.open()
  await until(async () => await shared.ask('$webhooks/hook', { kind: 'wake' }) === undefined)
  t.equal(requests.length, 1)
})

t.test('an endpoint that switches protocols has failed like any other', async t => {
  const server = createTcpServer(socket => {
    socket.on('error', () => {})
    socket.on('data', () => socket.write('HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: other\r\n\r\n'))
  })
  t.teardown(() => server.close())
  await new Promise<void>(resolve => server.listen(0, '127.0.0.1', resolve))
  const { connected, report, lines, clock } = webhooksOf(t, `http://127.0.0.1:${(server.address() as AddressInfo).port}/`)
  connected('d')
  await until(async () => (await report()).nextAttempt !== undefined)
  t.match(await report(), { lastFailure: { deviceId: 'd', reason: 'status 101' }, nextAttempt: clock.time + 1_000 })
  t.strictSame(lines('webhook queue failed'), [])
})

t.test('an endpoint that is gone gets nothing until the gateway is restarted', async t => {
  const receiver = await receiverFor(t)
  receiver.respond = response => response.writeHead(410).end()
  const mailbox = memoryMailbox()
  const first = webhooksOf(t, receiver.url, { mailbox })
  first.connected('a')
  await until(async () => (await first.report()).state === 'disabled')
  first.connected('b')
  first.pass(DAY / 2)
  await turn()
  t.equal(receiver.events.length, 1)
  t.match(await first.report(), { state: 'disabled', waiting: 2, nextAttempt: undefined })
  t.equal(first.lines('webhook disabled: its endpoint is gone').length, 1)
  await first.webhooks.close()

  receiver.respond = response => response.end()
  const second = webhooksOf(t, receiver.url, { mailbox })
  second.webhooks.start()
  await receiver.got(3)
  t.strictSame(receiver.events.map(({ deviceId }) => deviceId), ['a', 'a', 'b'])
})

t.test('an endpoint that seems to be down gets a request now and then, and all events once it is back', async t => {
  const receiver = await receiverFor(t)
  const { port } = new URL(receiver.url)
  await receiver.close()
  const { connected, pass, report, clock } = webhooksOf(t, receiver.url)
  for (let count = 0; count < 40; count++) connected(`d${count}`)
  await until(async () => (await report()).state === 'paused' && (await report()).inFlight === 0)
  t.match(await report(), { waiting: 40, lastFailure: { reason: 'ECONNREFUSED' } })
  t.ok((await report()).nextAttempt! > clock.time)
  pass(1)
  t.equal((await report()).inFlight, 0)
  for (let count = 0; count < 10; count++) {
    pass(60_000)
    await until(async () => (await report()).inFlight === 0)
  }
  t.equal((await report()).sent, 0)
  const again = await WebhookReceiver.start(SECRET, Number(port))
  t.teardown(() => again.close())
  for (let count = 0; count < 20; count++) {
    pass(600_000)
    await until(async () => (await report()).inFlight === 0)
  }
  await again.got(40)
  t.match(await report(), { state: 'sending', waiting: 0, sent: 40 })
})

t.test('an endpoint that refuses many events is not down', async t => {
  const receiver = await receiverFor(t)
  receiver.respond = response => response.writeHead(400).end()
  const { connected, report } = webhooksOf(t, receiver.url)
  for (let count = 0; count < 40; count++) connected(`d${count}`)
  await receiver.got(40)
  await until(async () => (await report()).inFlight === 0)
  t.match(await report(), { state: 'sending', waiting: 40 })
})

t.test('a redirect is a failure, and is not followed', async t => {
  const [receiver, other] = [await receiverFor(t), await receiverFor(t)]
  receiver.respond = response => response.writeHead(307, { location: other.url }).end()
  const { connected, report } = webhooksOf(t, receiver.url)
  connected('d')
  await until(async () => (await report()).lastFailure?.reason === 'status 307')
  t.strictSame(other.events, [])
})

t.test('an endpoint that answers with an endless body is cut off, and its status counts', async t => {
  const receiver = await receiverFor(t)
  let written = 0
  receiver.respond = response => {
    const write = () => {
      while (!response.destroyed && response.write(Buffer.alloc(16_384))) written++
      if (!response.destroyed) response.once('drain', write)
    }
    write()
  }
  const { connected, report } = webhooksOf(t, receiver.url)
  connected('d')
  await until(async () => (await report()).sent === 1)
  await until(() => receiver.open === 0)
  t.ok(written < 10_000)
})

t.test('an endpoint whose certificate is not trusted gets nothing', async t => {
  const certificate = (name: string) => readFileSync(join(root, 'test/certificates', name))
  let requests = 0
  const server = createTlsServer({ key: certificate('server.key'), cert: certificate('server.pem') }, () => { requests++ })
  await new Promise<void>(resolve => server.listen(0, '127.0.0.1', resolve))
  t.teardown(() => server.close())
  const { connected, report } = webhooksOf(t, `https://127.0.0.1:${(server.address() as AddressInfo).port}/`)
  connected('d')
  await until(async () => (await report()).lastFailure !== undefined)
  t.match((await report()).lastFailure!.reason, /CERT|VERIFY|SELF_SIGNED/)
  t.equal(requests, 0)
})

t.test('an event is dead-lettered a day after it was stored, and the next of its device is sent', async t => {
  const receiver = await receiverFor(t)
  receiver.respond = (response, event) => response.writeHead(dataOf(event) === 1 ? 400 : 200).end()
  const { message, pass, report, lines, clock } = webhooksOf(t, receiver.url)
  await message('d', 1)
  await receiver.got(1)
  const began = clock.time
  while (clock.time < began + DAY - 3_600_000) {
    pass(3_600_000)
    await until(async () => (await report()).inFlight === 0)
  }
  await message('d', 2)
  t.equal((await report()).deadLettered, 0)
  t.ok((await report()).nextAttempt! <= began + DAY)
  pass(began + DAY - clock.time)
  await until(async () => (await report()).waiting === 0)
  const [{ id }] = receiver.events as [ReceivedEvent]
  t.match(await report(), { deadLettered: 1, sent: 1, lastDeadLetter: { id, type: 'message', deviceId: 'd', at: clock.time } })
  t.match(lines('webhook event dead-lettered'), [{ level: 'error', fields: { webhook: 'hook', eventId: id, type: 'message', deviceId: 'd' } }])
  t.equal(dataOf(receiver.events.at(-1)!), 2)
})

t.test('an event that the mailbox has ended is not sent, and is dead-lettered', async t => {
  const receiver = await receiverFor(t)
  receiver.respond = response => response.writeHead(500).end()
  const { webhooks, message, pass, report, lines, mailbox, clock } = webhooksOf(t, receiver.url)
  await message('d', 1)
  await receiver.got(1)
  await until(async () => (await report()).inFlight === 0)
  for (const expired of await mailbox.sweep(clock.time + 2 * DAY)) webhooks.expired(expired)
  t.match(lines('webhook event dead-lettered'), [{ fields: { webhook: 'hook', eventId: receiver.events[0]!.id, type: 'message', deviceId: 'd' } }])
  t.match(await report(), { deadLettered: 1, waiting: 0 })
  pass(2 * DAY)
  await until(async () => (await report()).inFlight === 0)
  t.match(await report(), { deadLettered: 1 })
  t.equal(receiver.events.length, 1)
})

t.test('events for which there is no room in memory are read again, unless they have ended', async t => {
  const receiver = await receiverFor(t)
  const { message, report, pass, mailbox } = webhooksOf(t, receiver.url)
  receiver.respond = response => response.writeHead(500).end()
  for (let number = 0; number < 4; number++) await message('d', `${number}${'x'.repeat(5_000_000)}`)
  await receiver.got(1)
  await until(async () => (await report()).inFlight === 0)
  const ids: string[] = []
  for await (const { id } of mailbox.letters('$webhooks/hook')) ids.push(id)
  for (const id of [ids[1]!, ids[3]!]) await mailbox.settle('$webhooks/hook', id, 'expired')
  receiver.respond = response => response.end()
  pass(1_000)
  await until(async () => (await report()).waiting === 0 && (await report()).inFlight === 0)
  t.strictSame(receiver.events.map(({ id }) => id), [ids[0], ids[0], ids[2]])
})

t.test('events of an endpoint that a node does not have expire without events of their own, and are logged', async t => {
  const receiver = await receiverFor(t)
  const mailbox = memoryMailbox()
  const expired: unknown[] = []
  for (const webhooks of [undefined, [], [{ url: receiver.url, secret: SECRET, name: 'new' }]]) {
    const log = fakeLog()
    const app = await listen(t, { mailbox, webhooks }, { loggerInstance: log })
    app.devices.on('expired', letter => expired.push(letter))
    await mailbox.put('$webhooks/old', { id: `x${String(webhooks?.length)}`, body: '{}', digest: 'connected d', expiresAt: Date.now() - 1 }, { letters: 9, bytes: 99 })
    await until(async () => (await mailbox.waiting('$webhooks/old')) === 0)
    await app.close()
    t.match(log.lines.filter(({ words }) => words === 'webhook event dead-lettered'), [{ level: 'error', fields: { webhook: 'old', eventId: /^x/, type: 'connected', deviceId: 'd' } }])
  }
  t.strictSame(expired, [])
  t.strictSame(receiver.events, [])
})

t.test('an event that was accepted is not sent again while the mailbox cannot store that', async t => {
  const receiver = await receiverFor(t)
  const mailbox = memoryMailbox()
  const { settle } = mailbox
  let isFull = true
  mailbox.settle = async (...args) => {
    if (isFull) throw new Failure('store-full')
    return await settle(...args)
  }
  const { connected, pass, report, lines } = webhooksOf(t, receiver.url, { mailbox })
  connected('d')
  for (let count = 0; count < 3; count++) {
    await until(async () => receiver.events.length === 1 && (await report()).inFlight === 0)
    pass(1_000)
  }
  t.equal(lines('webhook queue failed').length, 1)
  await until(async () => (await report()).inFlight === 0)
  isFull = false
  pass(1_000)
  await until(async () => (await report()).waiting === 0)
  t.equal(receiver.events.length, 1)
  t.match(await report(), { sent: 1, waiting: 0 })
})

t.test('a queue that cannot be read is read again', async t => {
  const receiver = await receiverFor(t)
  const mailbox = memoryMailbox()
  const { letters } = mailbox
  const failures = [new Error('broken'), new Failure('unreachable')]
  mailbox.letters = (...args) => {
    const failure = failures.shift()
    if (failure) throw failure
    return letters(...args)
  }
  const { connected, pass, lines } = webhooksOf(t, receiver.url, { mailbox })
  connected('d')
  await until(() => failures.length === 1)
  await turn()
  pass(1_000)
  t.equal(failures.length, 0)
  await turn()
  pass(1_000)
  await receiver.got(1)
  t.match(lines('webhook queue failed'), [{ fields: { err: { message: 'broken' } } }])
})

/** A mailbox of many nodes, which can be out of reach, and which stores letters in the opposite order if they are put concurrently. */
function sharedMailbox () {
  const mailbox = memoryMailbox()
  const { put } = mailbox
  const state = { isUnreachable: false, asked: 0, delay: 20 }
  const shared: Mailbox = {
    ...mailbox,
    shared: true,
    async put (...args) {
      state.asked++
      if (state.isUnreachable) throw new Failure('unreachable')
      state.delay = Math.max(0, state.delay - 5)
      await sleep(state.delay)
      return await put(...args)
    }
  }
  return { shared, state }
}

t.test('events are stored in their order in a mailbox that nodes share', async t => {
  const receiver = await receiverFor(t)
  const { shared } = sharedMailbox()
  const { message } = webhooksOf(t, receiver.url, { mailbox: shared })
  await Promise.all([1, 2, 3].map(number => message('d', number)))
  await receiver.got(3)
  t.strictSame(receiver.events.map(dataOf), [1, 2, 3])
})

t.test('while the mailbox is unreachable, messages are refused and other events wait', async t => {
  const receiver = await receiverFor(t)
  const { shared, state } = sharedMailbox()
  const { message, connected, report } = webhooksOf(t, receiver.url, { mailbox: shared })
  state.isUnreachable = true
  t.equal(await message('d', 1), false)
  connected('d', 1)
  await until(() => state.asked === 2)
  await turn()
  t.equal(await message('d', 2), false)
  t.equal(state.asked, 2, 'the mailbox was not asked')
  connected('d', 2)
  state.isUnreachable = false
  await receiver.got(2)
  t.strictSame(receiver.events.map(({ body }) => Number(body.generation)), [1, 2])
  t.equal(await message('d', 3), true)
  t.equal((await report()).dropped, 2)
})

t.test('what waits for an unreachable mailbox does not keep an application open', async t => {
  const receiver = await receiverFor(t)
  const { shared, state } = sharedMailbox()
  const { webhooks, connected, lines } = webhooksOf(t, receiver.url, { mailbox: shared })
  state.isUnreachable = true
  for (const generation of [1, 2, 3]) connected('d', generation)
  await until(() => state.asked > 0)
  await webhooks.close()
  t.match(lines('webhook events dropped'), [{ fields: { dropped: 3 } }])
})

t.test('a mailbox that never answers does not keep an application open', async t => {
  const receiver = await receiverFor(t)
  const mailbox = memoryMailbox()
  mailbox.put = () => new Promise(() => {})
  const { webhooks, connected, lines } = webhooksOf(t, receiver.url, { mailbox })
  connected('d')
  await webhooks.close()
  t.equal(lines('webhook events may be lost').length, 1)
})

/** What one node needs of what the nodes share. */
type Share = () => Promise<Required<Pick<NodeOptions, 'mailbox' | 'backplane'>>>

async function oneSends (t: Test, share: Share): Promise<void> {
  const receiver = await receiverFor(t)
  const [one, two] = [webhooksOf(t, receiver.url, { ...await share(), node: 'n1' }), webhooksOf(t, receiver.url, { ...await share(), node: 'n2' })]
  t.match(await one.report(), { state: 'no-sender', sent: 0 })
  one.webhooks.start()
  await until(async () => (await two.report()).state === 'sending')
  two.webhooks.start()
  two.connected('a')
  await receiver.got(1)
  await until(async () => (await two.report()).sent === 1)
  t.match(await two.report(), { node: 'n1', waiting: 0 }, 'each node tells what the sender does')

  receiver.respond = response => response.writeHead(500).end()
  one.connected('b')
  await receiver.got(2)
  await one.webhooks.close()
  receiver.respond = response => response.end()
  two.pass(4_999)
  await turn()
  t.equal((await two.report()).state, 'no-sender')
  two.pass(1)
  await receiver.got(3)
  t.strictSame(receiver.events.map(({ headers, body }) => [headers['user-agent'], body.source, body.subject]), [
    ['fastify-devices (n1)', '/nodes/n2', 'a'], ['fastify-devices (n1)', '/nodes/n1', 'b'], ['fastify-devices (n2)', '/nodes/n1', 'b']
  ])
}

const ONE_SENDER = 'of several nodes one sends, and another one when that is gone'

t.test(ONE_SENDER, async t => {
  const shared = { mailbox: memoryMailbox(), backplane: localBackplane() }
  await oneSends(t, async () => shared)
})

overEngines(t, ONE_SENDER, async (t, engine) => {
  const server = await engine.start(t)
  await oneSends(t, async () => {
    const joined = await server.join()
    t.teardown(() => joined.backplane.close!())
    return joined
  })
})

t.test('a node sends no more once another one has taken over', async t => {
  const receiver = await receiverFor(t)
  const shared = { mailbox: memoryMailbox(), backplane: localBackplane() }
  receiver.respond = () => {}
  const one = webhooksOf(t, receiver.url, shared)
  one.connected('d')
  await receiver.got(1)
  const owner: Owner = { presence: { deviceId: '$webhooks/hook', node: 'n2', since: 0 }, answer: async () => ({ ok: true, value: null }), listensTo: () => false, yield () {} }
  const ownership = await shared.backplane.own('$webhooks/hook', owner)
  await until(() => receiver.open === 0)
  one.pass(60_000)
  one.connected('e')
  await turn()
  t.equal(receiver.events.length, 1)
  receiver.respond = response => response.end()
  await ownership.release()
  one.connected('f')
  await receiver.got(4)
})

t.test('a node that was suspended gives its requests up, and asks whether another one sends', async t => {
  const receiver = await receiverFor(t)
  receiver.respond = () => {}
  const { connected, pass, clock, report, webhooks } = webhooksOf(t, receiver.url)
  connected('d')
  await receiver.got(1)
  clock.uptime += 3_000
  pass(0)
  t.equal(receiver.open, 1)
  receiver.respond = response => response.end()
  clock.uptime += 3_001
  pass(0)
  await receiver.got(2)
  await until(() => receiver.open === 0)
  await until(async () => (await report()).sent === 1)
  await webhooks.close()
  clock.uptime += 3_001
  pass(0)
  t.match(await report(), { state: 'no-sender' })
})

t.test('a message that is too large for the mailbox is refused, and the events after it are stored', async t => {
  const receiver = await receiverFor(t)
  const mailbox = memoryMailbox()
  const { put } = mailbox
  mailbox.put = async (deviceId, letter, limits) => {
    if (String(letter.body).includes('large')) throw new Failure('too-large')
    return await put(deviceId, letter, limits)
  }
  const { message, report } = webhooksOf(t, receiver.url, { mailbox })
  t.equal(await message('d', 'large'), false)
  t.equal(await message('d', 'small'), true)
  t.equal((await report()).dropped, 1)
})

/** A backplane whose answers the test decides. */
function backplaneOf (members: Partial<Backplane>): Backplane {
  return { ...localBackplane(), ...members }
}

t.test('a sender that does not answer is replaced', async t => {
  const receiver = await receiverFor(t)
  const backplane = backplaneOf({ ask: async () => ({ ok: false, reason: 'timeout' }) })
  const { connected } = webhooksOf(t, receiver.url, { backplane })
  connected('d')
  await receiver.got(1)
})

t.test('an event that is stored while the sender is asked is not forgotten', async t => {
  const receiver = await receiverFor(t)
  const answered = gate()
  let asked = 0
  const backplane = backplaneOf({
    async ask () {
      asked++
      await answered.opened
      return { ok: true, value: null }
    }
  })
  const { connected } = webhooksOf(t, receiver.url, { backplane })
  for (let count = 0; count < 10; count++) connected(`d${count}`)
  await turn()
  t.equal(asked, 1)
  answered.open()
  await until(() => asked === 2)
  await turn()
  t.equal(asked, 2)
})

t.test('a node that cannot become the sender tries again', async t => {
  const receiver = await receiverFor(t)
  const local = localBackplane()
  const failures = [new Error('broken'), new Failure('unreachable')]
  const refusals = [new Failure('unreachable')]
  const { connected, pass, lines } = webhooksOf(t, receiver.url, {
    backplane: backplaneOf({
      async ask (...args) {
        if (failures.length > 0) throw failures.shift()!
        return await local.ask(...args)
      },
      async own (...args) {
        if (refusals.length > 0) throw refusals.shift()!
        return await local.own(...args)
      }
    })
  })
  connected('d')
  await until(() => failures.length === 1)
  await turn()
  pass(5_000)
  await until(() => failures.length === 0)
  await turn()
  pass(5_000)
  await until(() => refusals.length === 0)
  await turn()
  pass(5_000)
  await receiver.got(1)
  t.match(lines('webhook sender not started'), [{ fields: { err: { message: 'broken' } } }])
})

t.test('a node that loses the endpoint at once, or closes meanwhile, sends nothing', async t => {
  const receiver = await receiverFor(t)
  const owned = gate()
  let released = 0
  const backplane = backplaneOf({
    async own (_name, owner) {
      owner.yield()
      await owned.opened
      return { generation: 1, async release () { released++ } }
    }
  })
  const lost = webhooksOf(t, receiver.url, { backplane })
  const closed = webhooksOf(t, receiver.url, { backplane })
  lost.connected('d')
  closed.connected('d')
  await turn()
  await closed.webhooks.close()
  owned.open()
  await until(() => released === 1)
  await turn()
  t.match(await lost.report(), { state: 'no-sender', waiting: 1 })
  t.strictSame(receiver.events, [])
})

t.test('a node that closes while it reads its queue sends nothing', async t => {
  const receiver = await receiverFor(t)
  const mailbox = memoryMailbox()
  const { letters } = mailbox
  const read = gate()
  let isReading = false
  mailbox.letters = async function * (...args) {
    isReading = true
    await read.opened
    yield * letters(...args)
  }
  const { webhooks, connected } = webhooksOf(t, receiver.url, { mailbox })
  connected('d')
  await until(() => isReading)
  await webhooks.close()
  read.open()
  await turn()
  t.strictSame(receiver.events, [])
})

t.test('the sender listens to no topic', async t => {
  const receiver = await receiverFor(t)
  const local = localBackplane()
  const owners: Owner[] = []
  const backplane = backplaneOf({
    async own (name, owner) {
      owners.push(owner)
      return await local.own(name, owner)
    }
  })
  const { connected } = webhooksOf(t, receiver.url, { backplane })
  connected('d')
  await receiver.got(1)
  t.strictSame(owners.map(owner => owner.listensTo('a')), [false])
})

t.test('an application that closes while the sender is asked, becomes none', async t => {
  const receiver = await receiverFor(t)
  for (const outcome of ['answer', 'error']) {
    const asked = gate()
    let isAsked = false
    const backplane = backplaneOf({
      async ask () {
        isAsked = true
        await asked.opened
        if (outcome === 'error') throw new Error('closed')
        return undefined
      },
      async own () { throw new Error('owned') }
    })
    const { webhooks, connected, lines } = webhooksOf(t, receiver.url, { backplane })
    connected('d')
    await until(() => isAsked)
    await webhooks.close()
    asked.open()
    await turn()
    t.strictSame(lines('webhook sender not started'), [])
  }
})

t.test('an endpoint that hangs does not delay the closing of the application, and gets its event after a restart', async t => {
  const receiver = await receiverFor(t)
  receiver.respond = () => {}
  const path = t.testdir()
  const webhooks = [{ url: receiver.url, secret: SECRET, types: ['message' as const] }]
  const first = await listen(t, { mailbox: await diskMailbox({ path }), webhooks })
  const device = await connect(first.url, 'd')
  await device.ask('message', { data: 1 })
  await receiver.got(1)
  await first.close()
  await until(() => receiver.open === 0)

  receiver.respond = response => response.end()
  const second = await listen(t, { mailbox: await diskMailbox({ path }), webhooks })
  const [before, after] = await receiver.got(2)
  t.equal(before!.id, after!.id)
  await until(async () => (await second.devices.webhooks())[0]!.waiting === 0)
})

t.test('the queue of an endpoint is no device', async t => {
  const receiver = await receiverFor(t)
  receiver.respond = response => response.writeHead(500).end()
  const app = await listen(t, { webhooks: [{ url: receiver.url, secret: SECRET, name: 'hook' }] })
  await connect(app.url, 'd')
  await receiver.got(1)
  t.strictSame((await request(app, 'GET', '/devices')).body.devices.map(({ deviceId }: any) => deviceId), ['d'])
  for (const [method, path] of [['GET', ''], ['GET', '/messages'], ['DELETE', '/messages'], ['DELETE', '']]) {
    t.equal((await request(app, method!, `/devices/%24webhooks%2Fhook${path}`)).status, 400)
  }
  await t.rejects(app.devices.letters('$webhooks/hook'), { code: 'ID_INVALID' })
  await t.rejects(app.devices.send('$webhooks/hook', 1, { ttl: 1_000 }), { code: 'ID_INVALID' })
  await t.rejects(connect(app.url, '', { path: '/ws?deviceId=$webhooks/hook' }))
})

t.test('the report of an endpoint shows no secret, and over REST is the same', async t => {
  const receiver = await receiverFor(t)
  const url = receiver.url.replace('//', '//user:password@')
  receiver.respond = response => response.writeHead(500).end()
  const app = await listen(t, { node: 'n1', webhooks: [{ url: `${url}?token=hidden`, secret: SECRET, types: ['connected'] }] })
  await connect(app.url, 'd')
  await until(async () => (await app.devices.webhooks())[0]!.lastFailure !== undefined && (await app.devices.webhooks())[0]!.inFlight === 0)
  t.equal(receiver.events[0]!.headers.authorization, `Basic ${Buffer.from('user:password').toString('base64')}`)
  const { status, body } = await request(app, 'GET', '/webhooks')
  t.equal(status, 200)
  t.strictSame(body, { webhooks: await app.devices.webhooks() })
  t.match(body.webhooks, [{ name: /^127\.0\.0\.1-[\w-]{12}$/, url: receiver.url, types: ['connected'], state: 'sending', node: 'n1', waiting: 1, deadLettered: 0, dropped: 0, lastFailure: { reason: 'status 500' } }])
  t.notMatch(JSON.stringify(body), /password|hidden|BwcHBwcH/)
})

t.test('without endpoints there is nothing to report', async t => {
  const app = await listen(t)
  t.strictSame(await app.devices.webhooks(), [])
  t.strictSame((await request(app, 'GET', '/webhooks')).body, { webhooks: [] })
})

t.test('a wrong endpoint is named at registration, without its secret', async t => {
  const right = { url: 'https://example.com/', secret: SECRET }
  const wrong: Array<[webhooks: unknown, message: RegExp]> = [
    [right, /the option "webhooks" is wrong/],
    [[{ ...right, secrets: 1 }], /the option "webhooks" is wrong/],
    [[{ url: right.url }], /the option "webhooks" is wrong/],
    [[{ ...right, url: 'no url' }], /"webhooks" is wrong: \[0\]\.url must be an http or https URL/],
    [[right, { ...right, url: 'ftp://example.com' }], /\[1\]\.url must be/],
    [[{ ...right, url: 'https://user:c2hvcnQ%zz@example.com' }], /\[0\]\.url has credentials that are not percent-encoded/],
    [[{ ...right, name: 'a/b' }], /the option "webhooks" is wrong/],
    [[{ ...right, types: ['conected'] }], /\[0\]\.types: there is no event "conected"/],
    [[{ ...right, secret: 'c2hvcnQ=' }], /\[0\]\.secret must be base64 of 24 to 64 bytes/],
    [[{ ...right, secret: [SECRET, Buffer.alloc(65).toString('base64')] }], /\[0\]\.secret must be base64/],
    [[{ ...right, secret: `${'not base64 '.repeat(5)}` }], /\[0\]\.secret must be base64/],
    [[right, right], /two endpoints have the name "example\.com-/]
  ]
  for (const [webhooks, message] of wrong) {
    const error = await listen(t, { webhooks } as object).then(() => new Error('registered'), (error: unknown) => error as Error)
    t.match(error.message, message)
    t.notMatch(error.message, /c2hvcnQ|not base64/)
  }
})
