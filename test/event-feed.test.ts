import t, { type Test } from 'tap'
import type { Backplane, Listener, PresenceChange, Publication, PublishResult } from '../lib/cluster/backplane.ts'
import { localBackplane } from '../lib/cluster/local.ts'
import { Stats } from '../lib/connection/stats.ts'
import { Events } from '../lib/messaging/events.ts'
import { Failure } from '../lib/protocol/errors.ts'
import { EventFeed, FEED_LIMITS, type FeedCursor } from '../lib/observe/event-feed.ts'
import { EventSources } from '../lib/observe/event-sources.ts'
import { EventStream } from '../lib/rest/event-stream.ts'
import { fakeLog, reasonOf, turn, until } from './fakes.ts'

type Limits = Partial<typeof FEED_LIMITS>

/** What joins the nodes of a test: it can lose publications, and report changes of devices. */
class Network {
  readonly #shared = localBackplane()
  readonly #linkListeners = new Set<(up: boolean) => void>()
  readonly #followers = new Set<(change: PresenceChange) => void>()
  /** Publications that are lost. */
  loses: (publication: Publication) => boolean = () => false
  /** Publications that fail, and how. */
  fails: (publication: Publication) => Error | undefined = () => undefined
  /** Holds publications back until it resolves. */
  delay: Promise<void> | undefined
  readonly published: Publication[] = []

  node (): Backplane {
    return {
      ...this.#shared,
      remote: true,
      publish: async publication => await this.#publish(publication),
      watch: (filter: string, listener: Listener) => this.#shared.watch(filter, listener),
      onLink: listener => { this.#linkListeners.add(listener) },
      follow: listener => {
        this.#followers.add(listener)
        return () => { this.#followers.delete(listener) }
      }
    }
  }

  link (up: boolean): void {
    for (const listener of this.#linkListeners) listener(up)
  }

  change (kind: PresenceChange['kind'], deviceId: string, generation: number): void {
    for (const follower of this.#followers) follower({ kind, presence: { deviceId, generation, node: 'b', since: generation } })
  }

  get isFollowed (): boolean {
    return this.#followers.size > 0
  }

  async #publish (publication: Publication): Promise<PublishResult> {
    this.published.push(publication)
    const failure = this.fails(publication)
    if (failure) throw failure
    if (this.loses(publication)) return { sent: 0, nodes: 0 }
    const result = await this.#shared.publish(publication)
    await this.delay
    return result
  }
}

interface Node {
  feed: EventFeed
  log: ReturnType<typeof fakeLog>
  stats: Stats
  emit (deviceId: string, data: unknown): void
  connected (deviceId: string, generation: number): void
  disconnected (deviceId: string, generation: number): void
  /** Whether it builds records of its events. */
  readonly listens: boolean
}

function nodeOn (t: Test, backplane: Backplane, name: string, limits: Limits = {}): Node {
  const log = fakeLog()
  const events = new Events(log)
  const stats = new Stats(log)
  const feed = new EventFeed({ events, backplane, node: name, stats, log, limits: { ...FEED_LIMITS, ...limits } })
  t.teardown(() => feed.close())
  const device = (id: string, generation = 1) => ({ id, generation, since: generation, address: '::1', protocol: 'jsonrpc' }) as any
  return {
    feed,
    log,
    stats,
    emit: (deviceId, data) => { void events.emit('message received', data, device(deviceId)) },
    connected: (deviceId, generation) => { void events.emit('connected', device(deviceId, generation)) },
    disconnected: (deviceId, generation) => { void events.emit('disconnected', device(deviceId, generation), { code: 1000, reason: 'bye', at: 1 }) },
    get listens () { return events.hears('message received') }
  }
}

/** A reader without a connection. */
class Reader {
  readonly cursor: FeedCursor
  text = ''
  isOverrun = false
  hasEnded = false

  constructor (feed: EventFeed, { after, types, isSlow = false }: { after?: string, types?: string[], isSlow?: boolean } = {}) {
    this.cursor = feed.open({ after, types: types && new Set(types) }, {
      wake: () => { if (!isSlow) this.read() },
      overrun: () => { this.isOverrun = true },
      end: () => { this.hasEnded = true }
    })
    if (!isSlow) this.read()
  }

  read (): void {
    for (let chunk = this.cursor.read(); chunk; chunk = this.cursor.read()) this.text += Buffer.from(chunk).toString()
  }

  get events (): any[] {
    return [...this.text.matchAll(/^data: (.*)$/gm)].map(([, json]) => JSON.parse(json!))
  }

  /** Messages as they are, gaps by their reason, and what else there is by its type and device. */
  get seen (): unknown[] {
    return this.events.map(({ type, deviceId, data }) => type === 'message' ? data.message : type === 'gap' ? data.reason : `${type} ${deviceId}`)
  }
}

/** Nothing expires while a test runs. */
const patient: Limits = {}
/** Announcements follow each other fast. */
const fast: Limits = { announceMs: 40, graceMs: 50 }

t.test('nothing listens before the first reader, and nothing is left of the feed some time after the last one', async t => {
  const node = nodeOn(t, localBackplane(), 'a', { retentionMs: 20 })
  node.emit('d', 'before')
  t.notOk(node.listens)
  const reader = new Reader(node.feed)
  t.ok(node.listens)
  node.emit('d', 1)
  await turn()
  t.strictSame(reader.seen, [1])
  const { id } = reader.cursor
  reader.cursor.close()
  reader.cursor.close()
  await until(() => !node.listens)

  const again = new Reader(node.feed, { after: id })
  t.strictSame(again.seen, ['unknown-id'], 'events may have been missed meanwhile')
})

t.test('a reader that comes back in time finds the feed as it was', async t => {
  const node = nodeOn(t, localBackplane(), 'a')
  const reader = new Reader(node.feed)
  reader.cursor.close()
  node.emit('d', 1)
  const again = new Reader(node.feed, { after: reader.cursor.id })
  t.strictSame(again.seen, [1])
})

t.test('events are kept up to their number and their bytes, and a reader that falls behind is told', async t => {
  for (const limits of [{ maxEvents: 3_000 }, { maxBytes: 500_000 }]) {
    const node = nodeOn(t, localBackplane(), 'a', limits)
    const first = new Reader(node.feed)
    const { id } = first.cursor
    const slow = new Reader(node.feed, { isSlow: true })
    const filtered = new Reader(node.feed, { types: ['damaged'] })
    for (let n = 0; n < 6_000; n++) {
      node.emit('d', n)
      if (n % 1_000 === 0) await turn()
    }
    await turn()
    t.strictSame(first.seen, Array.from({ length: 6_000 }, (_, n) => n))
    t.ok(slow.isOverrun)
    t.notOk(filtered.isOverrun, 'it has read all events that are of no use to it')
    slow.cursor.read()
    t.equal(slow.cursor.read(), undefined)
    t.strictSame(new Reader(node.feed, { after: id }).seen, ['unknown-id'])
    t.strictSame(new Reader(node.feed, { after: first.cursor.id }).seen, [])
  }
})

t.test('an event that is larger than all that may be kept reaches its readers', async t => {
  const node = nodeOn(t, localBackplane(), 'a', { maxBytes: 1_000 })
  const reader = new Reader(node.feed)
  for (const size of [10, 5_000, 20]) {
    node.emit('d', 'x'.repeat(size))
    await turn()
  }
  t.strictSame(reader.seen.map(text => (text as string).length), [10, 5_000, 20])
})

t.test('bytes of a message are base64', async t => {
  const node = nodeOn(t, localBackplane(), 'a')
  const reader = new Reader(node.feed)
  node.emit('d', Buffer.from('bytes'))
  await turn()
  t.match(reader.events, [{ type: 'message', deviceId: 'd', data: { base64: 'Ynl0ZXM=' } }])
})

t.test('readers that are level share the bytes that they read', async t => {
  const node = nodeOn(t, localBackplane(), 'a')
  const readers = [new Reader(node.feed, { isSlow: true }), new Reader(node.feed, { isSlow: true })]
  for (const { cursor } of readers) cursor.read()
  node.emit('d', 1)
  t.equal(readers[0]!.cursor.read(), readers[1]!.cursor.read())
})

t.test('too many readers are refused and counted, and all of them once the application closes', async t => {
  const node = nodeOn(t, localBackplane(), 'a', { maxReaders: 1 })
  const reader = new Reader(node.feed)
  t.equal(await reasonOf(() => new Reader(node.feed)), 'too-many-readers')
  t.equal(node.stats.read(0).refusals['too-many-readers'], 1)
  node.feed.close()
  t.ok(reader.hasEnded)
  reader.cursor.close()
  t.equal(await reasonOf(() => new Reader(node.feed)), 'draining')
})

t.test('a node publishes its events while another has readers, and some time longer', async t => {
  const network = new Network()
  const [a, b] = [nodeOn(t, network.node(), 'a', { ...fast, retentionMs: 10 }), nodeOn(t, network.node(), 'b', fast)]
  await until(() => !a.listens && !b.listens)
  const reader = new Reader(a.feed)
  t.ok(b.listens)
  b.emit('d', 1)
  b.connected('d', 1)
  b.disconnected('d', 1)
  await until(() => reader.events.length === 3)
  const late = nodeOn(t, network.node(), 'late', fast)
  late.emit('d', 2)
  await until(() => reader.events.length === 4)
  t.strictSame(reader.seen, [1, 'connected d', 'disconnected d', 2])
  reader.cursor.close()
  await until(() => !a.listens && !b.listens && !late.listens)
})

t.test('a publication that is lost or fails is a gap, and one that is too large too', async t => {
  const network = new Network()
  const [a, b] = [nodeOn(t, network.node(), 'a', patient), nodeOn(t, network.node(), 'b', patient)]
  const reader = new Reader(a.feed)
  b.emit('d', 1)
  await until(() => reader.seen.length === 1)
  network.loses = ({ topic }) => topic === '$events'
  b.emit('d', 'lost')
  await turn()
  network.loses = () => false
  b.emit('d', 2)
  await until(() => reader.seen.length === 3)
  for (const failure of [new Failure('unreachable'), new Failure('too-large')]) {
    network.fails = () => failure
    b.emit('d', 'failed')
    await turn()
    network.fails = () => undefined
    b.emit('d', failure.reason)
    await until(() => reader.seen.at(-1) === failure.reason)
  }
  t.strictSame(reader.seen, [1, 'missed', 2, 'missed', 'unreachable', 'missed', 'too-large'])
  t.match(reader.events[1], { type: 'gap', node: 'a', data: { reason: 'missed', node: 'b' } })
  t.strictSame(b.log.lines.map(({ level, words }) => [level, words]), [['warn', 'events not published to the other nodes']])
})

t.test('events that come faster than the other nodes take them are dropped beyond a bound, which is a gap', async t => {
  const network = new Network()
  const [a, b] = [nodeOn(t, network.node(), 'a', patient), nodeOn(t, network.node(), 'b', patient)]
  const reader = new Reader(a.feed)
  b.emit('d', 'first')
  await until(() => reader.seen.length === 1)
  let release!: () => void
  network.delay = new Promise(resolve => { release = resolve })
  b.emit('d', 'second')
  await until(() => reader.seen.length === 2)
  const text = 'x'.repeat(100_000)
  for (let n = 0; n < 60; n++) b.emit('d', `${n} ${text}`)
  network.delay = undefined
  release()
  await until(() => (reader.seen.at(-1) as string).startsWith('59 '))
  t.equal(reader.seen[2], 'missed')
  const numbers = reader.seen.slice(3).map(seen => Number.parseInt(seen as string, 10))
  t.strictSame(numbers, Array.from({ length: numbers.length }, (_, at) => 60 - numbers.length + at))
  t.ok(numbers.length < 60)
  t.ok(network.published.filter(({ topic, data }) => topic === '$events' && (data as Buffer).length > 100_000).length > 1, 'in several publications')
  t.ok(network.published.every(({ data }) => !(data instanceof Uint8Array) || data.length < 300_000))
  t.match(b.log.lines, [{ level: 'warn', words: 'events dropped: too many wait to be published to the other nodes' }])
})

t.test('a node that becomes silent is a gap, one that closes is none, and what waits is published at the end', async t => {
  const network = new Network()
  const a = nodeOn(t, network.node(), 'a', fast)
  const reader = new Reader(a.feed)
  const [quiet, closing] = [nodeOn(t, network.node(), 'quiet', fast), nodeOn(t, network.node(), 'closing', fast)]
  closing.emit('d', 1)
  closing.feed.close()
  quiet.emit('d', 2)
  await until(() => reader.seen.length === 2)
  network.loses = ({ topic, data }) => topic === '$events' && String(data).includes('"node":"quiet"')
  await until(() => reader.seen.length > 2)
  t.strictSame(reader.seen, [1, 2, 'node-gone'])
  t.match(reader.events[2], { data: { node: 'quiet' } })
  network.loses = () => false
  quiet.emit('d', 3)
  await until(() => reader.seen.includes(3))
  t.strictSame(reader.seen, [1, 2, 'node-gone', 'missed', 3])
})

t.test('a node that was not heard for long, or whose first publications were lost, is a gap', async t => {
  const network = new Network()
  const a = nodeOn(t, network.node(), 'a', fast)
  const reader = new Reader(a.feed)
  const silence = network.published.length
  await until(() => network.published.length > silence + 5) // the time in which any publication may be the first one
  network.loses = ({ topic }) => topic === '$events'
  const b = nodeOn(t, network.node(), 'b', fast)
  b.emit('d', 1)
  await turn()
  network.loses = () => false
  b.emit('d', 2)
  await until(() => reader.seen.includes(2))
  t.strictSame(reader.seen, ['missed', 2])
})

t.test('what a node did not publish between its silence and its return is a gap', t => {
  let time = 0
  t.intercept(performance, 'now', { value: () => time, configurable: true })
  const sources = new EventSources(10_000)
  const publication = (sequence: number) => ({ node: 'b', source: 'b', sequence, isLast: false })
  time = 100
  t.notOk(sources.receive(publication(7)))
  time = 25_200
  t.strictSame(sources.takeSilent(), ['b'])
  time = 26_000
  t.ok(sources.receive(publication(57)))
  t.end()
})

t.test('connections of a device that begin in the same millisecond are each reported', async t => {
  const network = new Network()
  const reader = new Reader(nodeOn(t, network.node(), 'a', patient).feed)
  const b = nodeOn(t, network.node(), 'b', patient)
  for (let connection = 0; connection < 2; connection++) {
    b.connected('d', 1)
    b.disconnected('d', 1)
  }
  const expected = ['connected d', 'disconnected d', 'connected d', 'disconnected d']
  await until(() => reader.seen.length >= 2)
  b.emit('d', 'last')
  await until(() => reader.seen.includes('last'))
  t.strictSame(reader.seen, [...expected, 'last'])
})

t.test('while the other nodes cannot be reached a reader is told, and again when they can', async t => {
  const network = new Network()
  const [a, b] = [nodeOn(t, network.node(), 'a', patient), nodeOn(t, network.node(), 'b', patient)]
  const reader = new Reader(a.feed)
  network.fails = () => new Failure('unreachable')
  network.link(false)
  b.emit('d', 'lost')
  a.emit('d', 'own')
  await turn()
  network.fails = () => undefined
  network.link(true)
  b.emit('d', 'back')
  await until(() => reader.seen.includes('back'))
  t.strictSame(reader.seen, ['cut-off', 'own', 'back', 'back'])
  b.feed.close()
  network.link(false)
  await turn()
  t.strictSame(b.log.lines, [])
})

t.test('what the backplane knows of the devices of other nodes is reported if their nodes do not report it, once', async t => {
  const network = new Network()
  const [a, b] = [nodeOn(t, network.node(), 'a', { graceMs: 50 }), nodeOn(t, network.node(), 'b', patient)]
  const reader = new Reader(a.feed)
  t.ok(network.isFollowed)
  network.change('connected', 'reported', 1)
  b.connected('reported', 1)
  b.disconnected('reported', 1)
  await until(() => reader.events.length === 2)
  network.change('disconnected', 'reported', 1)
  network.change('disconnected', 'late', 2)
  b.disconnected('late', 2)
  network.change('disconnected', 'gone', 3)
  await until(() => reader.events.length === 4)
  b.disconnected('gone', 3)
  network.change('connected', 'gone', 3)
  await until(() => reader.events.length === 5)
  network.change('connected', 'gone', 3)
  b.disconnected('gone', 3)
  network.change('disconnected', 'gone', 5)
  await until(() => reader.events.length === 7)
  network.change('connected', 'gone', 6)
  b.connected('gone', 6)
  await until(() => reader.events.length === 8)
  b.emit('d', 'end')
  await until(() => reader.seen.at(-1) === 'end')
  t.strictSame(reader.seen, [
    'connected reported', 'disconnected reported', 'disconnected late', 'disconnected gone', 'connected gone', 'disconnected gone',
    'disconnected gone', 'connected gone', 'end'
  ])
  t.match(reader.events[3], { node: 'b', deviceId: 'gone', generation: 3, data: { code: 1006, reason: 'its node is gone or was cut off' } })
  t.match(reader.events[4], { node: 'b', deviceId: 'gone', generation: 3, data: { since: 3 } })
})

t.test('more devices that vanish at once than can be remembered are a gap', async t => {
  const network = new Network()
  const a = nodeOn(t, network.node(), 'a', { graceMs: 50 })
  const reader = new Reader(a.feed)
  for (let n = 0; n <= 10_000; n++) network.change('disconnected', `first-${n}`, 1)
  await until(() => reader.seen.length === 10_001)
  t.equal(reader.seen[0], 'overflow')
  for (let n = 0; n <= 10_000; n++) network.change('disconnected', `second-${n}`, 1)
  await until(() => reader.seen.length === 20_002)
  t.equal(new Set(reader.seen).size, 20_001)
})

t.test('within one process nodes hear of each other at once, and no gap is reported', async t => {
  const backplane = localBackplane()
  const [a, b] = [nodeOn(t, backplane, 'a', fast), nodeOn(t, backplane, 'b', fast)]
  t.notOk(b.listens)
  const reader = new Reader(a.feed)
  const late = nodeOn(t, backplane, 'late', fast)
  t.ok(b.listens && late.listens)
  for (const node of [b, late]) node.emit('d', 1)
  await until(() => reader.seen.length === 2)
  t.strictSame(reader.seen, [1, 1])
})

t.test('a client that takes nothing between two keep-alives is disconnected, and one that takes something is not', async t => {
  const node = nodeOn(t, localBackplane(), 'a')
  const streamOf = () => new EventStream({ open: reader => node.feed.open({ types: undefined, after: undefined }, reader), onEnd: () => {}, keepAliveMs: 20 })
  const [idle, stuck, slow] = [streamOf(), streamOf(), streamOf()]
  t.teardown(() => { for (const stream of [idle, stuck, slow]) stream.destroy() })
  let text = ''
  idle.on('data', chunk => { text += chunk })
  const failure = new Promise<Error>(resolve => stuck.once('error', resolve))
  stuck.read(0)
  slow.read(0)
  const reading = setInterval(() => slow.read(1), 5)
  t.teardown(() => clearInterval(reading))
  for (let n = 0; n < 100; n++) node.emit('d', 'x'.repeat(10_000))
  t.match(await failure, { message: 'This reader of events reads nothing' })
  t.notOk(slow.destroyed)
  await until(() => text.split(': keep-alive\n').length > 3)
  t.match(text, /: keep-alive\nid: \S+-100\n\n/)
})

t.test('a stream whose place is no longer kept ends with an error, and a feed that closes ends a stream that still has something to read', async t => {
  const node = nodeOn(t, localBackplane(), 'a', { maxEvents: 10 })
  const streamOf = () => new EventStream({ open: reader => node.feed.open({ types: undefined, after: undefined }, reader), onEnd: () => {} })
  const late = streamOf()
  const failure = new Promise<Error>(resolve => late.once('error', resolve))
  for (let n = 0; n < 20; n++) node.emit('d', n)
  t.match(await failure, { message: 'This reader of events is too slow' })
  const stream = streamOf()
  node.emit('d', 'last')
  node.feed.close()
  let text = ''
  for await (const chunk of stream) text += chunk
  t.match(text, /"message":"last"/)
})
