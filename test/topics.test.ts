import { queryObjects } from 'node:v8'
import t from 'tap'
import { EVERYONE_TOPIC, type Backplane, type Listener } from '../lib/cluster/backplane.ts'
import { localBackplane } from '../lib/cluster/local.ts'
import { jsonrpc } from '../lib/protocol/jsonrpc.ts'
import { Frame } from '../lib/connection/frame.ts'
import type { Codec } from '../lib/protocol/message.ts'
import type { Session } from '../lib/connection/session.ts'
import { Subscriptions } from '../lib/messaging/subscriptions.ts'
import { isFilter, isTopic, matches as matchesFilter, Topics } from '../lib/protocol/topics.ts'
import { fakeLog, random, reasonOf } from './fakes.ts'
import { connect, listen } from './support.ts'

const limits = { length: 255, levels: 16 }
const matches = (filter: string, topic: string) => {
  const topics = new Topics<string>()
  topics.add(filter, 'me')
  return topics.match(topic).has('me')
}

t.test('a filter matches a topic as in MQTT', async t => {
  const table: Array<[filter: string, topic: string, matches: boolean]> = [
    ['a', 'a', true],
    ['a', 'b', false],
    ['a', 'A', false],
    ['a', 'a/b', false],
    ['a/b', 'a', false],
    ['a/b', 'a/b', true],
    ['a/', 'a', false],
    ['a/', 'a/', true],
    ['/a', '/a', true],
    ['/a', 'a', false],
    ['a//b', 'a//b', true],
    ['+', 'a', true],
    ['+', 'a/b', false],
    ['a/+', 'a/b', true],
    ['a/+', 'a', false],
    ['a/+', 'a/', true],
    ['a/+', 'a/b/c', false],
    ['+/b', 'a/b', true],
    ['+/+', '/', true],
    ['a/+/c', 'a/b/c', true],
    ['a/+/c', 'a/b/d', false],
    ['a/+/c', 'a/c', false],
    ['#', 'a', true],
    ['#', 'a/b/c', true],
    ['a/#', 'a', true],
    ['a/#', 'a/b', true],
    ['a/#', 'a/b/c', true],
    ['a/#', 'b', false],
    ['a/#', 'ab', false],
    ['a/+/#', 'a', false],
    ['a/+/#', 'a/b', true],
    ['a/+/#', 'a/b/c/d', true],
    ['+/#', 'a', true],
    ['__proto__', '__proto__', true],
    ['constructor', 'a', false]
  ]
  for (const [filter, topic, expected] of table) t.equal(matches(filter, topic), expected, `${filter} and ${topic}`)
})

t.test('wildcards do not match topics that begin with $', async t => {
  t.equal(matches('#', '$letters/n1'), false)
  t.equal(matches('+/n1', '$letters/n1'), false)
  t.equal(matches('+/#', '$letters/n1'), false)
  t.equal(matches('#', EVERYONE_TOPIC), false)
  t.equal(matches(EVERYONE_TOPIC, EVERYONE_TOPIC), true)
  t.equal(matches('$letters/n1', '$letters/n1'), true)
  t.equal(matches('$letters/#', '$letters/n1'), true)
  t.equal(matches('$letters/+', '$letters/n1'), true)
  t.equal(matches('a/#', 'a/$b'), true)
})

t.test('a topic holds no wildcards, a filter holds them as whole levels', async t => {
  const table: Array<[text: unknown, topic: boolean, filter: boolean]> = [
    ['a', true, true],
    ['a/b', true, true],
    ['/', true, true],
    ['ü€ 😀', true, true],
    ['a/$b', true, true],
    ['+', false, true],
    ['a/+/b', false, true],
    ['#', false, true],
    ['a/#', false, true],
    ['+/#', false, true],
    ['#/a', false, false],
    ['a/#/b', false, false],
    ['a#', false, false],
    ['a/b#', false, false],
    ['a/#b', false, false],
    ['##', false, false],
    ['a+', false, false],
    ['+a/b', false, false],
    ['++', false, false],
    ['', false, false],
    ['$a', false, false],
    ['$everyone', false, false],
    ['a\0b', false, false],
    [7, false, false],
    [null, false, false],
    [undefined, false, false],
    [['a'], false, false],
    ['x'.repeat(255), true, true],
    ['x'.repeat(256), false, false],
    [Array(16).fill('a').join('/'), true, true],
    [Array(17).fill('a').join('/'), false, false],
    [`${'a/'.repeat(15)}#`, false, true],
    [`${'+/'.repeat(8)}a`, false, true],
    [`${'+/'.repeat(8)}#`, false, true],
    ['+/'.repeat(8) + '+', false, false],
    [`${'a/'.repeat(8)}+`, false, false],
    [`${'a/'.repeat(16)}#`, false, false]
  ]
  for (const [text, topic, filter] of table) {
    t.equal(isTopic(text, limits), topic, `${JSON.stringify(text)} as a topic`)
    t.equal(isFilter(text, limits), filter, `${JSON.stringify(text)} as a filter`)
  }
  t.equal(isTopic('a/b', { length: 3, levels: 2 }), true)
  t.equal(isTopic('a/b', { length: 2, levels: 2 }), false)
  t.equal(isTopic('a/b', { length: 3, levels: 1 }), false)
})

t.test('adding the first listener of a filter and removing the last one returns true', async t => {
  const topics = new Topics<string>()
  t.equal(topics.add('a/+', 'x'), true)
  t.equal(topics.add('a/+', 'x'), false)
  t.equal(topics.add('a/+', 'y'), false)
  t.equal(topics.add('a', 'x'), true)
  t.equal(topics.size, 3)

  t.equal(topics.remove('a/+', 'nobody'), false)
  t.equal(topics.remove('b', 'x'), false)
  t.equal(topics.remove('a/+/c', 'x'), false)
  t.equal(topics.remove('a/+', 'x'), false, 'y still listens')
  t.equal(topics.remove('a/+', 'x'), false)
  t.equal(topics.size, 2)
  t.strictSame([...topics.match('a/b')], ['y'])
  t.equal(topics.remove('a/+', 'y'), true)
  t.equal(topics.remove('a/+', 'y'), false)
  t.equal(topics.size, 1)
  t.strictSame([...topics.match('a')], ['x'])
})

t.test('to leave a filter changes nothing for those above, below and beside it', async t => {
  const filters = ['a', 'a/b', 'a/b/c', 'a/b/d', 'a/+', 'a/#']
  for (const gone of filters) {
    const topics = new Topics<string>()
    for (const filter of filters) topics.add(filter, filter)
    t.equal(topics.remove(gone, gone), true)
    for (const topic of ['a', 'a/b', 'a/b/c', 'a/b/d', 'a/x']) {
      t.strictSame([...topics.match(topic)].toSorted(), filters.filter(filter => filter !== gone && matchesSlowly(filter, topic)).toSorted(), `${topic} without ${gone}`)
    }
    for (const filter of filters) if (filter !== gone) t.equal(topics.remove(filter, filter), true, `${filter} after ${gone}`)
    t.equal(topics.size, 0)
  }
})

t.test('a listener with several filters that match is found once', async t => {
  const topics = new Topics<string>()
  for (const filter of ['a/b', 'a/+', '+/b', '+/+', '#', 'a/#', 'a/b/#']) topics.add(filter, 'me')
  topics.add('#', 'you')
  t.strictSame([...topics.match('a/b')].toSorted(), ['me', 'you'])
  t.equal(topics.size, 8)
})

t.test('many filters and topics match as they do one by one', async t => {
  const next = random(99)
  const name = (names: string[]) => names[Math.floor(next() * names.length)]!
  const levels = (names: string[]) => Array.from({ length: 1 + Math.floor(next() * 5) }, () => name(names))
  const topics = new Topics<string>()
  const kept = new Map<string, [filter: string, listener: string]>()
  const wrong: unknown[] = []
  let found = 0

  for (let step = 0; step < 4_000; step++) {
    const filter = [...levels(['a', 'b', 'ab', '', '+', '+']), ...(next() < 0.2 ? ['#'] : [])].join('/')
    const listener = name(['x', 'y', 'z'])
    const key = `${filter} ${listener}`
    if (next() < 0.55) {
      const first = [...kept.values()].every(([other]) => other !== filter)
      if (topics.add(filter, listener) !== first) wrong.push(['add', key])
      kept.set(key, [filter, listener])
    } else {
      const last = kept.delete(key) && [...kept.values()].every(([other]) => other !== filter)
      if (topics.remove(filter, listener) !== last) wrong.push(['remove', key])
    }
    const topic = levels(['a', 'b', 'ab', '', 'c']).join('/')
    const expected = new Set([...kept.values()].filter(([filter]) => matchesSlowly(filter, topic)).map(([, listener]) => listener))
    const got = topics.match(topic)
    found += got.size
    if (topics.size !== kept.size || [...got].toSorted().join() !== [...expected].toSorted().join()) wrong.push(['match', topic])
  }
  t.strictSame(wrong, [])
  t.ok(found > 1_000, 'the topics match often enough to mean something')
  for (const [filter, listener] of kept.values()) topics.remove(filter, listener)
  t.equal(topics.size, 0)
})

/** The text of MQTT 4.7, word by word. */
function matchesSlowly (filter: string, topic: string): boolean {
  const pattern = filter.split('/').map((level, at) => {
    const joint = at === 0 ? '' : '/'
    if (level === '#') return at === 0 ? '.*' : '(/.*)?'
    return joint + (level === '+' ? '[^/]*' : level)
  }).join('')
  return new RegExp(`^${pattern}$`).test(topic)
}

const countOf = (constructor: Function) => Number(queryObjects(constructor))

t.test('filters without listeners take no memory', async t => {
  const topics = new Topics<number>()
  const filters = Array.from({ length: 1_000 }, (_, at) => `a/${at % 50}/+/${at}/#`)
  const [maps, sets] = [countOf(Map), countOf(Set)]
  for (const [at, filter] of filters.entries()) topics.add(filter, at)
  t.ok(countOf(Map) > maps + 50)
  t.ok(countOf(Set) > sets + 900)
  for (const [at, filter] of filters.entries()) t.equal(topics.remove(filter, at), true)
  t.ok(countOf(Map) < maps + 30)
  t.ok(countOf(Set) < sets + 100)
  t.equal(topics.size, 0)
})

t.test('levels that only one filter has take no room of their own', async t => {
  const topics = new Topics<number>()
  const maps = countOf(Map)
  for (let at = 0; at < 128; at++) topics.add(Array.from({ length: 16 }, (_, level) => `${at}.${level}`).join('/'), 1)
  t.ok(countOf(Map) < maps + 50, 'for 2,048 levels')
  t.equal(topics.match(Array.from({ length: 16 }, (_, level) => `7.${level}`).join('/')).size, 1)
  t.equal(topics.size, 128)
})

t.test('to match a topic takes a bounded number of steps, whatever devices subscribe to', async t => {
  const topics = new Topics<number>()
  const names = Array.from({ length: 16 }, (_, level) => `level${level}`)
  let filters = 0
  for (let seed = 0; filters < 65_536; seed++) {
    const depth = 1 + seed % 16
    const pattern = seed * 2_654_435_761 >>> 8
    const levels = names.slice(0, depth).map((name, level) => pattern >> level & 1 ? '+' : name)
    const filter = [...levels, ...(depth < 16 ? ['#'] : [])].join('/')
    filters++
    if (isFilter(filter, limits)) topics.add(filter, filters % 512)
  }
  const { get } = Map.prototype
  let steps = 0
  const counting = function (this: Map<unknown, unknown>, key: unknown) {
    steps++
    return get.call(this, key)
  }
  Object.assign(Map.prototype, { get: counting })
  t.teardown(() => Object.assign(Map.prototype, { get }))
  const found = topics.match(names.join('/')).size
  Object.assign(Map.prototype, { get })
  t.ok(found > 400)
  t.ok(steps < 3 * 2_560, `${steps} steps`)
})

/** A device that keeps the frames it is handed. */
class FakeSession {
  readonly topics = new Set<string>()
  readonly frames: Frame[] = []
  readonly id: string
  readonly codec: Codec
  left: object | undefined
  encoded = 0

  constructor (id: string, codec: Codec) {
    this.id = id
    this.codec = codec
  }

  notice (method: string, params: unknown): Frame {
    this.encoded++
    return new Frame(this.codec.encode({ kind: 'notice', method, params })!)
  }

  cast (frame: Frame): void {
    this.frames.push(frame)
  }

  get heard (): unknown[] {
    return this.frames.map(({ payload }) => JSON.parse(payload as string).params)
  }

  get session (): Session {
    return this as unknown as Session
  }
}

function subscribed ({ maxTopics = 8, remote = true } = {}) {
  const codec = jsonrpc()
  const devices = [new FakeSession('x', codec), new FakeSession('y', codec), new FakeSession('z', jsonrpc())]
  const local = localBackplane()
  const watched: string[] = []
  const backplane: Backplane = {
    ...local,
    remote,
    watch (filter, listener) {
      watched.push(filter)
      const unwatch = local.watch(filter, listener)
      return () => {
        watched.splice(watched.indexOf(filter), 1)
        unwatch()
      }
    }
  }
  const everyone = devices.map(({ session }) => session)
  const subscriptions = new Subscriptions(backplane, everyone, { maxTopics, topic: { length: 20, levels: 3 } }, fakeLog())
  return { subscriptions, backplane, watched, x: devices[0]!, y: devices[1]!, z: devices[2]! }
}

t.test('one filter alone matches what the tree of filters matches', async t => {
  for (const filter of ['a', 'a/b', '+', '+/b', 'a/+', '#', 'a/#', 'a/b/#', '+/#', '$x', '$x/#', 'a/+/c', '']) {
    for (const topic of ['a', 'b', 'a/b', 'a/b/c', 'a/', '/b', '$x', '$x/y', '']) {
      const tree = new Topics<true>()
      tree.add(filter, true)
      t.equal(matchesFilter(filter, topic), tree.match(topic).size === 1, `${filter} and ${topic}`)
    }
  }
})

t.test('what is published to a topic reaches those who listen to it, once each', async t => {
  const { subscriptions, backplane, x, y, z } = subscribed()
  subscriptions.join(x.session, ['news/+', 'news/#'])
  subscriptions.join(y.session, ['news/sport'])
  t.equal(subscriptions.size, 3)
  t.strictSame(await backplane.publish({ id: 'm1', topic: 'news/sport', data: { goal: 1 } }), { sent: 2, nodes: 1 })
  t.strictSame(x.heard, [{ id: 'm1', data: { goal: 1 }, topic: 'news/sport' }])
  t.strictSame(y.heard, x.heard)
  t.strictSame(z.heard, [])
})

t.test('a broadcast to everyone reaches devices without filters, and names no topic', async t => {
  const { subscriptions, backplane, x, y, z } = subscribed()
  subscriptions.join(x.session, ['#'])
  t.strictSame(await backplane.publish({ id: 'm1', topic: EVERYONE_TOPIC, data: 'hi' }), { sent: 3, nodes: 1 })
  for (const device of [x, y, z]) t.strictSame(device.heard, [{ id: 'm1', data: 'hi' }])
})

t.test('a late publication reaches only devices that were connected when it was published', async t => {
  const local = localBackplane()
  const listeners = new Map<string, Listener>()
  const watch: Backplane['watch'] = (filter, listener) => {
    listeners.set(filter, listener)
    return local.watch(filter, listener)
  }
  const app = await listen(t, { backplane: { ...local, watch } })
  const hear = listeners.get(EVERYONE_TOPIC)!
  const device = await connect(app.url, 'd')
  await device.ask('subscribe', { topics: ['a'] })
  for (const topic of [EVERYONE_TOPIC, 'a']) {
    t.equal(hear({ id: 'm1', topic, data: 1, age: 60_000 }), 0)
    t.equal(hear({ id: 'm2', topic, data: 2, age: 0 }), 1)
    t.match(await device.next(({ method }) => method === 'message'), { params: { id: 'm2', data: 2 } })
  }
})

t.test('topics of the nodes do not reach devices', async t => {
  const { subscriptions, backplane, x } = subscribed()
  subscriptions.join(x.session, ['#', '+/+'])
  await backplane.publish({ id: 'm1', topic: '$letters/n2', data: { ending: 'delivered' } })
  t.strictSame(x.heard, [])
})

t.test('a message is encoded once for all who speak the same protocol', async t => {
  const { backplane, x, y, z } = subscribed()
  await backplane.publish({ id: 'm1', topic: EVERYONE_TOPIC, data: 'hi' })
  t.equal(x.frames[0], y.frames[0])
  t.not(x.frames[0], z.frames[0])
  t.strictSame([x.encoded, y.encoded, z.encoded], [1, 0, 1])
})

t.test('a node watches a filter as long as one of its devices listens to it', async t => {
  const { subscriptions, backplane, watched, x, y } = subscribed()
  t.strictSame(watched, [EVERYONE_TOPIC])
  subscriptions.join(x.session, ['a', 'b', 'a'])
  subscriptions.join(y.session, ['a'])
  subscriptions.join(y.session, ['a'])
  t.strictSame(watched, [EVERYONE_TOPIC, 'a', 'b'])
  subscriptions.leave(x.session, ['a', 'never joined'])
  t.strictSame(watched, [EVERYONE_TOPIC, 'a', 'b'])
  t.strictSame([...x.topics], ['b'])
  subscriptions.leave(y.session, ['a'])
  t.strictSame(watched, [EVERYONE_TOPIC, 'b'])
  t.strictSame(await backplane.publish({ id: 'm1', topic: 'a', data: null }), { sent: 0, nodes: 0 })
  subscriptions.leave(x.session, [...x.topics])
  t.strictSame(watched, [EVERYONE_TOPIC])
  t.equal(subscriptions.size, 0)
  subscriptions.join(x.session, ['a'])
  t.strictSame(watched, [EVERYONE_TOPIC, 'a'])
  subscriptions.drop(x.session)
  t.strictSame([...x.topics], ['a'], 'who has left is remembered with what it listened to')
  subscriptions.close()
  t.strictSame(watched, [])
})

t.test('within one process all topics are watched as one, and those that nobody listens to are heard by no node', async t => {
  const { subscriptions, backplane, watched, x } = subscribed({ remote: false })
  subscriptions.join(x.session, ['a', 'b/+'])
  t.strictSame(watched, [EVERYONE_TOPIC, '#'])
  t.strictSame(await backplane.publish({ id: 'm1', topic: 'a', data: null }), { sent: 1, nodes: 1 })
  t.strictSame(await backplane.publish({ id: 'm2', topic: 'c', data: null }), { sent: 0, nodes: 0 })
  subscriptions.leave(x.session, ['a'])
  t.strictSame(await backplane.publish({ id: 'm3', topic: 'a', data: null }), { sent: 0, nodes: 0 })
  t.strictSame(x.heard, [{ id: 'm1', data: null, topic: 'a' }])
  subscriptions.close()
  t.strictSame(watched, [])
})

t.test('whether a device listens to a topic is true at any time, also when many are asked in a row', async t => {
  const { subscriptions, x, y } = subscribed()
  subscriptions.join(x.session, ['a/+'])
  const asked = (topic: string) => [x, y].map(({ session }) => subscriptions.listens(session, topic))
  t.strictSame(asked('a/b'), [true, false])
  subscriptions.join(y.session, ['a/b'])
  t.strictSame(asked('a/b'), [true, true])
  t.strictSame(asked('a/c'), [true, false])
  subscriptions.leave(x.session, ['a/+'])
  t.strictSame(asked('a/b'), [false, true])
  subscriptions.drop(y.session)
  t.strictSame(asked('a/b'), [false, false])
})

t.test('a device joins all of the filters, or none', async t => {
  const { subscriptions, watched, x } = subscribed({ maxTopics: 2 })
  const refused: Array<[filters: string[], reason: string]> = [
    [['a', '#/b'], 'bad-topic'],
    [['a', '$letters/n1'], 'bad-topic'],
    [['a', 'x'.repeat(21)], 'bad-topic'],
    [['a', '1/2/3/4'], 'bad-topic'],
    [['a', 'b', 'c'], 'too-many-topics']
  ]
  for (const [filters, reason] of refused) {
    t.equal(await reasonOf(() => subscriptions.join(x.session, filters)), reason)
    t.equal(x.topics.size, 0)
  }
  t.equal(subscriptions.size, 0)
  t.strictSame(watched, [EVERYONE_TOPIC])
})

t.test('a filter that is joined again does not count twice', async t => {
  const { subscriptions, x } = subscribed({ maxTopics: 2 })
  subscriptions.join(x.session, ['a', 'a', 'b'])
  subscriptions.join(x.session, ['b', 'a'])
  t.equal(subscriptions.size, 2)
  t.equal(await reasonOf(() => subscriptions.join(x.session, ['c'])), 'too-many-topics')
  subscriptions.leave(x.session, ['a'])
  subscriptions.join(x.session, ['c'])
  t.strictSame([...x.topics], ['b', 'c'])
})

t.test('a device that has left joins nothing any more', async t => {
  const { subscriptions, watched, x } = subscribed()
  x.left = {}
  t.equal(await reasonOf(() => subscriptions.join(x.session, ['a'])), 'dropped')
  t.equal(subscriptions.size, 0)
  t.strictSame(watched, [EVERYONE_TOPIC])
})
