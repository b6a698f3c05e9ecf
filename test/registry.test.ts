import { setTimeout as sleep } from 'node:timers/promises'
import t from 'tap'
import { TokenBucket } from '../lib/connection/token-bucket.ts'
import { drain } from '../lib/gateway/drain.ts'
import type { Device, Disconnect } from '../lib/connection/device.ts'
import { Events } from '../lib/messaging/events.ts'
import { Heartbeat, Liveness, type HeartbeatSocket } from '../lib/connection/heartbeat.ts'
import { Registry } from '../lib/connection/registry.ts'
import type { Session } from '../lib/connection/session.ts'
import { closeCodes } from '../lib/protocol/errors.ts'
import { Stats } from '../lib/connection/stats.ts'
import { fakeLog, gate, turn, until } from './fakes.ts'

/** A session that leaves the registry when it ends, as a real one does. */
class FakeSession {
  readonly id: string
  readonly generation: number
  readonly ended: string[] = []
  readonly transport: string
  readonly protocol = 'jsonrpc'
  left: Disconnect | undefined
  readonly #registry: Registry

  constructor (registry: Registry, id: string, generation: number, transport = 'websocket') {
    this.transport = transport
    this.#registry = registry
    this.id = id
    this.generation = generation
  }

  get session (): Session {
    return this as unknown as Session
  }

  end (closeReason: string): void {
    this.ended.push(closeReason)
    this.left = { code: 4509, reason: `generation ${this.generation}`, at: 7 }
    this.#registry.leave(this.session)
  }
}

t.test('the newest connection of a device wins, whichever enters first', async t => {
  for (const order of [[1, 2], [2, 1]] as const) {
    const registry = new Registry()
    const sessions = order.map(generation => new FakeSession(registry, 'd', generation))
    for (const { session } of sessions) registry.enter(session)
    const newest = sessions.find(({ generation }) => generation === 2)!
    const oldest = sessions.find(({ generation }) => generation === 1)!
    t.equal(registry.get('d'), newest.session)
    t.strictSame(newest.ended, [])
    t.strictSame(oldest.ended, ['replaced'])
    t.equal(registry.size, 1)
  }
})

t.test('an older connection that leaves late does not remove the newer one', async t => {
  const registry = new Registry()
  const older = new FakeSession(registry, 'd', 1)
  const newer = new FakeSession(registry, 'd', 2)
  registry.enter(older.session)
  registry.enter(newer.session)
  t.equal(registry.lastDisconnect('d')!.reason, 'generation 1')
  t.equal(registry.leave(older.session), false)
  t.equal(registry.has('d'), true)
  newer.left = { code: 1000, reason: 'generation 2', at: 8 }
  t.equal(registry.leave(newer.session), true)
  t.equal(registry.leave(newer.session), false)
  t.equal(registry.has('d'), false)
  t.equal(registry.get('d'), undefined)
  t.equal(registry.size, 0)
  t.strictSame(registry.lastDisconnect('d'), { code: 1000, reason: 'generation 2', at: 8 })
})

t.test('devices are registered independently of each other', async t => {
  const registry = new Registry()
  const sessions = ['a', 'b', 'c'].map(id => new FakeSession(registry, id, 1))
  for (const { session } of sessions) registry.enter(session)
  t.strictSame([...registry].map(({ id }) => id), ['a', 'b', 'c'])
  sessions[1]!.end('removed')
  t.strictSame([...registry].map(({ id }) => id), ['a', 'c'])
  t.equal(registry.lastDisconnect('a'), undefined)
  t.equal(registry.lastDisconnect('b')!.code, 4509)
})

t.test('sessions are counted by transport and protocol, and a replaced one only once', async t => {
  const registry = new Registry()
  t.strictSame(registry.connected, {})
  const [a, b, newerB] = [new FakeSession(registry, 'a', 1), new FakeSession(registry, 'b', 1, 'tcp'), new FakeSession(registry, 'b', 2)]
  for (const { session } of [a, b]) registry.enter(session)
  t.strictSame(registry.connected, { websocket: { jsonrpc: 1 }, tcp: { jsonrpc: 1 } })
  registry.enter(newerB.session)
  registry.enter(new FakeSession(registry, 'b', 1, 'tcp').session)
  t.strictSame(registry.connected, { websocket: { jsonrpc: 2 }, tcp: { jsonrpc: 0 } })
  registry.connected.websocket!.jsonrpc = 7
  a.end('removed')
  registry.leave(a.session)
  newerB.end('removed')
  t.strictSame(registry.connected, { websocket: { jsonrpc: 0 }, tcp: { jsonrpc: 0 } })
})

t.test('the last disconnects of ten thousand devices are kept', async t => {
  const registry = new Registry()
  const connectOnce = (id: string) => {
    const fake = new FakeSession(registry, id, 1)
    registry.enter(fake.session)
    fake.end('removed')
  }
  for (let count = 0; count < 10_000; count++) connectOnce(`d${count}`)
  connectOnce('d0')
  t.ok(registry.lastDisconnect('d1'))
  connectOnce('one too many')
  t.equal(registry.lastDisconnect('d1'), undefined, 'the oldest is dropped')
  t.ok(registry.lastDisconnect('d0'))
  t.ok(registry.lastDisconnect('d2'))
  t.ok(registry.lastDisconnect('one too many'))
})

t.test('a token bucket allows a burst, and then its rate', async t => {
  const bucket = new TokenBucket({ rate: 10, burst: 5 }, 1_000)
  t.equal(bucket.take(5, 1_000), true)
  t.equal(bucket.take(1, 1_000), false)
  t.equal(bucket.take(1, 1_099), false)
  t.equal(bucket.take(1, 1_100), true)
  t.equal(bucket.take(1, 1_100), false)
  t.equal(bucket.take(3, 1_400), true)
  t.equal(bucket.take(1, 1_400), false)
})

t.test('a token bucket holds at most its burst, and a refusal takes no tokens', async t => {
  const bucket = new TokenBucket({ rate: 10, burst: 5 }, 0)
  t.equal(bucket.take(6, 60_000), false)
  t.equal(bucket.take(5, 60_000), true)
  t.equal(bucket.take(1, 60_000), false)
})

t.test('a charge may overdraw the bucket, by at most one burst', async t => {
  const bucket = new TokenBucket({ rate: 10, burst: 5 }, 0)
  bucket.charge(0)
  bucket.charge(-1)
  t.equal(bucket.take(5, 0), true)
  bucket.charge(2)
  t.equal(bucket.take(1, 200), false)
  t.equal(bucket.take(1, 300), true)
  bucket.charge(1_000)
  t.equal(bucket.take(1, 800), false)
  t.equal(bucket.take(1, 900), true)
})

t.test('a clock that is set back removes no tokens', async t => {
  const bucket = new TokenBucket({ rate: 10, burst: 5 }, 3_600_000)
  t.equal(bucket.take(1, 0), true)
  t.equal(bucket.take(4, 0), true)
  t.equal(bucket.take(1, 0), false)
  t.equal(bucket.take(1, 100), true)
})

const limits = { pingInterval: 1_000, pongTimeout: 300, stallTimeout: 500 }

/** A socket whose counters the test sets. */
class FakeSocket implements HeartbeatSocket {
  pings = 0
  sent = 0
  buffered = 0

  ping (): void {
    this.pings++
  }
}

t.test('pings come at the interval, give or take a tenth', async t => {
  const delays = Array.from({ length: 300 }, () => {
    const socket = new FakeSocket()
    const liveness = new Liveness(limits, 0)
    let now = 0
    for (; socket.pings === 0 && now < 2_000; now++) liveness.check(socket, now, 0)
    return now - 1
  })
  t.ok(delays.every(delay => delay >= 900 && delay <= 1_100), `${Math.min(...delays)} to ${Math.max(...delays)}`)
  t.ok(new Set(delays).size > 50, 'the pings of many devices do not fall together')
})

t.test('a device that answers no ping has no pong in time', async t => {
  const socket = new FakeSocket()
  const liveness = new Liveness(limits, 0)
  t.equal(liveness.check(socket, 899, 0), undefined)
  t.equal(socket.pings, 0)
  t.equal(liveness.check(socket, 1_101, 0), undefined)
  t.equal(socket.pings, 1)
  t.equal(liveness.check(socket, 1_400, 0), undefined)
  t.equal(liveness.check(socket, 1_401, 0), 'no-pong')
})

t.test('any message proves life', async t => {
  const socket = new FakeSocket()
  const liveness = new Liveness(limits, 0)
  for (let round = 1; round <= 3; round++) {
    t.equal(liveness.check(socket, 1_200 * round, 0), undefined)
    t.equal(socket.pings, round)
    liveness.heard()
    t.equal(liveness.check(socket, 1_200 * round + 301, 0), undefined)
  }
})

t.test('a second ping does not give more time for the first', async t => {
  const socket = new FakeSocket()
  const liveness = new Liveness({ ...limits, pingInterval: 100, pongTimeout: 300 }, 0)
  t.equal(liveness.check(socket, 200, 0), undefined)
  t.equal(liveness.check(socket, 400, 0), undefined)
  t.equal(socket.pings, 2)
  t.equal(liveness.check(socket, 500, 0), 'no-pong')
})

t.test('a socket without pings never misses one', async t => {
  const liveness = new Liveness(limits, 0)
  const socket: HeartbeatSocket = { sent: 0, buffered: 0 }
  for (let now = 0; now < 10_000; now += 100) t.equal(liveness.check(socket, now, 0), undefined)
})

t.test('a device whose output makes no progress is slow', async t => {
  const socket = new FakeSocket()
  const liveness = new Liveness({ ...limits, pingInterval: 1_000_000 }, 0)
  t.equal(liveness.check(socket, 100, 0), undefined)
  Object.assign(socket, { sent: 1_000, buffered: 1_000 })
  t.equal(liveness.check(socket, 600, 0), undefined)
  t.equal(liveness.check(socket, 601, 0), 'slow')
})

t.test('a device whose output makes any progress is not slow', async t => {
  const socket = new FakeSocket()
  const liveness = new Liveness({ ...limits, pingInterval: 1_000_000 }, 0)
  Object.assign(socket, { sent: 1_000, buffered: 1_000 })
  for (let step = 1; step <= 20; step++) {
    // more is added than is written
    Object.assign(socket, { sent: 1_000 + step * 100, buffered: 1_000 + step * 99 })
    t.equal(liveness.check(socket, step * 400, 0), undefined)
  }
  t.equal(liveness.check(socket, 8_500, 0), undefined)
  t.equal(liveness.check(socket, 8_501, 0), 'slow')
})

t.test('output that has drained resets the stall timer', async t => {
  const socket = new FakeSocket()
  const liveness = new Liveness({ ...limits, pingInterval: 1_000_000 }, 0)
  Object.assign(socket, { sent: 10, buffered: 10 })
  t.equal(liveness.check(socket, 500, 0), undefined)
  Object.assign(socket, { sent: 10, buffered: 0 })
  t.equal(liveness.check(socket, 900, 0), undefined)
  Object.assign(socket, { sent: 20, buffered: 10 })
  t.equal(liveness.check(socket, 1_400, 0), undefined)
  t.equal(liveness.check(socket, 1_401, 0), 'slow')
})

t.test('a stall is reported early if the next check would be too late', async t => {
  const socket = new FakeSocket()
  const liveness = new Liveness({ ...limits, pingInterval: 1_000_000 }, 0)
  Object.assign(socket, { sent: 10, buffered: 10 })
  t.equal(liveness.check(socket, 450, 50), undefined)
  t.equal(liveness.check(socket, 451, 50), 'slow')
})

t.test('one timer checks all connections until it is stopped', async t => {
  const checks: Array<[name: string, now: number, slack: number]> = []
  const connections = ['a', 'b'].map(name => ({ check: (now: number, slack: number) => { checks.push([name, now, slack]) } }))
  const before = performance.now()
  const heartbeat = new Heartbeat(connections, { pingInterval: 100, pongTimeout: 100_000, stallTimeout: 100_000 })
  await until(() => checks.length >= 4)
  heartbeat.stop()
  t.strictSame(checks.slice(0, 4).map(([name]) => name), ['a', 'b', 'a', 'b'])
  t.ok(checks.every(([, now, slack]) => now >= before && slack === 10))
  const { length } = checks
  await new Promise(resolve => setTimeout(resolve, 40))
  t.equal(checks.length, length)
})

t.test('every event is counted', async t => {
  const stats = new Stats(fakeLog())
  t.strictSame(stats.read(0), {
    sessions: 0, admissions: 0, refusals: {}, closeCodes: {}, messages: { in: 0, out: 0 }, bytes: { in: 0, out: 0 }, calls: {}, answers: {}, letters: {}, unexpected: {}
  })
  stats.admitted()
  stats.disconnected(1000)
  stats.disconnected(1000)
  stats.disconnected(closeCodes.removed.code)
  stats.received(3, 100)
  stats.received(1, 1)
  stats.sent(50)
  stats.sent(7)
  for (const counter of ['refusals', 'calls', 'answers', 'letters', 'unexpected'] as const) {
    stats.count(counter, 'refused')
    stats.count(counter, 'busy')
    stats.count(counter, 'busy')
  }
  const twice = { refused: 1, busy: 2 }
  t.strictSame(stats.read(4), {
    sessions: 4,
    admissions: 1,
    refusals: twice,
    closeCodes: { 1000: 2, 4511: 1 },
    messages: { in: 4, out: 2 },
    bytes: { in: 101, out: 57 },
    calls: twice,
    answers: twice,
    letters: twice,
    unexpected: twice
  })
})

t.test('unknown close codes share one counter', async t => {
  const stats = new Stats(fakeLog())
  for (const code of [3000, 4000, 4999, 1004, 0]) stats.disconnected(code)
  stats.disconnected(1006)
  t.strictSame(stats.read(0).closeCodes, { 0: 5, 1006: 1 })
})

t.test('reasons that an application has made up share one counter', async t => {
  const stats = new Stats(fakeLog())
  for (const reason of ['ok', 'late', 'guard', 'authorize', 'busy', 'slow', 'offline']) stats.count('refusals', reason)
  for (let user = 0; user < 1_000; user++) stats.count('refusals', `unknown user ${user}`)
  for (const reason of ['constructor', '__proto__', undefined as never]) stats.count('refusals', reason)
  t.strictSame(stats.read(0).refusals, { ok: 1, late: 1, guard: 1, authorize: 1, busy: 1, slow: 1, offline: 1, other: 1_003 })
})

t.test('counters that were read are a copy', async t => {
  const stats = new Stats(fakeLog())
  const read = stats.read(0)
  read.messages.in = 7
  read.calls.ok = 7
  t.strictSame(stats.read(0).messages, { in: 0, out: 0 })
  t.strictSame(stats.read(0).calls, {})
})

t.test('observers get each call that ends and each pong until they are removed; one that throws is logged', async t => {
  const log = fakeLog()
  const stats = new Stats(log)
  const heard: unknown[] = []
  t.equal(stats.startTime(), 0)
  stats.settled('out', 'reboot', 'ok', 0)
  stats.ponged(3)
  const broken = stats.observe({ call () { throw new Error('broken') } })
  const stop = stats.observe({ call: ({ duration, ...report }) => { heard.push(report); t.ok(duration >= 0) }, pong: delay => { heard.push(delay) } })
  stats.settled('out', 'reboot', 'timeout', stats.startTime())
  stats.settled('in', 'sale', 'ok', 0)
  broken()
  stats.settled('in', 'sale', 'ok', stats.startTime())
  stats.ponged(12)
  stop()
  stats.settled('in', 'sale', 'ok', stats.startTime())
  t.strictSame(heard, [{ direction: 'out', method: 'reboot', outcome: 'timeout' }, { direction: 'in', method: 'sale', outcome: 'ok' }, 12])
  t.match(log.lines.map(({ words }) => words), ['observer failed'])
  t.match(stats.read(0), { calls: { ok: 1, timeout: 1 }, answers: { ok: 3 } })
})

t.test('listeners get events with their arguments until they are removed', async t => {
  const events = new Events(fakeLog())
  const heard: unknown[] = []
  const device = { id: 'd' } as Device
  const onMessage = (data: unknown, from: Device) => { heard.push(['message', data, from.id]) }
  events.on('message', onMessage)
  events.on('disconnected', (from, { code }) => { heard.push(['disconnected', from.id, code]) })
  events.on('delivered', ({ deviceId, id }) => { heard.push(['delivered', deviceId, id]) })
  events.emit('message', { at: 1 }, device)
  events.emit('disconnected', device, { code: 1000, reason: '', at: 0 })
  events.emit('delivered', { deviceId: 'd', id: 'l1' })
  events.emit('connected', device)
  t.strictSame(heard.splice(0), [['message', { at: 1 }, 'd'], ['disconnected', 'd', 1000], ['delivered', 'd', 'l1']])
  events.off('message', onMessage)
  events.emit('message', 'no listener is left', device)
  t.strictSame(heard, [])
})

t.test('a listener that fails is logged, and the others still run', async t => {
  const log = fakeLog()
  const events = new Events(log)
  const later = gate()
  const heard: string[] = []
  const device = { id: 'd' } as Device
  const [syncError, asyncError] = [new Error('at once'), new Error('later')]
  events.on('connected', () => { throw syncError })
  events.on('connected', async () => { await later.opened; throw asyncError })
  events.on('connected', async () => {})
  events.on('connected', () => { heard.push('the last one') })
  events.emit('connected', device)
  t.strictSame(heard, ['the last one'])
  t.strictSame(log.lines, [{ level: 'error', fields: { err: syncError, event: 'connected' }, words: 'event listener failed' }])
  later.open()
  await turn()
  t.strictSame(log.lines.slice(1), [{ level: 'error', fields: { err: asyncError, event: 'connected' }, words: 'event listener failed' }])
})

t.test('a listener may remove itself while it runs', async t => {
  const events = new Events(fakeLog())
  const heard: string[] = []
  const first = () => {
    heard.push('first')
    events.off('connected', first)
  }
  events.on('connected', first)
  events.on('connected', () => { heard.push('second') })
  events.emit('connected', { id: 'd' } as Device)
  events.emit('connected', { id: 'd' } as Device)
  t.strictSame(heard, ['first', 'second', 'second'])
})

t.test('a drained device is disconnected once its calls are settled and its output is written, or when time is short', async t => {
  const limits = { drainTimeout: 60_000, closeTimeout: 10, retrySpread: 10 }
  const device = { calls: 1, isBehind: true, left: undefined as object | undefined, end () { this.left = {} } }
  const drained = drain([device as unknown as Session], limits)
  for (const settle of [() => { device.calls = 0 }, () => { device.isBehind = false }]) {
    await sleep(30)
    t.equal(device.left, undefined)
    settle()
  }
  await drained
  t.ok(device.left)
  const never = { ...device, isBehind: true, left: undefined as object | undefined }
  await drain([never as unknown as Session], { ...limits, drainTimeout: 10 })
  t.ok(never.left)
})
