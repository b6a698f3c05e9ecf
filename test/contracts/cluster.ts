import type { FastifyInstance } from 'fastify'
import type { Test } from 'tap'
import WebSocket from 'ws'
import { connect as connectClient } from '../../lib/client/index.ts'
import { memoryMailbox, type Options } from '../../lib/index.ts'
import type { TestedEngine, JoiningServer, JoinOptions } from '../engines.ts'
import { fakeLog, gate, reasonOf } from '../fakes.ts'
import { expected, leaving, outcomes, ROOM, settings } from '../outcomes.ts'
import { connect, listen, request, until } from '../support.ts'

type Node = FastifyInstance & { url: string }

/** An application on a node of the cluster. */
async function join (t: Pick<Test, 'teardown'>, server: JoiningServer, node: string, options: Options = {}, over: JoinOptions = {}): Promise<Node> {
  return await listen(t, { node, ...await server.join(over), closeTimeout: 200, ...options })
}

async function three (t: Pick<Test, 'teardown'>, server: JoiningServer, prefix: string, options: Options = {}): Promise<[Node, Node, Node]> {
  return await Promise.all(['n1', 'n2', 'n3'].map(node => join(t, server, node, options, { prefix }))) as [Node, Node, Node]
}

/** What users see of several nodes, whichever engine joins them. */
export function clusterContract (t: Test, { name, suspendedReason, start }: TestedEngine, server: JoiningServer): void {
  let prefixes = 0
  const prefix = () => `p${++prefixes}`

  t.test('every outcome of the REST table is the same from every node as on a single one', async t => {
    const one = await listen(t, { ...settings, mailbox: memoryMailbox({ maxBytes: ROOM }) }, { return503OnClosing: false })
    const alone = await outcomes('one', one, one)
    t.strictSame(alone.map(({ title, answer }) => ({ title, answer })), expected)
    const over = { prefix: prefix() }
    const nodes = await Promise.all(['n1', 'n2', 'n3'].map(async node => {
      return await listen(t, { node, ...await server.join({ ...over, maxBytes: ROOM }), ...settings }, { return503OnClosing: false })
    }))
    for (const [at, node] of nodes.entries()) t.strictSame(await outcomes(`n${at + 1}`, node, nodes[(at + 1) % 3]!, server.whileFull), alone, `n${at + 1}`)

    const left = await leaving(one, one)
    t.strictSame(left, Array.from({ length: 5 }, () => '503 NODE_DRAINING 1'))
    t.strictSame(await leaving(nodes[0]!, nodes[1]!), left)
  })

  t.test('every node lists the same devices and topics', async t => {
    const nodes = await three(t, server, prefix())
    await connect(nodes[0].url, 'here')
    await connect(nodes[1].url, 'mute')
    for (const node of nodes) {
      t.equal((await request(node, 'PUT', '/devices/mute/topics/a%2Fb')).status, 200)
      t.match(await request(node, 'GET', '/devices/mute'), { status: 200, body: { node: 'n2', topics: ['a/b'], waiting: 0 } })
      t.match(await request(node, 'GET', '/devices'), { status: 200, body: { devices: [{ deviceId: 'here', node: 'n1' }, { deviceId: 'mute', node: 'n2' }] } })
      t.strictSame((await request(node, 'GET', '/devices?topic=a/b')).body.devices.map((one: any) => one.deviceId), ['mute'])
      t.match(await request(node, 'POST', '/broadcast', { all: true }), { status: 200, body: { sent: 2, nodes: 3 } })
      t.match(await request(node, 'POST', '/broadcast?topic=a/b', {}), { status: 200, body: { sent: 1, nodes: 1 } })
      t.match(await request(node, 'POST', '/broadcast?topic=a/c', {}), { status: 200, body: { sent: 0, nodes: 0 } })
    }
  })

  t.test('a message to a device is forwarded unchanged, text or bytes, within the size limit', async t => {
    const [a, b] = await three(t, server, prefix())
    const device = await connect(a.url, 'd')
    t.equal((await request(b, 'POST', '/devices/d/messages', Buffer.from([0, 255, 10]))).status, 200)
    t.strictSame([...(await device.message()).data!], [0, 255, 10])
    t.match(await request(b, 'POST', '/devices/d/messages', 'x'.repeat(65_537)), { status: 413 })
  })

  t.test('a letter waits for its device, on whichever node that connects', async t => {
    const [a, b, c] = await three(t, server, prefix())
    for (const [at, node] of [a, b, c, a].entries()) {
      t.equal((await request(node, 'POST', '/devices/d/messages?ttl=60', at)).status, 202)
    }
    t.equal((await request(c, 'GET', '/devices/d')).body.waiting, 4)
    const device = await connect(b.url, 'd')
    device.handle('message', () => ({}))
    for (const at of [0, 1, 2, 3]) t.equal((await device.message()).params.data, at)
    await until(async () => (await request(a, 'GET', '/devices/d')).body.waiting === 0)
    // a connected device is woken
    t.match(await request(c, 'POST', '/devices/d/messages?ttl=60&confirm=true', 'now'), { status: 200, body: { status: 'delivered' } })
  })

  t.test('the same idempotency key means one delivery, on whichever node it is repeated', async t => {
    const nodes = await three(t, server, prefix())
    const device = await connect(nodes[0].url, 'd')
    device.handle('message', () => ({}))
    const sent = await Promise.all([0, 1, 2, 0, 1, 2].map(at => request(nodes[at]!, 'POST', '/devices/d/messages?ttl=60', { a: 1 }, { 'idempotency-key': 'k' })))
    t.equal(new Set(sent.map(({ body }) => body.id)).size, 1)
    await until(async () => (await request(nodes[2], 'GET', '/devices/d')).body.waiting === 0)
    t.match(await request(nodes[1], 'POST', '/devices/d/messages?ttl=60', { a: 1 }, { 'idempotency-key': 'k' }), { status: 200, body: { status: 'delivered' } })
    t.match(await request(nodes[1], 'POST', '/devices/d/messages?ttl=60', { a: 2 }, { 'idempotency-key': 'k' }), { status: 409, body: { code: 'IDEMPOTENCY_MISMATCH' } })
    t.equal(device.seen.filter(({ method }) => method === 'message').length, 1)
  })

  t.test('the newest connection of a device wins, on whichever node', async t => {
    const nodes = await three(t, server, prefix())
    const first = await connect(nodes[0].url, 'd')
    const second = await connect(nodes[1].url, 'd')
    t.match(await first.closed, { code: 4509 })
    for (const node of nodes) t.match(await request(node, 'GET', '/devices/d'), { status: 200, body: { node: 'n2' } })
    await second.close()
    for (const node of nodes) await until(async () => (await request(node, 'POST', '/devices/d/messages', 1)).status === 404)
  })

  t.test('a subscription on one node receives publications of another at once', async t => {
    const [a, b, c] = await three(t, server, prefix())
    for (let round = 0; round < 20; round++) {
      const device = await connect(a.url, `d${round}`)
      t.match(await device.ask('subscribe', { topics: [`t${round}/+`] }), { result: { topics: [`t${round}/+`] } })
      t.equal((await request(b, 'POST', `/broadcast?topic=t${round}/x`, round)).body.sent, 1)
      t.equal((await device.message()).params.data, round)
      t.equal((await request(b, 'PUT', `/devices/d${round}/topics/g${round}`)).status, 200)
      t.equal((await request(c, 'POST', `/broadcast?topic=g${round}`, round)).body.sent, 1)
    }
  })

  t.test('connected and disconnected events of all nodes carry generations', async t => {
    const [a, b] = await three(t, server, prefix())
    const told: Array<[string, string, string, number]> = []
    for (const kind of ['connected', 'disconnected'] as const) {
      a.devices.on(kind, ({ deviceId, node, generation }) => told.push([kind, deviceId, node, generation]), { everywhere: true })
    }
    const silent = () => t.fail('was taken off')
    a.devices.on('connected', silent, { everywhere: true }).off('connected', silent, { everywhere: true })
    const first = await connect(b.url, 'd')
    const second = await connect(a.url, 'd')
    await first.closed
    await second.close()
    await until(() => told.length === 4)
    t.strictSame(told.map(([kind, id, node]) => `${kind} ${id} ${node}`), ['connected d n2', 'disconnected d n2', 'connected d n1', 'disconnected d n1'])
    const [g1, g2, g3, g4] = told.map(([, , , generation]) => generation) as [number, number, number, number]
    t.ok(g1 === g2 && g2 < g3 && g3 === g4)
  })

  t.test('an id or a topic with wildcards matches no other subject', async t => {
    const [a, b] = await three(t, server, prefix())
    const ids = ['a.b.+', '_INBOX.x', 'a', 'a.b', '=', '~', 'A', '@:']
    for (const id of ids) await connect(a.url, '', { path: `/ws?deviceId=${encodeURIComponent(id)}` })
    for (const id of ['a.b.*', '>', '$SYS', 'a b']) {
      t.equal((await request(b, 'POST', `/devices/${encodeURIComponent(id)}/messages`, 1)).status, 400)
    }
    for (const id of ids) t.equal((await request(b, 'GET', `/devices/${encodeURIComponent(id)}`)).body.deviceId, id)
    t.strictSame((await request(b, 'GET', '/devices')).body.devices.map((one: any) => one.deviceId), ids.toSorted())
    t.equal((await request(b, 'GET', '/devices/a.b.c')).status, 404)
    const device = await connect(a.url, 'listener')
    await device.ask('subscribe', { topics: ['a.b', '*', '>'] })
    for (const [topic, sent] of [['a.b', 1], ['a.c', 0], ['*', 1], ['x', 0], ['>', 1]] as const) {
      t.equal((await request(b, 'POST', `/broadcast?topic=${encodeURIComponent(topic)}`, 1)).body.sent, sent, topic)
    }
  })

  t.test(`without ${name} a node serves its own devices, and refuses requests for others at once`, async t => {
    const own = await start(t)
    const [a, b, c] = await three(t, own, prefix())
    const device = (await connect(a.url, 'd')).handle('message', () => ({})).handle('echo', params => params)
    const other = await connect(b.url, 'e')
    await device.ask('subscribe', { topics: ['news'] })
    await until(async () => (await request(c, 'GET', '/devices')).body.devices.length === 2)
    await own.stop()
    await until(async () => (await request(a, 'GET', '/devices/e')).status === 503)
    for (let round = 0; round < 10; round++) {
      t.match(await request(a, 'POST', '/devices/d/calls/echo', { round }), { status: 200, body: { round } })
      t.equal((await request(a, 'POST', '/devices/d/messages', { round })).status, 200)
      const began = performance.now()
      t.match(await request(a, 'POST', '/devices/e/calls/echo', {}), { status: 503, body: { code: 'BACKPLANE_DOWN' } })
      t.match(await request(a, 'POST', '/devices/d/messages?ttl=60', {}), { status: 503, body: { code: 'BACKPLANE_DOWN' } })
      t.match(await request(a, 'POST', '/broadcast', {}), { status: 503 })
      t.match(await request(a, 'GET', '/devices'), { status: 503 })
      t.ok(performance.now() - began < 1_000, `nothing waits for ${name}`)
    }
    // one device connects, one leaves, and one moves to another node, while the engine is away
    const late = (await connect(c.url, 'late')).handle('echo', params => params)
    t.match(await request(c, 'POST', '/devices/late/calls/echo', { here: true }), { status: 200 })
    await other.close()
    const again = (await connect(c.url, 'd')).handle('echo', () => 'again').handle('message', () => ({}))
    await own.start()
    t.match(await device.closed, { code: 4509 })
    for (const node of [a, b, c]) {
      await until(async () => (await request(node, 'POST', '/devices/d/calls/echo', {})).body === 'again')
      await until(async () => (await request(node, 'POST', '/devices/late/calls/echo', { node: 1 })).status === 200)
      await until(async () => (await request(node, 'POST', '/devices/e/calls/echo', {})).status === 404)
      await until(async () => (await request(node, 'GET', '/devices')).body.devices.map((one: any) => `${one.deviceId} ${one.node}`).join() === 'd n3,late n3')
    }
    t.equal((await request(b, 'POST', '/devices/d/messages?ttl=60', 'after')).status, 202, 'the mailbox is back with the backplane')
    t.equal((await again.message()).params.data, 'after')
    // each subscription exists once
    await again.ask('subscribe', { topics: ['news'] })
    t.match(await request(a, 'POST', '/broadcast?topic=news', 1), { body: { sent: 1, nodes: 1 } })
    void late
  })

  t.test('the health of a node says what it cannot reach, and `ready` waits for it', async t => {
    const own = await start(t)
    await own.stop()
    const over = { prefix: prefix(), startWithout: true }
    const [a, b] = await Promise.all(['n1', 'n2'].map(node => join(t, own, node, {}, over))) as [Node, Node]
    const unreachable = { ok: false, reason: `${name} unreachable` }
    t.strictSame(await a.devices.health(), { ok: false, mailbox: unreachable, backplane: unreachable, draining: false })
    const ready = Promise.all([a.devices.ready(), b.devices.ready()])
    await own.start()
    await ready
    const fine = { ok: true, mailbox: { ok: true }, backplane: { ok: true }, draining: false }
    t.strictSame(await a.devices.health(), fine)

    await own.stop('SIGKILL')
    for (const { devices } of [a, b]) await until(async () => !(await devices.health()).ok)
    t.strictSame(await a.devices.health(), { ok: false, mailbox: unreachable, backplane: unreachable, draining: false })
    const waiting = reasonOf(b.devices.ready())
    await b.close()
    t.equal(await waiting, 'draining')
    await own.start()
    await a.devices.ready()

    await own.hold()
    await until(async () => (await a.devices.health()).mailbox.reason === suspendedReason)
    own.release()
    await a.devices.ready()
    t.strictSame(await a.devices.health(), fine)
  })

  t.test(`letters whose wake-up was lost are delivered once ${name} is back`, async t => {
    const own = await start(t)
    const [a, b] = await three(t, own, prefix())
    t.equal((await request(b, 'POST', '/devices/d/messages?ttl=60', 'before')).status, 202)
    await own.stop('SIGKILL')
    await until(async () => (await request(a, 'GET', '/devices/e')).status === 503)
    const device = (await connect(a.url, 'd')).handle('message', () => ({}))
    await own.start()
    t.equal((await device.message()).params.data, 'before')
  })

  t.test(`a letter that is acknowledged while ${name} is away is delivered once it is back`, async t => {
    const own = await start(t)
    const [a, b] = await three(t, own, prefix())
    const answer = gate()
    const device = (await connect(a.url, 'd')).handle('message', () => answer.opened)
    const { body: { id } } = await request(b, 'POST', '/devices/d/messages?ttl=60', 'letter')
    await device.message()
    await own.stop('SIGKILL')
    await until(async () => (await request(a, 'POST', '/devices/d/messages?ttl=60', 'none')).status === 503)
    answer.open()
    await device.ask('ping')
    await own.start()
    await until(async () => (await request(b, 'GET', `/devices/d/messages/${id}`)).body?.status === 'delivered')
    // the receipt is written before the letter is deleted
    await until(async () => (await request(b, 'GET', '/devices/d')).body.waiting === 0)
    t.equal(device.seen.filter(({ method }) => method === 'message').length, 1)
  })

  t.test(`a start with startWithout logs no warning if ${name} is there`, async t => {
    const log = fakeLog()
    await listen(t, await server.join({ prefix: prefix(), startWithout: true }), { loggerInstance: { ...log, child: () => log } as any })
    await until(() => log.lines.some(({ words }) => words === 'cluster link up'))
    t.strictSame(log.lines.filter(({ level }) => level === 'warn' || level === 'error'), [])
  })

  t.test(`started without ${name}, a node serves its own devices and joins when it is there`, async t => {
    const own = await start(t)
    await own.stop()
    const over = { prefix: prefix(), startWithout: true }
    const [a, b] = await Promise.all(['n1', 'n2'].map(node => join(t, own, node, {}, over))) as [Node, Node]
    const device = (await connect(a.url, 'd')).handle('echo', params => params).handle('message', () => ({}))
    t.match(await request(a, 'POST', '/devices/d/calls/echo', { here: true }), { status: 200 })
    t.match(await request(b, 'POST', '/devices/d/calls/echo', {}), { status: 503 })
    await own.start()
    await until(async () => (await request(b, 'POST', '/devices/d/calls/echo', {})).status === 200)
    await until(async () => (await request(b, 'POST', '/devices/d/messages?ttl=60', 'letter')).status === 202)
    t.equal((await device.message()).params.data, 'letter')
  })

  t.test(`without ${name} a node does not start unless startWithout is set, and the error says so`, async t => {
    const own = await start(t)
    await own.stop()
    await t.rejects(own.join(), { message: new RegExp(`${name} at \\S*127\\.0\\.0\\.1:\\d+ cannot be used.*startWithout`) })
    await t.rejects(own.join({ prefix: 'a.b' }), { message: /prefix "a\.b" is wrong/ })
  })

  t.test('a node that is closed hands its devices and their letters over', async t => {
    const over = { prefix: prefix() }
    const a = await join(t, server, 'n1', { retrySpread: 50 }, over)
    const b = await join(t, server, 'n2', {}, over)
    const shown: number[] = []
    const shownAt: string[] = []
    let url = a.url
    const wander = class extends WebSocket {
      constructor (_url: string, protocols: string[]) {
        super(`${url.replace('http', 'ws')}/ws?deviceId=d`, protocols)
      }
    }
    const device = connectClient(a.url, { deviceId: 'd', WebSocket: wander as any })
    t.teardown(() => device.close())
    const slow = gate()
    device.on('message', async ({ data }) => {
      shown.push(data)
      shownAt.push(url)
      if (data === 3) await slow.opened
    })
    for (let number = 0; number < 10; number++) await b.devices.send('d', number, { ttl: 60_000 })
    await until(() => shown.length === 4)
    url = b.url
    const closing = a.close()
    slow.open()
    await until(() => shown.length === 10)
    t.strictSame(shown, [0, 1, 2, 3, 4, 5, 6, 7, 8, 9])
    t.equal(shownAt.at(-1), b.url)
    await closing
    await until(async () => (await b.devices.describe('d')).waiting === 0)
  })
}

/** A payload above the limit of the engine is refused by the first node, whatever its kind. */
export async function refusesLargePayloads (t: Test, server: JoiningServer, limit: number, options: Options = {}): Promise<void> {
  const [a, b] = await three(t, server, 'large', options)
  const device = (await connect(a.url, 'd')).handle('message', () => ({})).handle('echo', params => params).handle('grow', () => large)
  const [small, large] = [0.6, 1.2].map(size => ({ text: 'x'.repeat(limit * size) }))
  await device.ask('subscribe', { topics: ['t'] })
  const elsewhere = ['/devices/d/messages', '/devices/d/messages?confirm=true', '/devices/d/calls/echo', '/broadcast', '/broadcast?topic=t']
  const kept = ['/devices/d/messages?ttl=60', '/devices/d/messages?ttl=60&confirm=true', '/devices/away/messages?ttl=60']
  for (const path of [...elsewhere, ...kept]) {
    t.match(await request(b, 'POST', path, large), { status: 413, body: { code: 'MESSAGE_TOO_LARGE' } }, path)
    t.match(await request(b, 'POST', path, Buffer.alloc(limit + 1)), { status: 413, body: { code: 'MESSAGE_TOO_LARGE' } }, path)
    t.ok((await request(b, 'POST', path, small)).status < 300, path)
  }
  for (const path of kept) t.equal((await request(a, 'POST', path, large)).status, 413, 'a letter goes over the engine in any case')
  for (const path of elsewhere.slice(0, 3)) t.equal((await request(a, 'POST', path, large)).status, 200, 'a device of the same node is no business of the engine')
  t.match(await request(b, 'POST', '/devices/d/calls/grow', {}), { status: 413, body: { code: 'MESSAGE_TOO_LARGE' } })
  const lines = [small, large, small].map(data => `${JSON.stringify({ to: 'd', data })}\n`).join('')
  const receipts = (await request(b, 'POST', '/messages', lines, { 'content-type': 'application/x-ndjson' })).body.toString()
  t.match(receipts, /"sent".*\n.*MESSAGE_TOO_LARGE.*\n.*"sent"/)
  t.equal((await device.ask('publish', { topic: 't', data: large })).error!.code, -32014)
}
