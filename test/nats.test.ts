import { writeFileSync } from 'node:fs'
import { join as inFolder } from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import { jetstreamManager } from '@nats-io/jetstream'
import { connect } from '@nats-io/transport-node'
import t, { type Test } from 'tap'
import type { Answer, Backplane, PresenceChange, ListPage, Request } from '../lib/cluster/backplane.ts'
import { Failure } from '../lib/protocol/errors.ts'
import { nats, natsBackplane, natsMailbox, type NatsBackplaneOptions } from '../lib/nats/index.ts'
import { ExpiryIndex } from '../lib/nats/expiry-index.ts'
import { Requests } from '../lib/nats/requests.ts'
import { RecordAudit } from '../lib/nats/record-audit.ts'
import { FirstLetters } from '../lib/nats/first-letters.ts'
import { LatenessTracker } from '../lib/nats/lateness.ts'
import { Membership } from '../lib/nats/membership.ts'
import { ownerRecordOf } from '../lib/nats/owner-record.ts'
import { OwnershipTable } from '../lib/nats/ownership.ts'
import { RetryQueue } from '../lib/nats/retry-queue.ts'
import type { StoredRecord } from '../lib/nats/stream-store.ts'
import { subjectOf, textOf, token } from '../lib/nats/subjects.ts'
import { decode, encode } from '../lib/cluster/encoding.ts'
import { NatsServer } from './campaigns/nats.ts'
import { freePort } from './campaigns/port.ts'
import { backplaneContract } from './contracts/backplane.ts'
import { letter, mailboxContract } from './contracts/mailbox.ts'
import { advanceClock, all, Connection, countKept, gate, reasonOf, until } from './fakes.ts'
import { withProgram } from './programs.ts'

const wake: Request = { kind: 'wake' }
const plenty = { letters: 1_000, bytes: 1_000_000 }

t.test('of much work that fails, only a part is tried before the next delay, and all is done in the end', async t => {
  const [troubles, done] = [[] as unknown[], new Set<number>()]
  let [fails, tries] = [true, 0]
  const queue = new RetryQueue<number>({ up: true, trouble: (error: unknown) => troubles.push(error) } as never, async item => {
    tries++
    if (fails) throw new Failure('timeout')
    done.add(item)
    return true
  })
  queue.add(Array.from({ length: 1_000 }, (_, at) => at))
  await until(() => troubles.length === 1)
  t.ok(tries < 1_000, `${tries} tries`)
  fails = false
  await until(() => done.size === 1_000)
  t.equal(troubles.length, 1, 'reported once')
})

t.test('a token has no special characters of a subject, and differs for each text', async t => {
  const texts = ['', '=', '.', '*', '>', 'a.b', 'a b', '$SYS', 'a=b', 'a%b', 'ü€😀', '~-_!\'()', 'a', 'A', '=2E', '\n']
  for (const text of texts) {
    t.match(token(text), /^[A-Za-z0-9=_-]+$/)
    t.equal(textOf(token(text)), text)
  }
  t.equal(new Set(texts.map(token)).size, texts.length)
})

t.test('a topic of any length maps to a subject', async t => {
  t.equal(subjectOf('a/b.c'), 'topic.a.b=2ec.==')
  t.equal(subjectOf('+/#'), 'topic.*.>')
  t.equal(subjectOf('#'), 'topic.>')
  t.equal(subjectOf('$everyone'), 'own.=24everyone.==')
  const long = subjectOf(`${'ü'.repeat(255)}/b`)
  t.ok(long.length < 100)
  t.not(long, subjectOf(`${'ö'.repeat(255)}/b`))
  const levels = (count: number) => Array.from({ length: count }, (_, at) => `l${at}`).join('/')
  t.equal(subjectOf(levels(17)), subjectOf(levels(18)))
  t.equal(subjectOf(`${levels(17)}/#`), subjectOf(levels(17)))
})

t.test('a message that cannot be encoded fails with bad-params', async t => {
  t.equal(await reasonOf(() => encode({ data: 1n })), 'bad-params')
  t.strictSame(decode(encode({ params: { data: new Uint8Array([10, 0, 10]), more: 'ü' } })), { params: { data: Buffer.from([10, 0, 10]), more: 'ü' } })
})

t.test('a handler of a worker has the longest timeout that a timer supports', async t => {
  const times: number[] = []
  const link = { up: true, request: async (_name: string, _payload: Uint8Array, time: number) => { times.push(time) } }
  const requests = new Requests(link as never, {} as never, { last: async () => undefined } as never)
  const connection = { id: 'd', node: 'n', generation: 1, since: 0, protocol: 'jsonrpc', topics: [], credentials: {} }
  await requests.ask('$worker/w', { kind: 'answer', method: 'm', params: {}, turn: 0, connection })
  await requests.ask('d', { kind: 'call', method: 'm', params: {}, timeout: 300_000 })
  t.strictSame(times, [2_147_483_647, 300_500])
})

t.test('a call ends within its timeout, including the lookup and the second attempt', async t => {
  const times: number[] = []
  const link = {
    up: true,
    request: async (_name: string, payload: Uint8Array) => {
      times.push((decode(payload) as { timeout: number }).timeout)
    }
  }
  const nodes = { alive: () => true }
  let look: () => Promise<unknown> = () => sleep(100, { subject: 'd', seq: 1, data: Buffer.from('{"home":"n"}') })
  const requests = new Requests(link as never, nodes as never, { last: () => look() } as never)
  const call: Request = { kind: 'call', method: 'm', params: {}, timeout: 10_000 }
  t.equal(await reasonOf(requests.ask('d', call)), 'unreachable', 'a live node has the device, but NATS servers may have lost each other')
  t.equal(times[0], 10_000)
  t.ok(times[1]! <= 9_901, 'the second attempt has the time left of the first')
  t.equal(await reasonOf(requests.ask('d', { kind: 'call', method: 'm', params: {}, timeout: 50 })), 'timeout', 'there is no second attempt after the timeout')
  look = () => new Promise(() => {})
  t.equal(await reasonOf(requests.ask('d', { kind: 'call', method: 'm', params: {}, timeout: 1 })), 'timeout')
})

t.test('a wake-up is given up only when no record names an owner any more', async t => {
  const link = { up: true, request: async () => undefined }
  let record: object | undefined = { subject: 'd', seq: 1, data: Buffer.from('{"home":"n"}') }
  const requests = new Requests(link as never, { alive: () => false } as never, { last: async () => record } as never)
  t.equal(await reasonOf(requests.ask('d', wake)), 'unreachable', 'the node is taken for dead, and may come back')
  t.equal(await requests.ask('d', { kind: 'describe' }), undefined)
  record = undefined
  t.equal(await requests.ask('d', wake), undefined)
})

t.test('a suspended owner is waited for until the timeout of the request, and briefly if the request has none', async t => {
  const looks: string[] = []
  const running = setInterval(() => {}, 1_000)
  t.teardown(() => clearInterval(running))
  const link = {
    up: true,
    request: async (_name: string, payload: Uint8Array, timeout: number) => {
      const { kind } = decode(payload) as { kind: string }
      if (kind !== 'probe') return await new Promise((_resolve, reject) => { if (timeout < 2_000) setTimeout(() => reject(new Failure('timeout')), timeout) })
      looks.push(kind)
      throw new Failure('timeout')
    }
  }
  const requests = new Requests(link as never, {} as never, {} as never)
  t.strictSame(await requests.ask('d', { kind: 'send', id: 'm', data: 1 }), { ok: false, reason: 'timeout' })
  t.equal(looks.length, 2)
  t.equal(await reasonOf(requests.ask('d', { kind: 'call', method: 'm', params: {}, timeout: 500 })), 'timeout')
  t.ok(looks.length > 4, 'it is probed repeatedly')
})

t.test('the expiry index returns due letters in order, and is bounded', async t => {
  const now = Date.now()
  const expiries = new ExpiryIndex()
  const at = (expiresAt: number, letterId: string) => ({ deviceId: 'd', letterId, expiresAt })
  for (const [expiresAt, id] of [[now + 1_500, 'b'], [now, 'a'], [now + 10, 'c'], [now + 8_000_000, 'far']] as const) expiries.add(at(expiresAt, id))
  expiries.add(at(now, 'a'))
  t.strictSame(expiries.until(now + 9_000_000).map(({ letterId }) => letterId), ['a', 'c', 'b'])
  t.strictSame(expiries.until(now).map(({ letterId }) => letterId), ['a'])
  for (const one of expiries.until(now + 9_000_000)) expiries.remove(one)
  expiries.remove(at(now, 'a'))
  t.strictSame(expiries.until(now + 9_000_000), [])
  for (let count = 0; count < 100_010; count++) expiries.add(at(now, String(count)))
  t.equal(expiries.until(now).length, 100_000)
})

/** A fake bucket, link and membership under the control of a test, for races that are rare over NATS. */
function stage (t: Pick<Test, 'teardown'>) {
  const stored = new Map<string, StoredRecord>()
  const heard = new Map<string, (message: any) => void>()
  const lapses: Array<() => void> = []
  const replies: unknown[] = []
  const told: PresenceChange[] = []
  const script: { seq: number, before: (what: 'last' | 'append' | 'erase' | 'request') => Promise<void>, written: () => void } = {
    seq: 0, before: async () => {}, written () {}
  }
  const link = {
    up: true,
    troubles: [] as unknown[],
    published: [] as Array<{ name: string, payload: unknown }>,
    heard,
    publish: (name: string, payload: Uint8Array) => { link.published.push({ name, payload: decode(payload) }) },
    trouble: (error: unknown) => { link.troubles.push(error) },
    request: () => script.before('request'),
    reply: (_message: unknown, payload: unknown) => { replies.push(payload) },
    subscribe (name: string, hear: (message: any) => void) {
      heard.set(name, hear)
      return { end () {} }
    }
  }
  const nodes = { self: 'self', alive: (node: string) => node !== 'dead', check () {}, onLapse: (lapse: () => void) => lapses.push(lapse) }
  const records = {
    async last (subject: string) {
      await script.before('last')
      return stored.get(subject)
    },
    async append (subject: string, data: string, { after }: { after?: number }) {
      await script.before('append')
      if (after !== undefined && stored.get(subject)?.seq !== after) return undefined
      stored.set(subject, { seq: ++script.seq, subject, data: Buffer.from(data) })
      script.written()
      return { seq: script.seq, fresh: true }
    },
    subjects: async () => Object.fromEntries([...stored.keys()].map(subject => [`bucket.${subject}`, 1])),
    async erase (subject: string, seq: number, isExpected: (one: StoredRecord) => boolean) {
      await script.before('erase')
      const one = stored.get(subject)
      return one?.seq === seq && isExpected(one) && stored.delete(subject)
    }
  }
  const owners = new OwnershipTable(link as any, nodes as any, records as any, change => told.push(change))
  t.teardown(() => owners.close())
  /** Writes a record of a connection of another node, which has seen all earlier records unless `after` is given. */
  const foreign = (since = 0, after = script.seq) => {
    stored.set('d', { seq: ++script.seq, subject: 'd', data: Buffer.from(JSON.stringify({ node: 'c', since, home: 'c', claim: `c${script.seq}`, after })) })
    return script.seq
  }
  const say = (word: object) => heard.get('device.d')!({ data: encode(word) })
  const demand = (word: object) => heard.get('node.self.yield')!({ data: encode(word) })
  return { owners, link, nodes, records, script, stored, lapses, replies, told, foreign, say, demand }
}

const heldBy = (stored: Map<string, StoredRecord>) => stored.has('d') ? ownerRecordOf(stored.get('d')!).node : undefined

t.test('a new connection replaces an owner only after its device has confirmed that it is alive, before each attempt', async t => {
  const { owners, script, stored, foreign, told } = stage(t)
  const newest = new Connection('d', 'a')
  let asked = 0
  newest.confirm = async () => {
    asked++
    if (asked === 2) throw new Failure('departed')
  }
  await (await owners.own('e', new Connection('e', 'a', 1))).release()
  t.equal(asked, 0, 'a device without an owner is not asked')
  told.length = 0
  foreign()
  // a newer connection comes meanwhile, and the device has left
  script.before = async what => { if (what === 'append') foreign() }
  t.equal(await reasonOf(owners.own('d', newest)), 'departed')
  t.equal(asked, 2)
  t.equal(heldBy(stored), 'c')
  t.strictSame(told, [])
})

t.test('a device is admitted while the bucket is unreachable, even with the link up', async t => {
  const { owners, link, script, stored, told } = stage(t)
  script.before = async what => { if (what !== 'request') throw new Failure('unreachable') }
  const owner = new Connection('d', 'a')
  const { generation } = await owners.own('d', owner)
  t.ok(generation > 0)
  await until(() => link.troubles.length > 0)
  const [second, gone] = [new Connection('d', 'b', Date.now() + 1), new Connection('d', 'c')]
  gone.confirm = async () => { throw new Failure('departed') }
  t.equal(await reasonOf(owners.own('d', gone)), 'departed', 'a handshake that was given up takes nothing')
  t.equal(owner.yielded, 0)
  await owners.own('d', second)
  t.equal(owner.yielded, 1)
  script.before = async () => {}
  await until(() => stored.size === 1 && told.length > 0)
  t.equal(heldBy(stored), 'b')
  t.equal(second.yielded, 0)
  t.strictSame(link.troubles.length, 1, 'repeated failures are reported once')
})

t.test('a record whose write was not confirmed is found, or erased', async t => {
  const { owners, link, script, stored, told } = stage(t)
  let looks = 0
  script.before = async what => { if (what === 'last' && ++looks === 2) throw new Failure('unreachable') }
  const { generation, release } = await owners.own('d', new Connection('d', 'a'))
  t.equal(generation, stored.get('d')!.seq, 'the generation is the place of the record, whatever failed after that')
  await release()
  t.equal(stored.size, 0)
  t.strictSame(told.map(({ kind }) => kind), ['connected', 'disconnected'])

  // a write whose answer was lost is announced like any other
  told.length = link.published.length = 0
  script.before = async () => {}
  script.written = () => {
    script.written = () => {}
    throw new Failure('unreachable')
  }
  const unanswered = await owners.own('d', new Connection('d', 'a'))
  await until(() => told.length > 0)
  t.match(told, [{ kind: 'connected', presence: { generation: stored.get('d')!.seq } }])
  t.match(link.published, [{ name: 'device.d', payload: { kind: 'compare', generation: stored.get('d')!.seq } }])
  await unanswered.release()

  // a record that cannot be erased for a while delays no other
  const ids = ['x', 'y', 'z']
  const owned = await Promise.all(ids.map(id => owners.own(id, new Connection(id, 'a'))))
  const { seq } = stored.get('x')!
  let broken = true
  script.before = async what => { if (what === 'erase' && broken && stored.get('x')?.seq === seq) throw new Failure('unreachable') }
  const releasing = owned[0]!.release()
  await releasing
  t.ok(stored.has('x'))
  broken = false
  for (const { release } of owned) await release()
  await until(() => stored.size === 0)
})

t.test('a record without a connection on its node is erased, one with a connection stays', async t => {
  const { owners, stored, told } = stage(t)
  const { generation } = await owners.own('d', new Connection('d', 'a'))
  const held = ownerRecordOf(stored.get('d')!)
  stored.set('e', { ...stored.get('d')!, seq: 99, subject: 'e', data: Buffer.from(JSON.stringify({ node: 'a', since: 1, home: 'self', claim: 'late' })) })
  told.length = 0
  await owners.disown([held, ownerRecordOf(stored.get('e')!), { ...held, claim: 'gone', generation: 7 }])
  t.strictSame([...stored.keys()], ['d'])
  t.strictSame(told, [{ kind: 'disconnected', presence: { deviceId: 'e', node: 'a', generation: 99, since: 1 } }])
  t.equal(stored.get('d')!.seq, generation)
})

t.test('a node that was taken for dead is notified when it is heard again, and then verifies its devices', async t => {
  const { now } = performance
  let later = 0
  performance.now = () => now.call(performance) + later
  const published: string[] = []
  let hear!: (message: { string: () => string }) => void
  const heard = (beat: string) => hear({ string: () => beat })
  const link = {
    up: true,
    onChange () {},
    subscribe: (_name: string, listener: typeof hear) => { hear = listener },
    publish (_name: string, beat: string) {
      published.push(beat)
      heard(beat)
    }
  }
  const nodes = new Membership(link as any)
  t.teardown(() => {
    performance.now = now
    nodes.close()
  })
  let lapses = 0
  nodes.onLapse(() => { lapses++ })
  heard('+other')
  t.equal(nodes.alive('other'), true)
  later = 4_000
  heard(`+${nodes.self}`) // only the other one fell silent
  await until(() => lapses === 1)
  t.equal(nodes.alive('other'), false)
  published.length = 0
  heard('+other')
  heard('+other')
  t.strictSame(published.filter(beat => !beat.startsWith('+')), ['!other'])
  t.equal(lapses, 1)
  heard(`!${nodes.self}`)
  t.equal(lapses, 2)
  heard('!other')
  t.equal(lapses, 2)
  // the number of remembered dead nodes is bounded
  for (let count = 0; count <= 1_000; count++) heard(`+n${count}`)
  later = 8_000
  heard(`+${nodes.self}`)
  await until(() => lapses === 2 + 1_002)
  published.length = 0
  for (const node of ['n0', 'n1', 'n1000']) heard(`+${node}`)
  t.equal(published.filter(beat => beat.startsWith('!')).length, 2)
})

t.test('lateness is measured against the fastest message of the same node, independent of its clock', async t => {
  const { now } = performance
  let later = 0
  performance.now = () => later
  t.teardown(() => { performance.now = now })
  const lateness = new LatenessTracker()
  t.equal(lateness.of('n', 5), 0, 'the lateness of an unknown node is 0')
  const ahead = 1_000_000
  for (; later < 30_000; later += 500) lateness.note('n', later + ahead - 20)
  t.equal(lateness.of('n', later + ahead - 20), 0)
  later += 8_000
  // messages that were held back arrive first, all at once
  lateness.note('n', 30_000 + ahead - 20)
  t.equal(lateness.of('n', 30_000 + ahead - 20), 8_000)
  // the clock of a machine that was suspended has a new offset
  for (const until = later + 5_000; later < until; later += 500) lateness.note('n', later + ahead - 8_020)
  t.equal(lateness.of('n', later + ahead - 8_020), 0)
  lateness.forget('n')
  t.equal(lateness.of('n', 0), 0)
})

t.test('an audit erases the records of dead nodes one by one, and sends those of live nodes to them', async t => {
  const { link, nodes, records, owners, script, stored, told } = stage(t)
  const record = (id: string, home: string) => stored.set(id, { seq: ++script.seq, subject: id, data: Buffer.from(JSON.stringify({ node: home, since: 1, home, claim: id })) })
  const ids = ['d1', 'd2', 'd3']
  for (const id of ids) record(id, 'dead')
  record('d4', 'other')
  let die!: () => void
  const warned: string[] = []
  const living = { ...nodes, leads: true, onDeath: (listener: () => void) => { die = listener }, warn: (node: string) => { warned.push(node) } }
  let refusals = 2
  script.before = async what => { if (what === 'erase' && refusals-- > 0) throw new Failure('unreachable') }
  const audit = new RecordAudit(link as any, living as any, records as any, owners, change => told.push(change))
  t.teardown(() => audit.close())
  die()
  die()
  await until(() => stored.size === 1)
  t.strictSame(told.map(({ presence }) => presence.deviceId).toSorted(), ids)
  t.equal(link.troubles.length, 1)
  await until(() => link.published.length > 0)
  t.match(link.published[0], { name: 'node.other.audit', payload: [{ deviceId: 'd4', claim: 'd4', generation: 4 }] })
  t.strictSame(warned, [])
  // a dead node comes back while its records are erased
  record('d5', 'dead')
  script.before = async what => { if (what === 'erase') living.alive = () => true }
  die()
  await until(() => warned.length > 0)
  t.strictSame(warned, ['dead'])
  // a node erases a record that belongs to none of its connections
  record('d6', 'self')
  link.heard.get('node.self.audit')!({ data: encode([ownerRecordOf(stored.get('d6')!)]) })
  await until(() => !stored.has('d6'))
})

t.test('an audit reads many records in steps, at once behind a dead node and slowly otherwise', async t => {
  const { link, nodes, records, owners, stored, told } = stage(t)
  const fill = (home: string) => {
    for (let seq = 1; seq <= 150; seq++) stored.set(`d${seq}`, { seq, subject: `d${seq}`, data: Buffer.from(JSON.stringify({ node: home, since: 1, home, claim: `c${seq}` })) })
  }
  let die = () => {}
  const living = { ...nodes, leads: true, onDeath: (listener: () => void) => { die = listener }, warn () {} }
  const audit = new RecordAudit(link as any, living as any, records as any, owners, change => told.push(change))
  t.teardown(() => audit.close())
  fill('dead')
  die()
  await until(() => stored.size === 0)
  t.equal(told.length, 150)
  fill('other')
  const shown = () => new Set(link.published.flatMap(({ payload }) => (payload as Array<{ deviceId: string }>).map(({ deviceId }) => deviceId))).size
  await until(() => shown() > 0)
  t.equal(shown(), 64)
  await until(() => shown() === 150)
})

t.test('many devices that came while the bucket was unreachable all get their records once it is back', async t => {
  const { owners, script, stored } = stage(t)
  script.before = async () => { throw new Failure('unreachable') }
  const ids = Array.from({ length: 150 }, (_, at) => `d${at}`)
  for (const id of ids) await owners.own(id, new Connection(id, 'a'))
  await new Promise(resolve => setImmediate(resolve))
  script.before = async () => {}
  await until(() => stored.size === ids.length)
  t.strictSame([...stored.keys()].toSorted(), ids.toSorted())
})

t.test('an older record that NATS brings back takes no device from a newer owner', async t => {
  const { owners, stored, lapses, foreign } = stage(t)
  foreign()
  const older = stored.get('d')!
  const newer = new Connection('d', 'a')
  const asked: string[] = []
  newer.reply = ({ kind }) => {
    asked.push(kind)
    return { ok: true, value: null }
  }
  const { generation } = await owners.own('d', newer)
  t.ok(generation > older.seq)
  t.strictSame(asked, [])
  // servers that lost each other may go back to an earlier state
  stored.set('d', older)
  lapses[0]!()
  await until(() => newer.yielded > 0 || stored.get('d') !== older)
  t.equal(newer.yielded, 0)
  t.equal(heldBy(stored), 'a')
  t.ok(stored.get('d')!.seq > generation)
  await until(() => asked.length > 0)
  t.strictSame(asked, ['wake'], 'the device is woken for letters put meanwhile')

  // a newer record does not count as older because its position is reused
  foreign(Date.now() + 1_000)
  stored.set('d', { ...stored.get('d')!, seq: older.seq })
  lapses[0]!()
  await until(() => newer.yielded > 0)
  t.equal(heldBy(stored), 'c')
})

t.test('a record that is written late, after the same one as that of a newer owner, takes no device from it', async t => {
  for (const hasOlder of [false, true]) {
    const { owners, stored, foreign, say, link } = stage(t)
    const older = hasOlder ? foreign() : 0
    const newer = new Connection('d', 'a')
    const { generation } = await owners.own('d', newer)
    const compare = { name: 'device.d', payload: { kind: 'compare', generation } }
    t.strictSame(link.published.filter(({ name }) => name === compare.name), [compare], 'others are told to compare themselves')
    const late = foreign(0, older)
    say({ kind: 'compare', generation: late })
    await until(() => newer.yielded > 0 || stored.get('d')!.seq > late)
    t.equal(newer.yielded, 0)
    t.equal(heldBy(stored), 'a')
    say({ kind: 'compare', generation })
    say({ kind: 'compare', generation: foreign(Date.now() + 1_000, older) })
    await until(() => newer.yielded > 0)
    t.equal(heldBy(stored), 'c')
  }
})

t.test('of two connections on one node whose records NATS accepted after the same one, one survives', async t => {
  const { owners, records, script, stored, foreign } = stage(t)
  foreign()
  // the older one waits for the node of the first owner to yield, and looks before the record of the newer one is erased
  script.before = async what => {
    if (what === 'request' && heldBy(stored) === 'older') await until(() => appends === 3)
    if (what === 'erase') await until(() => appends === 4 || older.yielded > 0)
  }
  const [older, newer] = [new Connection('d', 'older', 1), new Connection('d', 'newer', 2)]
  const [olderMayWrite, newerMayWriteAgain] = [gate(), gate()]
  const { append, last } = records
  let appends = 0
  records.append = async (subject, data, options) => {
    const count = ++appends
    if (count === 1) await olderMayWrite.opened
    if (count === 3) await newerMayWriteAgain.opened
    return await append(subject, data, count === 1 ? {} : options)
  }
  records.last = async subject => {
    if (appends === 2 && heldBy(stored) === 'newer') {
      olderMayWrite.open()
      await until(() => heldBy(stored) === 'older')
    } else if (newer.yielded > 0 && appends === 3) {
      newerMayWriteAgain.open()
      await until(() => heldBy(stored) === 'newer')
    }
    return await last(subject)
  }
  const owning = [owners.own('d', older)]
  await until(() => appends === 1)
  owning.push(owners.own('d', newer))
  await Promise.all(owning)
  await until(() => heldBy(stored) === 'older' || older.yielded > 0)
  t.strictSame([older.yielded, newer.yielded], [0, 1])
  t.strictSame([...owners.after('')].map(({ presence }) => presence.node), ['older'])
})

t.test('nothing is kept of connections that came and left while NATS was away', async t => {
  const { owners, link, script } = stage(t)
  script.before = async () => { throw new Failure('unreachable') }
  link.up = false
  const left: Array<WeakRef<Connection>> = []
  for (let count = 0; count < 10; count++) {
    const connection = new Connection('d', 'a')
    left.push(new WeakRef(connection))
    await (await owners.own('d', connection)).release()
  }
  await until(() => countKept(left) <= 1)
  t.ok(countKept(left) <= 1)
})

t.test('the first letters of a device are appended one at a time', async t => {
  const letters = new FirstLetters()
  const first = letters.acquire('d')
  t.equal(letters.acquire('d'), first)
  const appending = gate<string>()
  const outcomes = [first.once(0, () => appending.opened), first.once(0, async () => 'b')]
  appending.open('a')
  t.strictSame(await Promise.all(outcomes), ['a', undefined])
  t.equal(await first.once(0, async () => 'c'), undefined, 'another one came first')
  const failing = gate<string>()
  const failed = [first.once(1, () => failing.opened), first.once(1, async () => 'd')]
  failing.fail(new Failure('unreachable'))
  t.equal(await reasonOf(failed[0]!), 'unreachable')
  t.equal(await failed[1], undefined)
  t.equal(await first.once(2, async () => 'e'), 'e')
  letters.release('d')
  letters.release('d')
  t.not(letters.acquire('d'), first, 'nothing is kept of a device without puts')
})

t.test('of two provisional owners the newer one wins, although NATS accepted both records as the first', async t => {
  const { owners, script, stored, foreign } = stage(t)
  script.before = async what => { if (what === 'append') throw new Failure('unreachable') }
  const newer = new Connection('d', 'a')
  await owners.own('d', newer)
  script.written = () => {
    script.written = () => {}
    foreign()
  }
  script.before = async () => {}
  await until(() => newer.yielded > 0 || (script.seq > 2 && heldBy(stored) === 'a'))
  t.equal(newer.yielded, 0)
  t.equal(heldBy(stored), 'a')
})

t.test('a provisional owner that is told to yield is compared with the record', async t => {
  const { owners, script, foreign, demand } = stage(t)
  script.before = async what => { if (what !== 'request') throw new Failure('unreachable') }
  const connection = new Connection('d', 'a')
  await owners.own('d', connection)
  demand({ deviceId: 'd', generation: 1_000 })
  t.equal(connection.yielded, 0, 'its generation cannot be compared')
  foreign(Date.now() + 1_000)
  script.before = async () => {}
  await until(() => connection.yielded === 1)
})

t.test('a provisional owner stays if the device gives the newer connection up at once', async t => {
  const { owners, script, stored, foreign } = stage(t)
  script.before = async what => { if (what !== 'request') throw new Failure('unreachable') }
  const connection = new Connection('d', 'a')
  await owners.own('d', connection)
  let looks = 0
  script.before = async what => {
    // its node has noticed that the device is gone
    if (what === 'last' && ++looks === 2) stored.delete('d')
  }
  foreign(Date.now() + 1_000)
  await until(() => heldBy(stored) === 'a' || connection.yielded > 0)
  t.equal(connection.yielded, 0)
})

t.test('owned devices are compared with their records continuously', async t => {
  const { owners, stored, foreign } = stage(t)
  const [erased, taken] = [new Connection('e', 'a'), new Connection('d', 'a')]
  await owners.own('e', erased)
  await owners.own('d', taken)
  stored.delete('e')
  foreign()
  await until(() => stored.has('e') && taken.yielded === 1)
  t.equal(erased.yielded, 0)
})

t.test('a demand to compare that comes during a comparison is not lost', async t => {
  const { owners, records, foreign, say } = stage(t)
  const connection = new Connection('d', 'a')
  await owners.own('d', connection)
  const answering = gate()
  const { last } = records
  let looks = 0
  records.last = async subject => {
    const found = await last(subject)
    if (++looks === 1) await answering.opened // what was read is out of date when the answer comes
    return found
  }
  say({ kind: 'compare', generation: 1_000 })
  await until(() => looks === 1)
  say({ kind: 'compare', generation: foreign(Date.now() + 1_000) })
  answering.open()
  // sooner than the next look at all records
  for (let turns = 0; turns < 20; turns++) await new Promise(resolve => setImmediate(resolve))
  t.equal(connection.yielded, 1)
})

t.test('a connection that came while NATS was unreachable erases its own record only, if there is one', async t => {
  const { owners, link, script, stored, lapses, told, foreign } = stage(t)
  const fail = async () => { throw new Failure('unreachable') }
  const back = async () => {
    link.up = true
    script.before = async () => {}
    lapses[0]!()
    for (let turns = 0; turns < 20; turns++) await new Promise(resolve => setImmediate(resolve))
  }
  script.before = fail
  link.up = false
  const alone = await owners.own('d', new Connection('d', 'a'))
  await alone.release()
  foreign()
  await back()
  t.equal(stored.size, 1, 'the record of somebody else stays')

  script.written = () => { // but nobody is told
    link.up = false
    script.before = fail
    script.written = () => {}
    throw new Failure('unreachable')
  }
  const cut = await owners.own('d', new Connection('d', 'a'))
  await cut.release()
  t.equal(stored.size, 1)
  await back()
  t.equal(stored.size, 0)
  t.strictSame(told.map(({ kind }) => kind), ['disconnected'])
})

t.test('of two connections on one node the one with the higher generation wins, in either order', async t => {
  const { owners, script, foreign } = stage(t)
  const [first, second] = [new Connection('d', 'first'), new Connection('d', 'second')]
  const late = gate()
  let requests = 0
  foreign()
  // the first waits for the older owner to yield, so it is activated last
  script.before = async what => {
    if (what !== 'request') return
    requests++
    await late.opened
  }
  const one = owners.own('d', first)
  await until(() => requests === 1)
  const other = await owners.own('d', second)
  late.open()
  t.ok((await one).generation < other.generation)
  t.equal(first.yielded, 1)
  t.equal(second.yielded, 0)
  await (await one).release()
  t.strictSame([...owners.after('')].map(({ presence }) => presence.node), ['second'])
})

t.test('a new connection waits while the current one is being compared with its record', async t => {
  const { owners, script, lapses } = stage(t)
  const [first, second] = [new Connection('d', 'first'), new Connection('d', 'second')]
  await owners.own('d', first)
  const looking = gate()
  script.before = async what => { if (what === 'last') await looking.opened }
  lapses[0]!()
  const owning = owners.own('d', second)
  looking.open()
  await owning
  t.equal(first.yielded, 1)
  looking.fail(new Failure('unreachable'))
})

t.test('a node that has lost a device does not answer for it', async t => {
  const { owners, link, script, stored, lapses, replies, foreign, say, demand } = stage(t)
  const owner = new Connection('d', 'a')
  const { release } = await owners.own('d', owner)
  foreign()
  lapses[0]!()
  say({ kind: 'wake', nonce: 'n' })
  demand({ deviceId: 'd', generation: 1 })
  await until(() => owner.yielded === 1)
  say({ kind: 'wake', nonce: 'n' })
  await release()
  t.strictSame(replies, [''])
  t.equal(stored.size, 1)

  // released while it is compared with its record
  stored.clear()
  const again = await owners.own('d', owner)
  const looking = gate()
  script.before = async what => { if (what === 'last') await looking.opened }
  lapses[0]!()
  say({ kind: 'wake', nonce: 'n' })
  const released = again.release()
  looking.open()
  await released
  t.equal(stored.size, 0)
  t.strictSame([...owners.after('')], [])
  link.up = false
  await owners.close()
})

withProgram(t, 'nats-server', 'over NATS', async (t, path) => {
  const server = await NatsServer.start(path)
  t.after(() => server.remove())
  let made = 0
  const prefix = () => `p${++made}`

  const join = async (t: Pick<Test, 'teardown'>, options: NatsBackplaneOptions = {}, count = 2) => {
    const over = { servers: server.servers, prefix: prefix(), ...options }
    const backplanes = await Promise.all(Array.from({ length: count }, () => natsBackplane(over)))
    for (const backplane of backplanes) t.teardown(() => backplane.close!())
    const changes: PresenceChange[] = []
    backplanes[0]!.follow(change => changes.push(change))
    await backplanes[0]!.flush!()
    return { backplanes: backplanes as [Backplane, Backplane], prefix: over.prefix, changes }
  }
  /** A connection to NATS for the test itself. */
  const behind = async (t: Pick<Test, 'teardown'>) => {
    const connection = await connect({ servers: server.servers })
    t.teardown(() => connection.close())
    return { connection, manager: await jetstreamManager(connection) }
  }
  backplaneContract(t, 'nats() and natsBackplane()', async () => {
    const options = { servers: server.servers, prefix: prefix() }
    const [{ backplane: a }, b] = [await nats(options), await natsBackplane(options)]
    return { a, b, close: async () => { await Promise.all([a.close!(), b.close!()]) } }
  })
  mailboxContract(t, 'natsMailbox()', () => natsMailbox({ servers: server.servers, prefix: prefix() }))

  t.test('the backplane and the mailbox of nats() share one connection, which closing the backplane ends', async t => {
    const port = await freePort()
    const own = await NatsServer.start(path, ['-m', String(port)])
    t.teardown(() => own.remove())
    const connections = async (): Promise<number> => (await (await fetch(`http://127.0.0.1:${port}/connz`)).json() as { num_connections: number }).num_connections
    const { backplane, mailbox } = await nats({ servers: own.servers, keepReceipts: 60_000, maxBytes: 100_000 })
    await backplane.own('d', new Connection('d', 'a'))
    t.strictSame(await backplane.ask('d', wake), { ok: true, value: 'a' })
    t.equal((await mailbox.put('d', letter('l'), plenty)).fresh, true)
    t.equal(await reasonOf(mailbox.put('d', letter('m', { body: new Uint8Array(100_000) }), plenty)), 'store-full')
    t.equal(await connections(), 1)
    t.strictSame([mailbox.onTrouble, mailbox.close], [undefined, undefined], 'trouble is reported once, and the backplane closes the connection')
    await backplane.close!()
    await until(async () => await connections() === 0)
    t.equal(await reasonOf(mailbox.waiting('d')), 'unreachable')

    await t.rejects(nats({ servers: own.servers, replicas: 3 }), /replicas > 1 not supported/)
    await until(async () => await connections() === 0)
  })

  t.test('nats() that cannot be opened leaves no timer and no connection', async t => {
    const { setInterval, setTimeout } = globalThis
    const timers: Array<NodeJS.Timeout & { _destroyed?: boolean }> = []
    const noted = (set: (...args: any[]) => NodeJS.Timeout) => Object.assign((...args: any[]) => {
      const timer = set(...args)
      if (new Error().stack!.includes('/lib/nats/engine.')) timers.push(timer) // earlier tests and the client of NATS have timers, too
      return timer
    }, set)
    t.teardown(() => { Object.assign(globalThis, { setInterval, setTimeout }) })
    const connection = await connect({ servers: server.servers })
    t.teardown(() => connection.close())
    Object.assign(globalThis, { setInterval: noted(setInterval), setTimeout: noted(setTimeout) })
    let closings = 0
    connection.close = async () => { closings++ }
    await t.rejects(nats({ connection, prefix: prefix(), replicas: 3 }), /replicas > 1 not supported/)
    await t.rejects(nats({ servers: `127.0.0.1:${await freePort()}` }), /startWithout/)
    t.equal(timers.length, 6)
    t.equal(timers.filter(timer => !timer._destroyed).length, 0)
    t.equal(closings, 0, 'a connection of the host stays open')
  })

  t.test('an option that does not exist is refused by its name', async t => {
    for (const open of [nats, natsBackplane, natsMailbox]) {
      await t.rejects(async () => { await open({ servers: server.servers, replica: 3 } as object) }, { message: 'fastify-devices/nats has no option "replica"' })
    }
  })

  t.test('nats() may start before NATS does, and reports that once', async t => {
    const own = await NatsServer.start(path)
    t.teardown(() => own.remove())
    await own.stop()
    const { backplane, mailbox } = await nats({ servers: own.servers, startWithout: true })
    t.teardown(() => backplane.close!())
    const troubles: unknown[] = []
    const links: boolean[] = []
    backplane.onTrouble!(error => troubles.push(error))
    backplane.onLink!(up => links.push(up))
    await until(() => troubles.length > 0)
    t.equal(await reasonOf(mailbox.waiting('d')), 'unreachable')
    await own.start()
    await until(() => links.includes(true))
    t.equal(await mailbox.waiting('d'), 0)
    t.equal(await backplane.ask('d', wake), undefined)
    t.equal(troubles.length, 1)
  })

  t.test('a node that was suspended yields devices taken over meanwhile before it answers', async t => {
    const { backplanes: [a, b], prefix } = await join(t)
    const { connection, manager } = await behind(t)
    const [lost, kept, forgotten] = ['lost', 'kept', 'forgotten'].map(id => new Connection(id, 'a')) as [Connection, Connection, Connection]
    await a.own('lost', lost)
    await a.own('kept', kept)
    const { generation } = await a.own('forgotten', forgotten)
    await manager.jetstream().publish(`$KV.${prefix}_devices.lost`, JSON.stringify({ node: 'c', since: 1, home: 'c', claim: 'c' }))
    await manager.streams.deleteMessage(`KV_${prefix}_devices`, generation)
    await connection.flush()
    t.equal(lost.yielded, 0)
    advanceClock(t, 10_000)
    t.strictSame(await b.ask('kept', wake), { ok: true, value: 'a' })
    t.strictSame(await b.ask('forgotten', wake), { ok: true, value: 'a' })
    await until(() => lost.yielded === 1)
    await until(async () => (await b.list({ limit: 9 })).some(({ deviceId, generation: now }) => deviceId === 'forgotten' && now > generation))
    t.equal(kept.yielded + forgotten.yielded, 0)
  })

  t.test('a dead node is detected: its devices are no longer listed, and its records are erased', async t => {
    const { backplanes: [a, b], prefix, changes } = await join(t)
    const connection = await connect({ servers: server.servers })
    const dying = await natsBackplane({ connection, prefix })
    const { generation } = await dying.own('d', new Connection('d', 'dying'))
    await b.own('e', new Connection('e', 'b'))
    t.equal((await a.list({ limit: 9 })).length, 2)
    await connection.close()
    const died = performance.now()
    await until(async () => await reasonOf(a.ask('d', wake)) === 'unreachable')
    await until(async () => await a.ask('d', wake).catch(() => null) === undefined)
    await until(() => changes.some(({ kind }) => kind === 'disconnected'))
    t.ok(performance.now() - died > 2_000, 'not before it could have come back')
    t.match(changes.at(-1), { kind: 'disconnected', presence: { deviceId: 'd', node: 'dying', generation } })
    for (const node of [a, b]) t.strictSame((await node.list({ limit: 9 })).map(({ deviceId }) => deviceId), ['e'])
    t.strictSame((await b.list({ limit: 9, topic: 'x' })).map(({ deviceId }) => deviceId), ['e'])
    await dying.close!()
  })

  t.test('a call to a node that dies fails with dropped', async t => {
    const { backplanes: [a], prefix } = await join(t)
    const connection = await connect({ servers: server.servers })
    const dying = await natsBackplane({ connection, prefix })
    const owner = new Connection('d', 'dying')
    const asked = gate()
    owner.reply = () => {
      asked.open()
      return new Promise(() => {})
    }
    await dying.own('d', owner)
    const answer = a.ask('d', { kind: 'call', method: 'm', params: null, timeout: 60_000 })
    await asked.opened
    // long enough for the first liveness probe
    await new Promise(resolve => setTimeout(resolve, 300))
    await connection.close()
    t.strictSame(await answer, { ok: false, reason: 'dropped' })
    await dying.close!()
  })

  t.test('a call to a device that another node takes over fails with dropped', async t => {
    const { backplanes: [a, b] } = await join(t)
    const [first, second] = [new Connection('d', 'b'), new Connection('d', 'a')]
    const asked = gate()
    first.reply = () => {
      asked.open()
      return new Promise(() => {})
    }
    await b.own('d', first)
    const answer = a.ask('d', { kind: 'call', method: 'm', params: null, timeout: 60_000 })
    await asked.opened
    await a.own('d', second)
    t.equal(first.yielded, 1)
    t.strictSame(await answer, { ok: false, reason: 'dropped' })
  })

  t.test('an owner that is late or fails ends only the request', async t => {
    const { backplanes: [a, b] } = await join(t)
    const owner = new Connection('d', 'b')
    await b.own('d', owner)
    owner.reply = () => new Promise(() => {})
    t.equal(await reasonOf(a.ask('d', { kind: 'call', method: 'm', params: null, timeout: 1 })), 'timeout')
    owner.reply = () => { throw new Error('broken') }
    t.strictSame(await a.ask('d', wake), { ok: false, reason: 'internal' })
    owner.reply = () => ({ ok: true, value: 1n })
    t.strictSame(await a.ask('d', wake), { ok: false, reason: 'internal' }, 'the caller is not at fault for the answer')
    owner.reply = () => ({ ok: true, value: 'x'.repeat(1_100_000) })
    t.strictSame(await a.ask('d', wake), { ok: false, reason: 'too-large' })
    t.equal(await reasonOf(a.ask('d', { kind: 'send', id: 'm', data: 'x'.repeat(1_100_000) })), 'too-large')
    t.equal(await reasonOf(a.publish({ id: 'm', topic: 'a', data: 'x'.repeat(1_100_000) })), 'too-large')
    const aborted = AbortSignal.abort()
    owner.reply = async (_request, signal) => {
      await until(() => signal!.aborted)
      return { ok: false, reason: 'dropped' }
    }
    t.strictSame(await a.ask('d', wake, aborted), { ok: false, reason: 'dropped' })
  })

  t.test('a device that two nodes list is returned once, with the higher generation', async t => {
    const { backplanes: [a], prefix } = await join(t)
    const { connection } = await behind(t)
    const ids = ['d1', 'd2', 'd3']
    const generations = new Map<string, number>()
    for (const id of ids) generations.set(id, (await a.own(id, new Connection(id, 'a'))).generation)
    for (const [node, difference] of [['x', -1], ['y', 1]] as const) {
      const presences = ids.map(deviceId => ({ deviceId, node, since: 1, generation: generations.get(deviceId)! + difference }))
      connection.subscribe(`${prefix}.node.${node}.list`, { callback: (_error, message) => { message.respond(JSON.stringify(presences)) } })
      connection.publish(`${prefix}.beat`, `+${node}`)
    }
    connection.publish(`${prefix}.beat`, '+gone')
    await until(async () => (await a.list({ limit: 1, topic: 'x' }))[0]!.node === 'y')
    t.strictSame((await a.list({ limit: 9, topic: 'x' })).map(({ deviceId, node }) => `${deviceId} ${node}`), ['d1 y', 'd2 y', 'd3 y'])
  })

  t.test('a page may be larger than one message between nodes', async t => {
    const { backplanes: [a], prefix } = await join(t)
    const { connection } = await behind(t)
    const ids = Array.from({ length: 2_500 }, (_, at) => `d${at}`).toSorted()
    const limits: number[] = []
    connection.subscribe(`${prefix}.node.x.list`, {
      callback (_error, message) {
        const { limit, after = '' } = message.json<{ limit: number, after?: string }>()
        limits.push(limit)
        const page = ids.filter(id => id > after).slice(0, limit)
        message.respond(JSON.stringify(page.map(deviceId => ({ deviceId, node: 'x', since: 1, generation: 1 }))))
      }
    })
    connection.publish(`${prefix}.beat`, '+x')
    await until(async () => (await a.list({ limit: 1 })).length === 1)
    limits.length = 0
    for (const limit of [2_400, 2_500, 9_999]) {
      t.strictSame((await a.list({ limit })).map(({ deviceId }) => deviceId), ids.slice(0, limit))
    }
    t.ok(Math.max(...limits) <= 1_000)
  })

  t.test('where a node does not answer, the list is read from the bucket', async t => {
    const { backplanes: [a, b], prefix } = await join(t)
    const { connection, manager } = await behind(t)
    connection.publish(`${prefix}.beat`, '+stuck')
    await manager.jetstream().publish(`$KV.${prefix}_devices.d2`, JSON.stringify({ node: 'n', since: 1, home: 'stuck', claim: 'c' }))
    await a.own('d1', new Connection('d1', 'a'))
    await b.own('d3', new Connection('d3', 'b'))
    const ids = async (page: ListPage) => (await a.list(page)).map(({ deviceId }) => deviceId)
    await until(async () => (await ids({ limit: 9 })).join() === 'd1,d2,d3')
    t.strictSame(await ids({ limit: 1, after: 'd1' }), ['d2'])
    t.strictSame(await ids({ limit: 9, prefix: 'd2' }), ['d2'])
    t.strictSame(await ids({ limit: 9, topic: 'x' }), ['d1', 'd3'], 'what a device of another node listens to, the bucket does not know')
    const silent = connection.subscribe(`${prefix}.node.stuck.list`, { callback () {} })
    await connection.flush()
    t.strictSame(await ids({ limit: 2 }), ['d1', 'd2'])
    silent.unsubscribe()
  })

  t.test('an error thrown by a listener is reported, and the connection stays', async t => {
    const { backplanes: [a, b] } = await join(t)
    const troubles: unknown[] = []
    a.onTrouble!(error => troubles.push(error))
    a.watch('a', () => { throw new Error('broken') })
    await a.flush!()
    t.strictSame(await b.publish({ id: 'm', topic: 'a', data: 1 }), { sent: 0, nodes: 0 })
    t.match(troubles, [{ message: 'broken' }])
    t.strictSame(await b.publish({ id: 'm', topic: 'b', data: 1 }), { sent: 0, nodes: 0 })
  })

  t.test('a publication that NATS held back arrives with its age', async t => {
    const { backplanes: [a], prefix } = await join(t)
    const { connection } = await behind(t)
    const heard: Array<[data: unknown, age: number | undefined]> = []
    for (const filter of ['#', '$everyone']) a.watch(filter, ({ data, age }) => heard.push([data, age]))
    await a.flush!()
    connection.publish(`${prefix}.beat`, '+x 60000')
    const publish = (topic: string, data: string, sentAt: number) =>
      connection.publish(`${prefix}.${subjectOf(topic)}`, JSON.stringify({ id: 'm', topic, data, from: 'x', sentAt }), { reply: `inbox.${data.replaceAll(' ', '-')}` })
    publish('news', 'late', 50_000)
    publish('$everyone', 'late for all', 50_000)
    publish('news', 'in time', 60_000 + 60_000)
    await until(() => heard.length === 3)
    t.strictSame(heard.map(([data]) => data), ['late', 'late for all', 'in time'])
    t.strictSame(heard.map(([, age]) => age !== undefined && age >= 10_000), [true, true, false])
    t.equal(heard[2]![1], undefined)
  })

  t.test('many publications arrive, each once', async t => {
    const { backplanes: [a, b] } = await join(t)
    let heard = 0
    for (const filter of ['a', '+']) a.watch(filter, listener)
    function listener () {
      heard++
      return 1
    }
    await a.flush!()
    for (let round = 0; round < 12; round++) {
      const reached = await Promise.all(Array.from({ length: 1_000 }, () => b.publish({ id: 'm', topic: 'a', data: 1 })))
      t.ok(reached.every(({ sent, nodes }) => sent === 1 && nodes === 1))
    }
    t.equal(heard, 12_000)
  })

  t.test('a silent connection to NATS is given up, and recovers', async t => {
    const own = await NatsServer.start(path)
    t.teardown(() => own.remove())
    const { backplanes: [a, b] } = await join(t, { servers: own.servers, pingInterval: 200 })
    const links: boolean[] = []
    a.onLink!(up => links.push(up))
    const mute = new Connection('d', 'b')
    mute.reply = () => new Promise(() => {})
    await b.own('d', mute)
    await own.hold()
    const pending = [
      reasonOf(a.ask('d', { kind: 'call', method: 'm', params: null, timeout: 60_000 })),
      reasonOf(a.publish({ id: 'm', topic: 'a', data: 1 })),
      reasonOf(a.list({ limit: 9, topic: 'a' }))
    ]
    await until(() => links.includes(false))
    t.strictSame(await Promise.all(pending), ['dropped', 'unreachable', 'unreachable'])
    t.equal(await reasonOf(a.ask('d', wake)), 'unreachable')
    own.release()
    mute.reply = () => ({ ok: true, value: 'b' })
    await until(() => links.at(-1) === true)
    await until(async () => (await a.ask('d', wake).catch(() => undefined))?.ok === true)
  })

  t.test('a node that reconnects first does not report the devices of another one as offline', async t => {
    const own = await NatsServer.start(path)
    t.teardown(() => own.remove())
    const [a, b] = [await natsBackplane({ servers: own.servers }), await natsBackplane({ servers: own.servers, reconnectTimeWait: 2_000, reconnectJitter: 0 })]
    for (const one of [a, b]) t.teardown(() => one.close!())
    await b.own('d', new Connection('d', 'b'))
    t.strictSame(await a.ask('d', wake), { ok: true, value: 'b' })
    t.equal(await a.ask('e', wake), undefined)
    const links: boolean[] = []
    a.onLink!(up => links.push(up))
    await own.stop()
    await until(() => links.includes(false))
    await own.start()
    await until(() => links.at(-1) === true)
    const told = new Set<unknown>()
    await until(async () => {
      const answer = await a.ask('d', wake).catch(error => error.reason)
      told.add(answer?.value ?? answer)
      return answer?.ok === true
    })
    // a request that the other node receives before its streams are prepared stays without an answer: dropped
    t.strictSame([...told].filter(one => (one as Answer | undefined)?.ok !== false || (one as { reason: string }).reason !== 'dropped'), ['unreachable', 'b'])
    t.equal(await a.ask('e', wake), undefined)
  })

  t.test('the permissions in the docs are sufficient', async t => {
    const config = inFolder(server.folder, 'rights.conf')
    writeFileSync(config, `authorization { users = [
      { user: devices, password: secret, permissions: {
        publish: ["devices.>", "_INBOX.>", "$KV.devices_devices.>", "$KV.devices_entries.>", "$KV.devices_receipts.>",
          "$JS.API.STREAM.CREATE.*", "$JS.API.STREAM.UPDATE.*", "$JS.API.STREAM.INFO.*", "$JS.API.STREAM.MSG.GET.*", "$JS.API.STREAM.MSG.DELETE.*"]
        subscribe: ["devices.>", "_INBOX.>"] } },
      { user: guest, password: guest, permissions: { publish: ["x"], subscribe: ["x", "_INBOX.>"] } }
    ] }`)
    const own = await NatsServer.start(path, ['-c', config])
    t.teardown(() => own.remove())
    const options = { servers: own.servers, user: 'devices', pass: 'secret' }
    const [{ backplane: a, mailbox }, b] = await Promise.all([nats(options), natsBackplane(options)])
    for (const one of [a, b]) t.teardown(() => one.close!())
    const troubles: unknown[] = []
    for (const one of [a, b]) one.onTrouble!(error => troubles.push(error))
    const { release } = await a.own('d', new Connection('d', 'a'))
    t.strictSame(await b.ask('d', wake), { ok: true, value: 'a' })
    t.equal((await b.list({ limit: 9 })).length, 1)
    t.equal((await b.list({ limit: 9, topic: 'a' })).length, 1)
    a.watch('a/+', () => 1)
    await a.flush!()
    t.strictSame(await b.publish({ id: 'm', topic: 'a/b', data: 1 }), { sent: 1, nodes: 1 })
    await release()
    await mailbox.put('d', letter('l'), plenty)
    t.equal((await all(mailbox.letters('d'))).length, 1)
    t.equal(await mailbox.settle('d', 'l', 'delivered'), true)
    await mailbox.sweep(Date.now())
    const changed = await natsMailbox({ ...options, keepReceipts: 60_000 })
    changed.onTrouble!(error => troubles.push(error))
    t.teardown(() => changed.close!())
    t.equal((await changed.receipt('d', 'l'))!.status, 'delivered')
    t.strictSame(troubles, [])
    await t.rejects(natsBackplane({ ...options, user: 'guest', pass: 'guest' }), /cannot be used/)
    await t.rejects(natsBackplane({ ...options, pass: 'wrong' }), /cannot be used.*Authorization/i)
  })

  t.test('the middle one of three letters is found after the others are erased', async t => {
    const mailbox = await natsMailbox({ servers: server.servers, prefix: prefix() })
    t.teardown(() => mailbox.close!())
    for (let round = 0; round < 30; round++) {
      const id = `d${round}`
      for (const name of ['a', 'b', 'c']) await mailbox.put(id, letter(name), plenty)
      await mailbox.settle(id, 'c', 'delivered')
      await mailbox.settle(id, 'a', 'delivered')
      t.strictSame((await all(mailbox.letters(id))).map(one => one.id), ['b'])
      const [{ position } = { position: 0 }] = await all(mailbox.letters(id))
      t.strictSame(await all(mailbox.letters(id, position)), [])
      t.equal((await mailbox.put(id, letter('e'), { letters: 2, bytes: 1_000 })).fresh, true)
      t.equal(await reasonOf(mailbox.put(id, letter('f'), { letters: 2, bytes: 1_000 })), 'mailbox-full')
    }
  })

  t.test('letters that NATS hides are read in order, before those put later', async t => {
    const mailbox = await natsMailbox({ servers: server.servers, prefix: prefix() })
    t.teardown(() => mailbox.close!())
    const reading = async (id: string, after?: number) => (await all(mailbox.letters(id, after))).map(one => one.id)
    for (const [put, settled] of [['abcd', 'cda'], ['abcd', 'dca'], ['abc', 'ca']] as const) {
      for (const later of ['e', 'ef']) {
        const id = `${put} ${settled} ${later}`
        for (const name of put) await mailbox.put(id, letter(name), plenty)
        for (const name of settled) await mailbox.settle(id, name, 'delivered')
        for (const name of later) await mailbox.put(id, letter(name), plenty)
        t.strictSame(await reading(id), ['b', ...later], id)
        const [b] = await all(mailbox.letters(id))
        t.strictSame(await reading(id, b!.position - 1), ['b', ...later], id)
        await mailbox.settle(id, 'e', 'cancelled')
        t.strictSame(await reading(id), ['b', ...later.slice(1)], `${id}, without the first one put later`)
      }
    }
  })

  t.test('a letter whose put broke off is delivered, settled and swept like any other', async t => {
    const over = { servers: server.servers, prefix: prefix() }
    const mailbox = await natsMailbox(over)
    const other = await natsMailbox(over)
    for (const one of [mailbox, other]) t.teardown(() => one.close!())
    const { manager } = await behind(t)
    const cutOff = async (id: string) => {
      await mailbox.put('d', letter(id), plenty)
      const { seq } = (await manager.streams.getMessage(`KV_${over.prefix}_entries`, { last_by_subj: `$KV.${over.prefix}_entries.d.${id}` }))!
      await manager.streams.deleteMessage(`KV_${over.prefix}_entries`, seq)
    }
    await cutOff('a')
    t.equal(await mailbox.receipt('d', 'a'), undefined)
    t.equal(await mailbox.settle('d', 'a', 'delivered'), true)
    t.equal((await mailbox.receipt('d', 'a'))!.status, 'delivered')
    await cutOff('b')
    // NATS deduplicates it by its id
    t.match(await other.put('d', letter('b', { body: '"again"' }), plenty), { fresh: false, receipt: { id: 'b', status: 'queued' } })
    t.strictSame((await all(other.letters('d'))).map(({ body }) => body), ['"b"'])
    t.equal(await other.settle('d', 'b', 'delivered'), true)

    // a letter that is gone without a receipt expires
    const now = Date.now()
    await mailbox.put('d', letter('c', { expiresAt: now + 100 }), plenty)
    const [{ position } = { position: 0 }] = await all(mailbox.letters('d'))
    await manager.streams.deleteMessage(`${over.prefix}_letters`, position)
    t.match(await mailbox.sweep(now + 200), [{ deviceId: 'd', receipt: { id: 'c', status: 'expired' } }])
    t.equal((await mailbox.receipt('d', 'c'))!.status, 'expired')
  })

  t.test('a letter that a dead node has half settled is completed by other nodes', async t => {
    const over = { servers: server.servers, prefix: prefix() }
    const mailbox = await natsMailbox(over)
    t.teardown(() => mailbox.close!())
    const { manager } = await behind(t)
    const entries = `KV_${over.prefix}_entries`
    await mailbox.put('d', letter('a'), plenty)
    const { data } = (await manager.streams.getMessage(entries, { last_by_subj: `$KV.${over.prefix}_entries.d.a` }))!
    await mailbox.settle('d', 'a', 'delivered')
    // as if it had died a while ago, before it erased the entry
    const entry = { ...JSON.parse(Buffer.from(data).toString()), at: Date.now() - 60_000 }
    await manager.jetstream().publish(`$KV.${over.prefix}_entries.d.a`, JSON.stringify(entry))
    await until(async () => {
      t.strictSame(await mailbox.sweep(Date.now()), [])
      return (await manager.streams.info(entries)).state.messages === 0
    })
    t.equal((await mailbox.receipt('d', 'a'))!.status, 'delivered', 'the receipt stays as it is')
  })

  t.test('letters put by a node that is gone expire', async t => {
    const over = { servers: server.servers, prefix: prefix() }
    const gone = await natsMailbox(over)
    const now = Date.now()
    for (let count = 0; count < 150; count++) await gone.put('d', letter(`l${count}`, { expiresAt: now + 1_000 }), plenty)
    await gone.close!()
    const mailbox = await natsMailbox(over)
    t.teardown(() => mailbox.close!())
    let expired = 0
    for (let sweeps = 0; sweeps < 3; sweeps++) expired += (await mailbox.sweep(now + 5_000)).length
    t.equal(expired, 150)
  })

  t.test('a letter is refused when NATS is full', async t => {
    const mailbox = await natsMailbox({ servers: server.servers, prefix: prefix(), maxBytes: 10_000 })
    t.teardown(() => mailbox.close!())
    t.equal(await reasonOf(mailbox.put('d', letter('large', { body: new Uint8Array(1_100_000) }), { letters: 10, bytes: 10_000_000 })), 'too-large')
    for (let count = 0; count < 5; count++) await mailbox.put(`d${count}`, letter('l', { body: new Uint8Array(1_500) }), plenty)
    t.equal(await reasonOf(mailbox.put('d', letter('l', { body: new Uint8Array(3_000) }), plenty)), 'store-full')
    t.equal(await mailbox.receipt('d', 'l'), undefined)
  })

  t.test('a broadcast over a stalled connection fails instead of counting no device', async t => {
    const own = await NatsServer.start(path)
    t.teardown(() => own.remove())
    const { backplanes: [a] } = await join(t, { servers: own.servers })
    await own.hold()
    t.equal(await reasonOf(a.publish({ id: 'm', topic: 'a', data: 1 })), 'unreachable')
    own.release()
    await until(async () => (await reasonOf(a.publish({ id: 'm', topic: 'a', data: 1 }))) === 'it did not fail')
  })

  t.test('a deleted bucket is reported, and owners are recorded again once it is back', async t => {
    const { backplanes: [a, b], prefix } = await join(t)
    const { manager } = await behind(t)
    const troubles: string[] = []
    for (const node of [a, b]) node.onTrouble!(error => troubles.push((error as Error).message))
    const connection = await connect({ servers: server.servers })
    const dying = await natsBackplane({ connection, prefix })
    const here = new Connection('d', 'a')
    const { generation } = await a.own('d', here)
    const left = await a.own('left', new Connection('left', 'a'))
    const { config } = await manager.streams.info(`KV_${prefix}_devices`)
    await manager.streams.delete(`KV_${prefix}_devices`)
    const { release } = await a.own('e', new Connection('e', 'a'))
    await release()
    await left.release()
    t.strictSame((await b.list({ limit: 9 })).map(({ deviceId }) => deviceId), ['d'], 'live nodes list their devices without the bucket')
    await connection.close()
    advanceClock(t, 10_000)
    // one for the devices, one for the records of the dead node
    await until(() => troubles.length >= 2)
    t.ok(troubles.length < 10, 'repeated failures are reported once')
    await manager.streams.add(config)
    await until(async () => {
      const { state } = await manager.streams.info(`KV_${prefix}_devices`, { subjects_filter: '>' })
      return Object.keys(state.subjects ?? {}).join() === `$KV.${prefix}_devices.d`
    })
    t.strictSame((await b.list({ limit: 9 })).map(({ deviceId }) => deviceId), ['d'])
    t.ok((await b.list({ limit: 1 }))[0]!.generation > 0)
    t.strictSame(await b.ask('d', wake), { ok: true, value: 'a' })
    t.ok(generation > 0)
    await dying.close!()
  })

  t.test('a topic with very many levels reaches only its subscribers', async t => {
    const { backplanes: [a, b] } = await join(t)
    const levels = (last: string) => [...Array.from({ length: 20 }, () => 'l'), last].join('/')
    a.watch(levels('a'), () => 1)
    a.watch(levels('#'), () => 1)
    b.watch(levels('b'), () => 1)
    await Promise.all([a.flush!(), b.flush!()])
    t.strictSame(await b.publish({ id: 'm', topic: levels('a'), data: 1 }), { sent: 2, nodes: 1 })
    t.strictSame(await b.publish({ id: 'm', topic: levels('b'), data: 1 }), { sent: 2, nodes: 2 })
  })

  t.test('a connection of the host is used and not closed', async t => {
    const connection = await connect({ servers: server.servers })
    t.teardown(() => connection.close())
    const backplane = await natsBackplane({ connection, prefix: prefix() })
    await backplane.own('d', new Connection('d', 'a'))
    t.strictSame(await backplane.ask('d', wake), { ok: true, value: 'a' })
    await backplane.close!()
    t.equal(connection.isClosed(), false)
    const closing = await natsBackplane({ connection, prefix: prefix(), startWithout: true })
    await closing.close!()
    const draining = await natsBackplane({ connection, prefix: prefix() })
    await draining.own('d', new Connection('d', 'a'))
    void connection.drain()
    t.equal(await reasonOf(draining.ask('d', wake)), 'unreachable')
    await connection.closed()
    await t.rejects(natsBackplane({ connection }), /NATS cannot be used/)
    await draining.close!()
  })

  t.test('closing is not reported as an outage', async t => {
    const backplane = await natsBackplane({ servers: server.servers, prefix: prefix() })
    const changes: boolean[] = []
    backplane.onLink!(up => changes.push(up))
    await backplane.close!()
    t.strictSame(changes, [])
  })

  t.test('a backplane closed while it connects is closed', async t => {
    const backplane = await natsBackplane({ servers: server.servers, prefix: prefix(), startWithout: true })
    await backplane.close!()
    t.equal(await reasonOf(backplane.ask('d', wake)), 'unreachable')
  })

  t.test('a backplane without NATS reports each error once, serves its own devices, and can be closed', async t => {
    const own = await NatsServer.start(path)
    t.teardown(() => own.remove())
    await own.stop()
    const troubles: unknown[] = []
    const backplane = await natsBackplane({ servers: own.servers, startWithout: true })
    backplane.onTrouble!(error => troubles.push(error))
    await until(() => troubles.length > 0)
    await sleep(800)
    t.equal(troubles.length, 1, 'repeated failures are reported once')
    t.equal(await reasonOf(backplane.list({ limit: 1 })), 'unreachable')
    const { generation, release } = await backplane.own('d', new Connection('d', 'a'))
    t.ok(generation > 0)
    await release()
    await backplane.close!()
  })
})

