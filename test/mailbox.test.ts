import { setTimeout as sleep } from 'node:timers/promises'
import t, { type Test } from 'tap'
import { lettersTopic, type Backplane } from '../lib/cluster/backplane.ts'
import { localBackplane } from '../lib/cluster/local.ts'
import { jsonrpc } from '../lib/protocol/jsonrpc.ts'
import { Delivery } from '../lib/messaging/delivery.ts'
import { Failure, type Reason } from '../lib/protocol/errors.ts'
import { Events } from '../lib/messaging/events.ts'
import { ExpirySweeper } from '../lib/messaging/expiry-sweeper.ts'
import { failureOf, Letters } from '../lib/messaging/letters.ts'
import { sizeOf, type Ending, type Mailbox } from '../lib/storage/mailbox.ts'
import { memoryMailbox } from '../lib/storage/memory.ts'
import type { Call, Message, NamedCall } from '../lib/protocol/message.ts'
import { Peer, type PeerLimits } from '../lib/protocol/peer.ts'
import type { Session } from '../lib/connection/session.ts'
import { Stats } from '../lib/connection/stats.ts'
import { letter, mailboxContract } from './contracts/mailbox.ts'
import { all, fakeLog, gate, reasonOf, turn, until } from './fakes.ts'

// Some tests wait for a retry or a sweep, so they run side by side.
t.jobs = 8

mailboxContract(t, 'memoryMailbox()', () => memoryMailbox())

const plenty = { letters: 1_000, bytes: 1_000_000 }

t.test('the size of a letter is that of its encoded body', async t => {
  t.equal(sizeOf('€'), 3)
  t.equal(sizeOf(''), 0)
  t.equal(sizeOf(new Uint8Array(7)), 7)
})

t.test('the memory mailbox is not shared between nodes', async t => {
  t.equal(memoryMailbox().shared, false)
})

t.test('the memory mailbox bounds the bytes of all devices together', async t => {
  const mailbox = memoryMailbox({ maxBytes: 10 + 2 * 256 }) // a letter is charged 256 bytes besides its body
  await mailbox.put('a', letter('1', { body: '12345', collapse: 'k' }), plenty)
  await mailbox.put('b', letter('2', { body: new Uint8Array(5) }), plenty)
  t.equal(await reasonOf(mailbox.put('c', letter('3', { body: '1' }), plenty)), 'store-full')
  t.equal(await mailbox.receipt('c', '3'), undefined)
  t.equal(await mailbox.waiting('c'), 0)
  t.equal((await mailbox.put('a', letter('4', { body: '54321', collapse: 'k' }), plenty)).fresh, true, 'what is replaced frees its room')
  t.equal(await reasonOf(mailbox.put('a', letter('5', { body: '123456', collapse: 'k' }), plenty)), 'store-full')
  await mailbox.settle('b', '2', 'delivered')
  t.equal((await mailbox.put('c', letter('6', { body: '12345' }), plenty)).fresh, true)
  t.equal(await reasonOf(mailbox.put('c', letter('7', { body: '1' }), plenty)), 'store-full')
})

t.test('the memory mailbox bounds the number of receipts', async t => {
  const mailbox = memoryMailbox({ maxReceipts: 2 })
  for (const id of ['a', 'b', 'c']) {
    await mailbox.put('d', letter(id), plenty)
    await mailbox.settle('d', id, 'delivered')
  }
  t.equal(await mailbox.receipt('d', 'a'), undefined)
  t.equal((await mailbox.receipt('d', 'b'))!.status, 'delivered')
  t.equal((await mailbox.receipt('d', 'c'))!.status, 'delivered')
  t.equal((await mailbox.put('d', letter('a'), plenty)).fresh, true)
})

/** Everything around a mailbox, with nodes of one process. */
function lettersOn ({ mailbox = memoryMailbox(), backplane = localBackplane(), node = 'n1', limits = plenty }: { mailbox?: Mailbox, backplane?: Backplane, node?: string, limits?: typeof plenty } = {}) {
  const stats = new Stats(fakeLog())
  const log = fakeLog()
  const events = new Events(log)
  const letters = new Letters({ mailbox, backplane, node, limits, stats, events, log })
  const told: string[] = []
  for (const ending of ['delivered', 'expired', 'cancelled', 'replaced', 'refused', 'dead-lettered'] as const) {
    events.on(ending, ({ deviceId, id }) => { told.push(`${deviceId} ${id} ${ending}`) })
  }
  const sweeper = new ExpirySweeper({ mailbox, node, log, onExpired: expired => letters.expired(expired) })
  return { letters, sweeper, mailbox, backplane, log, told, counted: () => stats.read(0).letters }
}

t.test('the endings of letters are counted, emitted and logged', async t => {
  const { letters, told, counted, log } = lettersOn({ limits: { letters: 2, bytes: 100 } })
  t.equal((await letters.put('d', letter('a'))).fresh, true)
  t.equal((await letters.put('d', letter('a'))).fresh, false)
  await letters.put('d', letter('b', { collapse: 'k' }))
  t.equal(await reasonOf(letters.put('d', letter('c'))), 'mailbox-full')
  await letters.put('d', letter('e', { collapse: 'k' }))
  t.equal(await letters.waiting('d'), 2)
  t.equal(await letters.settle('d', { id: 'a' }, 'delivered'), true)
  t.equal(await letters.settle('d', { id: 'a' }, 'delivered'), false)
  t.equal(await letters.settle('d', { id: 'unknown' }, 'refused'), false)
  t.strictSame(counted(), { queued: 3, replaced: 1, delivered: 1 })
  t.strictSame(told, ['d b replaced', 'd a delivered'])
  t.strictSame(log.lines.map(({ level, fields }) => [level, fields]), [
    ...['a', 'b', 'e'].map(letterId => ['debug', { deviceId: 'd', letterId }]),
    ['debug', { deviceId: 'd', letterId: 'b', ending: 'replaced' }],
    ['debug', { deviceId: 'd', letterId: 'a', ending: 'delivered' }]
  ])
  t.equal((await letters.receipt('d', 'a'))!.status, 'delivered')
  t.equal((await letters.receipt('d', 'e'))!.status, 'queued')
  t.equal(await letters.addAttempt('d', 'e'), 1)
})

t.test('waiting letters are listed in pages', async t => {
  const { letters } = lettersOn()
  for (const id of ['a', 'b', 'c', 'e', 'f']) await letters.put('d', letter(id))
  const read = async (page: { limit: number, after?: number }) => {
    const { receipts, next } = await letters.page('d', page)
    return { ids: receipts.map(({ id }) => id).join(''), next }
  }
  const first = await read({ limit: 2 })
  t.equal(first.ids, 'ab')
  const second = await read({ limit: 2, after: first.next! })
  t.equal(second.ids, 'ce')
  t.strictSame(await read({ limit: 2, after: second.next! }), { ids: 'f', next: undefined })
  t.strictSame(await read({ limit: 5 }), { ids: 'abcef', next: undefined })
  t.strictSame(await letters.page('nobody', { limit: 5 }), { receipts: [], next: undefined })
})

t.test('a letter that ends while the page is read is not on it', async t => {
  const mailbox = memoryMailbox()
  const forgetful: Mailbox = { ...mailbox, receipt: async (deviceId, letterId) => letterId === 'a' ? undefined : await mailbox.receipt(deviceId, letterId) }
  const { letters } = lettersOn({ mailbox: forgetful })
  for (const id of ['a', 'b', 'c']) await letters.put('d', letter(id))
  const { receipts, next } = await letters.page('d', { limit: 1 })
  t.strictSame(receipts.map(({ id }) => id), ['b'])
  t.strictSame((await letters.page('d', { limit: 1, after: next! })).receipts.map(({ id }) => id), ['c'])
})

t.test('all letters of a device can be cancelled', async t => {
  const { letters, told, counted } = lettersOn()
  for (const id of ['a', 'b', 'c']) await letters.put('d', letter(id))
  await letters.put('e', letter('a'))
  t.equal(await letters.purge('d'), 3)
  t.equal(await letters.purge('d'), 0)
  t.equal(await letters.waiting('d'), 0)
  t.equal(await letters.waiting('e'), 1)
  t.strictSame(told, ['d a cancelled', 'd b cancelled', 'd c cancelled'])
  t.strictSame(counted(), { queued: 4, cancelled: 3 })
})

t.test('a letter that was settled concurrently does not count as cancelled', async t => {
  const mailbox = memoryMailbox()
  const raced: Mailbox = {
    ...mailbox,
    async settle (deviceId, letterId, ending) {
      if (letterId === 'a') await mailbox.settle(deviceId, letterId, 'delivered')
      return await mailbox.settle(deviceId, letterId, ending)
    }
  }
  const { letters, counted } = lettersOn({ mailbox: raced })
  for (const id of ['a', 'b']) await letters.put('d', letter(id))
  t.equal(await letters.purge('d'), 1)
  t.strictSame(counted(), { queued: 2, cancelled: 1 })
})

t.test('expired letters are swept, counted and emitted', async t => {
  const { letters, sweeper, told, counted } = lettersOn()
  const now = Date.now() + 60_000
  await letters.put('d', letter('a', { expiresAt: now }))
  await letters.put('d', letter('b', { expiresAt: now + 1 }))
  await sweeper.sweep(now)
  t.strictSame(told, ['d a expired'])
  t.strictSame(counted(), { queued: 2, expired: 1 })
})

t.test('one sweep ends all expired letters, and yields to the event loop between batches', async t => {
  const { letters, sweeper, told } = lettersOn()
  const now = Date.now() + 60_000
  for (let number = 0; number < 2_500; number++) await letters.put(`d${number}`, letter('a', { expiresAt: now }))
  await letters.put('d', letter('later', { expiresAt: now + 1 }))
  const seen: number[] = []
  const sweeping = sweeper.sweep(now).then(() => { seen.push(told.length) })
  while (seen.at(-1) !== 2_500) {
    seen.push(told.length)
    await new Promise(resolve => setImmediate(resolve))
  }
  await sweeping
  t.equal(new Set(told).size, 2_500)
  t.ok(new Set(seen).size > 2, `${[...new Set(seen)]}`)
})

t.test('a node that closes leaves the remaining expired letters to another', async t => {
  const mailbox = memoryMailbox()
  const { letters, sweeper, told } = lettersOn({ mailbox })
  const now = Date.now() + 60_000
  for (let number = 0; number < 2_500; number++) await letters.put(`d${number}`, letter('a', { expiresAt: now }))
  const sweeping = sweeper.sweep(now)
  await sweeper.close()
  await sweeping
  t.ok(told.length < 2_500)
  t.ok((await mailbox.sweep(now)).length > 0)
})

t.test('a letter without a receipt is counted and emitted all the same', async t => {
  const { letters, sweeper, told } = lettersOn({ mailbox: memoryMailbox({ maxReceipts: 0 }) })
  const now = Date.now() + 60_000
  await letters.put('d', letter('a', { collapse: 'k' }))
  await letters.put('d', letter('b', { collapse: 'k', expiresAt: now }))
  await sweeper.sweep(now)
  t.strictSame(told, ['d a replaced', 'd b expired'])
})

t.test('a wait for a letter resolves with its ending', async t => {
  const { letters } = lettersOn()
  await letters.put('d', letter('a', { awaitedBy: 'n1' }))
  const { outcome } = letters.outcome('a', 60_000)
  await letters.settle('d', { id: 'a', awaitedBy: 'n1' }, 'refused', { code: 7, message: 'No' })
  t.strictSame(await outcome, { ending: 'refused', device: { code: 7, message: 'No' } })
  await letters.put('d', letter('b', { awaitedBy: 'n1' }))
  await letters.settle('d', { id: 'b', awaitedBy: 'n1' }, 'delivered')
  t.equal((await letters.receipt('d', 'b'))!.status, 'delivered', 'a letter for which nobody waits any more harms nobody')
})

t.test('a wait on another node resolves too', async t => {
  const backplane = localBackplane()
  const mailbox = memoryMailbox()
  const [n1, n2] = [lettersOn({ backplane, mailbox }), lettersOn({ backplane, mailbox, node: 'n2' })]
  await n1.letters.put('d', letter('a', { awaitedBy: 'n1' }))
  const { outcome } = n1.letters.outcome('a', 60_000)
  await n2.letters.settle('d', { id: 'a', awaitedBy: 'n1' }, 'refused', { code: 7, message: 'No' })
  t.strictSame(await outcome, { ending: 'refused', device: { code: 7, message: 'No' } })
})

t.test('the ending of a letter without a waiting sender is not published', async t => {
  const backplane = localBackplane()
  const published: unknown[] = []
  const { letters } = lettersOn({
    backplane: {
      ...backplane,
      publish: async publication => {
        published.push(publication)
        return { sent: 0, nodes: 0 }
      }
    }
  })
  for (const [id, awaitedBy] of [['a', undefined], ['b', 'n1'], ['c', 'n2']] as const) {
    const waited = awaitedBy === undefined ? {} : { awaitedBy }
    await letters.put('d', letter(id, waited))
    await letters.settle('d', { id, ...waited }, 'delivered')
  }
  t.strictSame(published, [{ id: 'c', topic: lettersTopic('n2'), data: { ending: 'delivered', device: undefined } }])
})

for (const [where, node] of [['here', 'n1'], ['on another node', 'n2']] as const) {
  t.test(`a wait ${where} resolves when the letter is replaced or expires`, async t => {
    const backplane = localBackplane()
    const mailbox = memoryMailbox()
    const n1 = lettersOn({ backplane, mailbox })
    const other = node === 'n1' ? n1 : lettersOn({ backplane, mailbox, node })
    const now = Date.now() + 60_000
    await n1.letters.put('d', letter('a', { awaitedBy: 'n1', collapse: 'k' }))
    const replaced = n1.letters.outcome('a', 60_000)
    await other.letters.put('d', letter('b', { awaitedBy: 'n1', collapse: 'k', expiresAt: now }))
    t.match(await settled(replaced), { ending: 'replaced' })
    const expired = n1.letters.outcome('b', 60_000)
    await other.sweeper.sweep(now)
    t.match(await settled(expired), { ending: 'expired' })
  })
}

/** The outcome, where there is one by now. */
async function settled ({ outcome, cancel }: ReturnType<Letters['outcome']>): Promise<unknown> {
  const first = await Promise.race([outcome, turn().then(() => 'still waiting')])
  cancel()
  return first
}

t.test('an ending that cannot be published is logged, and the letter is settled all the same', async t => {
  const down = new Failure('unreachable')
  const { letters, log } = lettersOn({ backplane: { ...localBackplane(), publish: async () => { throw down } } })
  await letters.put('d', letter('a', { awaitedBy: 'n2' }))
  t.equal(await letters.settle('d', { id: 'a', awaitedBy: 'n2', context: { id: 'req-1' } }, 'delivered'), true)
  await turn()
  t.strictSame(log.lines.filter(({ level }) => level === 'warn'), [{ level: 'warn', fields: { err: down, reqId: 'req-1', letterId: 'a' }, words: 'letter outcome not published' }])
})

t.test('a wait ends at its timeout, when it is cancelled, or when its signal aborts', async t => {
  const { letters } = lettersOn()
  t.equal(await letters.outcome('a', 5).outcome, undefined)
  const { outcome, cancel } = letters.outcome('b', 60_000)
  cancel()
  cancel()
  t.equal(await outcome, undefined)
  const controller = new AbortController()
  const given = letters.outcome('c', 60_000, controller.signal).outcome
  controller.abort()
  t.equal(await given, undefined)
})

t.test('a wait with an aborted signal ends at once', async t => {
  const { letters } = lettersOn()
  t.equal(await settled(letters.outcome('a', 60_000, AbortSignal.abort())), undefined)
})

t.test('cancelling one wait leaves other waits for the same letter', async t => {
  const { letters } = lettersOn()
  await letters.put('d', letter('a', { awaitedBy: 'n1' }))
  const first = letters.outcome('a', 60_000)
  const second = letters.outcome('a', 60_000)
  first.cancel()
  await letters.settle('d', { id: 'a', awaitedBy: 'n1' }, 'delivered')
  t.match(await settled(second), { ending: 'delivered' })
})

t.test('closing stops the watch on endings and closes the mailbox', async t => {
  const backplane = localBackplane()
  let closed = 0
  const { letters } = lettersOn({ backplane, mailbox: { ...memoryMailbox(), close: async () => { closed++ } } })
  t.equal((await backplane.publish({ id: 'a', topic: lettersTopic('n1'), data: { ending: 'delivered' } })).nodes, 1)
  await letters.close()
  t.equal(closed, 1)
  t.equal((await backplane.publish({ id: 'a', topic: lettersTopic('n1'), data: { ending: 'delivered' } })).nodes, 0)
  await lettersOn().letters.close()
})

t.test('each ending of a letter maps to a failure of its sender', async t => {
  const detail = { code: 7, message: 'No' }
  const table: Array<[ending: Ending, reason: Reason, message: string]> = [
    ['refused', 'refused', 'Answered with an error'],
    ['expired', 'timeout', 'The message expired before it was acknowledged'],
    ['cancelled', 'settled', 'The message was cancelled'],
    ['replaced', 'settled', 'The message was replaced'],
    ['dead-lettered', 'settled', 'The message was dead-lettered']
  ]
  for (const [ending, reason, message] of table) t.strictSame([failureOf({ ending }).reason, failureOf({ ending }).message], [reason, message])
  t.strictSame(failureOf({ ending: 'refused', device: detail }).device, detail)
})

/** A device that acknowledges what the test tells it to. */
class FakeDevice {
  readonly id: string
  readonly peer: Peer
  readonly calls: Call[] = []
  readonly codec = jsonrpc()
  left: object | undefined
  readonly #delivery: Delivery

  constructor (delivery: Delivery, id = 'd', limits: PeerLimits = { concurrency: Infinity, maxInbound: 32 }) {
    this.#delivery = delivery
    this.id = id
    this.peer = new Peer({
      transmit: (message: Message | Message[]) => { this.calls.push(message as Call) },
      answer () {},
      refused () {},
      unexpected () {}
    }, limits)
  }

  get session (): Session {
    return this as unknown as Session
  }

  callFor (id: string, data: unknown): NamedCall & { id: string } {
    return { method: 'message', params: { id, data }, id }
  }

  room: () => Promise<void> | undefined = () => undefined

  /** The ids of all letters it was handed. */
  get handed (): string {
    return this.calls.map(({ id }) => id).join(' ')
  }

  /** Waits until it was handed so many letters, and no more. */
  async sees (handed: string): Promise<void> {
    await until(() => this.handed.length >= handed.length)
    await turn()
    if (this.handed !== handed) throw new Error(`it was handed ${this.handed}, not ${handed}`)
  }

  acknowledge (id: string): void {
    this.peer.receive({ kind: 'result', id, result: null })
  }

  refuse (id: string, reason: Reason, code = 7): void {
    this.peer.receive({ kind: 'failure', id, reason, detail: { code, message: 'No' } })
  }

  /** Its connection ends, in the order of a real session. */
  leave (code = 1006): void {
    this.left = { code }
    this.peer.end()
    this.#delivery.stop(this.session)
  }
}

function delivering (t: Pick<Test, 'teardown'>, { maxInFlight = 32, attempts = 5, ...parts }: Parameters<typeof lettersOn>[0] & { maxInFlight?: number, attempts?: number } = {}) {
  const around = lettersOn(parts)
  const { letters, log } = around
  const delivery = new Delivery(letters, { maxInFlight, attempts }, log)
  const device = (id?: string, limits?: PeerLimits) => {
    const device = new FakeDevice(delivery, id, limits)
    t.teardown(() => device.peer.end()) // the time of a letter would keep this process
    return device
  }
  const put = async (...ids: string[]) => { for (const id of ids) await letters.put('d', letter(id, { context: { id: `request of ${id}` } })) }
  const status = async (id: string) => (await letters.receipt('d', id))!.status
  const errors = () => log.lines.filter(({ level }) => level === 'error').map(({ fields, words }) => [words, fields.letterId ?? fields.deviceId])
  /** The ids of the requests in the lines about letters that failed. */
  const requests = () => log.lines.filter(({ level }) => level === 'error').map(({ fields }) => fields.reqId)
  return { ...around, delivery, device, put, status, errors, requests }
}

t.test('a device that comes back gets its letters in order, as calls that it acknowledges', async t => {
  const { delivery, device, letters, put, status, told } = delivering(t)
  await letters.put('d', letter('text', { body: '{"at":1}' }))
  await letters.put('d', letter('bytes', { body: Uint8Array.of(1, 2) }))
  await put('c')
  const it = device()
  delivery.wake(it.session)
  await it.sees('text bytes c')
  t.strictSame(it.calls, [
    { kind: 'call', id: 'text', method: 'message', params: { id: 'text', data: { at: 1 } }, trace: undefined },
    { kind: 'call', id: 'bytes', method: 'message', params: { id: 'bytes', data: Uint8Array.of(1, 2) }, trace: undefined },
    { kind: 'call', id: 'c', method: 'message', params: { id: 'c', data: 'c' }, trace: undefined }
  ])
  t.equal(await status('text'), 'queued', 'it waits until it is acknowledged')
  it.acknowledge('bytes')
  it.acknowledge('text')
  await until(() => told.length === 2)
  t.equal(await status('text'), 'delivered')
  t.equal(await status('bytes'), 'delivered')
  t.equal(await status('c'), 'queued')
})

t.test('a letter that the mailbox finds late is sent, and those behind it are not sent again', async t => {
  const mailbox = memoryMailbox()
  const reads: number[] = []
  const shuffled: Mailbox = {
    ...mailbox,
    async * letters (deviceId, after = 0) {
      reads.push(after)
      const [first, ...others] = await all(mailbox.letters(deviceId))
      for (const one of after === 0 ? [...others, first!] : others) if (one.position > after) yield one
    }
  }
  const { delivery, letters, device, put } = delivering(t, { mailbox: shuffled })
  await put('a', 'b')
  const it = device()
  delivery.wake(it.session)
  await it.sees('b a')
  delivery.wake(it.session)
  await until(() => reads.length === 2)
  t.strictSame(reads, [0, 2])
  const { next } = await letters.page('d', { limit: 2 })
  t.equal(next, undefined)
  t.equal((await letters.page('d', { limit: 1 })).next, 2)
})

t.test('many letters leave over several turns of the event loop, in order', async t => {
  const { delivery, device, put } = delivering(t, { maxInFlight: 500 })
  const ids = Array.from({ length: 400 }, (_, at) => `l${at}`)
  await put(...ids)
  const it = device()
  delivery.wake(it.session)
  await turn()
  t.ok(it.calls.length < ids.length, 'other work of the event loop comes between')
  await it.sees(ids.join(' '))
})

t.test('no more letters are in flight than `maxInFlight` allows', async t => {
  const { delivery, device, put, told } = delivering(t, { maxInFlight: 2 })
  await put('a', 'b', 'c', 'e', 'f')
  const it = device()
  delivery.wake(it.session)
  await it.sees('a b')
  it.acknowledge('b')
  await it.sees('a b c')
  it.acknowledge('a')
  it.acknowledge('c')
  await it.sees('a b c e f')
  it.acknowledge('e')
  it.acknowledge('f')
  await until(() => told.length === 5)
  t.strictSame(told, ['b', 'a', 'c', 'e', 'f'].map(id => `d ${id} delivered`))
})

t.test('a letter that is stored while others are in flight follows them, once', async t => {
  const { delivery, device, put } = delivering(t)
  await put('a')
  const it = device()
  delivery.wake(it.session)
  await it.sees('a')
  await put('b')
  delivery.wake(it.session)
  delivery.wake(it.session)
  await it.sees('a b')
  t.strictSame(it.calls.map(({ params }) => params), [{ id: 'a', data: 'a' }, { id: 'b', data: 'b' }])
})

t.test('a letter that is stored while the mailbox is read is delivered', async t => {
  const mailbox = memoryMailbox()
  const door = gate()
  let looks = 0
  const slow: Mailbox = {
    ...mailbox,
    async * letters (deviceId, after) {
      const before = await all(mailbox.letters(deviceId, after))
      if (++looks === 1) await door.opened
      yield * before
    }
  }
  const { delivery, device, put } = delivering(t, { mailbox: slow })
  await put('a')
  const it = device()
  delivery.wake(it.session)
  await until(() => looks === 1)
  await put('b')
  delivery.wake(it.session)
  door.open()
  await it.sees('a b')
  t.equal(looks, 2)
})

t.test('a refused letter keeps the error of the device, and the next one is delivered', async t => {
  const { delivery, device, put, status, letters, told } = delivering(t, { maxInFlight: 1 })
  await put('a', 'b', 'c')
  const it = device()
  delivery.wake(it.session)
  await it.sees('a')
  it.refuse('a', 'refused')
  await it.sees('a b')
  it.peer.receive({ kind: 'invalid', id: 'b', reason: 'answer-invalid' })
  await it.sees('a b c')
  t.strictSame(told, ['d a refused', 'd b refused'])
  t.strictSame((await letters.receipt('d', 'a'))!.device, { code: 7, message: 'No' })
  t.equal(await status('b'), 'refused')
})

t.test('a letter is sent again to a device that was too busy', async t => {
  for (const reason of ['busy', 'too-fast', 'dropped'] as const) {
    const { delivery, device, put, status, told } = delivering(t)
    await put('a')
    const it = device()
    delivery.wake(it.session)
    await it.sees('a')
    it.refuse('a', reason)
    await turn()
    t.equal(await status('a'), 'queued', reason)
    delivery.wake(it.session)
    await it.sees('a a')
    it.acknowledge('a')
    await until(() => told.length === 1)
    t.equal(await status('a'), 'delivered')
  }
})

t.test('a letter that causes internal errors of the device is retried with growing delays, then dead-lettered', async t => {
  const { delivery, device, put, status, told } = delivering(t, { attempts: 3 })
  await put('a', 'b')
  const it = device()
  const since = performance.now()
  delivery.wake(it.session)
  await it.sees('a b')
  it.acknowledge('b')
  for (const handed of ['a b a', 'a b a a']) {
    it.refuse('a', 'refused', -32603)
    await turn()
    t.equal(await status('a'), 'queued')
    await it.sees(handed)
  }
  t.ok(performance.now() - since >= 2_990, 'after one second, and two')
  it.refuse('a', 'refused', -32603)
  await until(() => told.length === 2)
  t.strictSame(told, ['d b delivered', 'd a dead-lettered'])
})

t.test('a retried letter waits for room, and checks again after each wait', async t => {
  const { delivery, device, put } = delivering(t)
  await put('a')
  const it = device()
  delivery.wake(it.session)
  await it.sees('a')
  const gates = [gate(), gate()]
  let asked = 0
  it.room = () => gates[asked++]?.opened
  it.refuse('a', 'busy')
  await until(() => asked === 1)
  gates[0]!.open()
  await until(() => asked === 2)
  t.equal(it.handed, 'a')
  gates[1]!.fail(new Failure('dropped'))
  await it.sees('a a')
})

t.test('a letter that is cancelled after an internal error is not retried', async t => {
  const { delivery, device, letters, mailbox, put } = delivering(t)
  await put('a')
  const it = device()
  delivery.wake(it.session)
  await it.sees('a')
  const { addAttempt } = mailbox
  mailbox.addAttempt = async (...args) => {
    await letters.settle('d', { id: 'a' }, 'cancelled')
    return await addAttempt(...args)
  }
  it.refuse('a', 'refused', -32603)
  await sleep(1_200)
  t.equal(it.handed, 'a')
})

t.test('a letter that is cancelled during the delay of a busy device is not retried', async t => {
  const { delivery, device, letters, put, status } = delivering(t)
  await put('a')
  const it = device()
  delivery.wake(it.session)
  await it.sees('a')
  it.refuse('a', 'busy')
  await letters.settle('d', { id: 'a' }, 'cancelled')
  await sleep(1_200)
  await put('b')
  delivery.wake(it.session)
  await it.sees('a b')
  t.equal(await status('a'), 'cancelled')
})

t.test('a letter is retried if the mailbox cannot tell whether it still waits', async t => {
  const { delivery, device, mailbox, put } = delivering(t)
  await put('a')
  const it = device()
  delivery.wake(it.session)
  await it.sees('a')
  it.refuse('a', 'busy')
  mailbox.receipt = async () => { throw new Failure('unreachable') }
  await it.sees('a a')
})

t.test('an expired letter is not sent', async t => {
  const { delivery, device, letters, put, told } = delivering(t)
  await letters.put('d', letter('a', { expiresAt: Date.now() - 1 }))
  await put('b')
  const it = device()
  delivery.wake(it.session)
  await it.sees('b')
  await until(() => told.length === 1)
  t.strictSame(told, ['d a expired'])
})

t.test('a letter that expires in flight is settled as expired', async t => {
  const { delivery, device, letters, told } = delivering(t)
  await letters.put('d', letter('a', { expiresAt: Date.now() + 40 }))
  const it = device()
  delivery.wake(it.session)
  await until(() => told.length === 1)
  t.strictSame(told, ['d a expired'])
  t.equal(it.peer.inFlight, 0)
})

t.test('letters that were in flight when the connection ended are sent again, in order', async t => {
  const { delivery, device, put, told } = delivering(t)
  await put('a', 'b', 'c')
  const first = device()
  delivery.wake(first.session)
  await first.sees('a b c')
  first.acknowledge('b')
  await until(() => told.length === 1)
  first.leave()
  first.acknowledge('a')
  const second = device()
  delivery.wake(second.session)
  await second.sees('a c')
  t.strictSame(told, ['d b delivered'])
})

t.test('a letter that ends one connection after another is dead-lettered, and no other', async t => {
  const { delivery, device, put, status, mailbox, told } = delivering(t, { attempts: 3 })
  await put('a', 'b')
  for (let count = 0; count < 3; count++) {
    t.equal(await status('a'), 'queued')
    const it = device()
    delivery.wake(it.session)
    await it.sees('a b')
    it.leave()
    await turn()
  }
  t.strictSame(told, ['d a dead-lettered'])
  t.equal(await status('b'), 'queued')
  t.equal(await mailbox.addAttempt('d', 'b'), 1, 'no strike fell on the one behind it')
  const it = device()
  delivery.wake(it.session)
  await it.sees('b')
})

t.test('a wake-up does not affect letters in flight', async t => {
  const { delivery, device, put, told } = delivering(t, { attempts: 1 })
  await put('a')
  const it = device()
  delivery.wake(it.session)
  await it.sees('a')
  await put('b')
  delivery.wake(it.session)
  await it.sees('a b')
  it.leave()
  await turn()
  t.strictSame(told, ['d a dead-lettered'])
})

t.test('the mailbox of a disconnected device is read no further', async t => {
  const mailbox = memoryMailbox()
  const read: string[] = []
  const { delivery, device, put } = delivering(t, {
    maxInFlight: 1,
    mailbox: {
      ...mailbox,
      async * letters (deviceId, after) {
        for await (const one of mailbox.letters(deviceId, after)) {
          read.push(one.id)
          yield one
        }
      }
    }
  })
  await put('a', 'b', 'c')
  const it = device()
  delivery.wake(it.session)
  await it.sees('a')
  it.leave()
  await turn()
  t.strictSame(read, ['a'])
})

t.test('a connection that ends with everything acknowledged counts no attempt', async t => {
  const { delivery, device, put, mailbox, told } = delivering(t, { attempts: 1 })
  await put('a')
  const it = device()
  delivery.wake(it.session)
  await it.sees('a')
  it.acknowledge('a')
  await until(() => told.length === 1)
  await put('b')
  it.leave()
  await turn()
  t.equal(await mailbox.addAttempt('d', 'b'), 1)
  t.strictSame(told, ['d a delivered'])
})

t.test('a device that disconnects while a letter waits for room gets no more letters', async t => {
  const { delivery, device, put } = delivering(t, { maxInFlight: 1 })
  await put('a', 'b')
  const first = device()
  delivery.wake(first.session)
  await first.sees('a')
  first.leave()
  const second = device()
  delivery.wake(second.session)
  await second.sees('a')
  second.acknowledge('a')
  await second.sees('a b')
  t.equal(first.handed, 'a')
})

t.test('a device that disconnects while the mailbox is read gets no letters', async t => {
  const mailbox = memoryMailbox()
  const door = gate()
  let looks = 0
  const slow: Mailbox = {
    ...mailbox,
    async * letters (deviceId, after) {
      looks++
      await door.opened
      yield * mailbox.letters(deviceId, after)
    }
  }
  const { delivery, device, put, status, errors } = delivering(t, { mailbox: slow })
  await put('a')
  const it = device()
  delivery.wake(it.session)
  await until(() => looks === 1)
  it.leave()
  door.open()
  await turn()
  t.equal(it.handed, '')
  t.equal(await status('a'), 'queued')
  t.strictSame(errors(), [])
})

t.test('waking or stopping a disconnected device has no effect', async t => {
  const { delivery, device, put } = delivering(t)
  await put('a')
  const it = device()
  delivery.stop(it.session)
  it.left = {}
  delivery.wake(it.session)
  await turn()
  t.equal(it.handed, '')
})

t.test('letters are delivered to several devices concurrently', async t => {
  const { delivery, device, letters } = delivering(t, { maxInFlight: 1 })
  const devices = ['x', 'y'].map(id => device(id))
  for (const { id } of devices) for (const name of ['1', '2']) await letters.put(id, letter(`${id}${name}`))
  for (const { session } of devices) delivery.wake(session)
  const [x, y] = devices as [FakeDevice, FakeDevice]
  await x.sees('x1')
  await y.sees('y1')
  y.acknowledge('y1')
  await y.sees('y1 y2')
  t.equal(x.handed, 'x1')
})

t.test('a codec with a concurrency of one gets one letter at a time, and a queued letter counts no attempt', async t => {
  const { delivery, device, put, status, mailbox } = delivering(t, { attempts: 1 })
  await put('a', 'b')
  const it = device('d', { concurrency: 1, maxInbound: 32 })
  delivery.wake(it.session)
  await it.sees('a')
  it.leave()
  await turn()
  t.equal(await status('a'), 'dead-lettered')
  t.equal(await status('b'), 'queued')
  t.equal(await mailbox.addAttempt('d', 'b'), 1)
})

t.test('a mailbox that cannot be read is logged, and read again later', async t => {
  const mailbox = memoryMailbox()
  let broken = true
  const { delivery, device, put, errors } = delivering(t, {
    mailbox: {
      ...mailbox,
      async * letters (deviceId, after) {
        if (broken) throw new Error('the disk is gone')
        yield * mailbox.letters(deviceId, after)
      }
    }
  })
  await put('a')
  const it = device()
  delivery.wake(it.session)
  await until(() => errors().length > 0)
  t.strictSame(errors(), [['mailbox read failed', 'd']])
  broken = false
  delivery.wake(it.session)
  await it.sees('a')
})

t.test('a letter that cannot be settled is logged, and its device gets the others', async t => {
  const mailbox = memoryMailbox()
  const { delivery, device, put, errors, requests, told } = delivering(t, {
    maxInFlight: 1,
    mailbox: {
      ...mailbox,
      async settle (deviceId, letterId, ...rest) {
        if (letterId === 'a') throw new Error('the disk is full')
        return await mailbox.settle(deviceId, letterId, ...rest)
      }
    }
  })
  await put('a', 'b')
  const it = device()
  delivery.wake(it.session)
  await it.sees('a')
  it.acknowledge('a')
  await it.sees('a b')
  it.acknowledge('b')
  await until(() => told.length === 1)
  t.strictSame(errors(), [['letter not settled', 'a']])
  t.strictSame(requests(), ['request of a'])
  t.strictSame(told, ['d b delivered'])
})

/** A mailbox that is away, or full, until the test says otherwise. */
function failing (reason: Reason) {
  const mailbox = memoryMailbox()
  const fails = { now: true, tries: 0 }
  return {
    fails,
    mailbox: {
      ...mailbox,
      async settle (...args) {
        fails.tries++
        if (fails.now) throw new Failure(reason)
        return await mailbox.settle(...args)
      }
    } satisfies Mailbox
  }
}

for (const [how, reason, logged] of [['away', 'unreachable', []], ['full', 'store-full', ['a', 'b']]] as const) {
  t.test(`an answer that comes while the mailbox is ${how} is settled later, and the letter is not sent again`, async t => {
    const { fails, mailbox } = failing(reason)
    const { delivery, device, put, status, errors, requests, told } = delivering(t, { maxInFlight: 2, attempts: 1, mailbox })
    await put('a', 'b', 'c')
    const it = device()
    delivery.wake(it.session)
    await it.sees('a b')
    it.acknowledge('a')
    it.refuse('b', 'refused')
    await until(() => fails.tries > 3)
    t.equal(it.handed, 'a b', 'no more are on their way than the window allows')
    t.strictSame(errors(), logged.map(id => ['letter not settled', id]))
    t.strictSame(requests(), logged.map(id => `request of ${id}`))
    fails.now = false
    await it.sees('a b c')
    it.acknowledge('c')
    await until(() => told.length === 3)
    t.strictSame(await Promise.all(['a', 'b', 'c'].map(status)), ['delivered', 'refused', 'delivered'])
  })
}

t.test('an answered letter that is not settled counts no attempt, and is sent again on the next connection', async t => {
  const { fails, mailbox } = failing('unreachable')
  const { delivery, device, put, status, told } = delivering(t, { attempts: 1, mailbox })
  await put('a', 'b')
  const it = device()
  delivery.wake(it.session)
  await it.sees('a b')
  it.acknowledge('a')
  await until(() => fails.tries > 0)
  it.leave()
  fails.now = false
  await until(() => told.length > 0)
  t.strictSame(told, ['d b dead-lettered'])
  await put('c')
  const next = device()
  delivery.wake(next.session)
  await next.sees('a c')
  next.acknowledge('a')
  await until(() => told.length > 1)
  t.equal(await status('a'), 'delivered')
})

t.test('an answer is settled after the device has disconnected too, unless the node closes first', async t => {
  const { fails, mailbox } = failing('unreachable')
  const { delivery, device, put, errors, status } = delivering(t, { mailbox })
  await put('a')
  const it = device()
  delivery.wake(it.session)
  await it.sees('a')
  it.acknowledge('a')
  await until(() => fails.tries > 0)
  it.leave(1000)
  fails.now = false
  await until(async () => await status('a') === 'delivered')

  await put('b')
  const other = device()
  delivery.wake(other.session)
  await other.sees('b')
  fails.now = true
  other.acknowledge('b')
  await until(() => fails.tries > 2)
  delivery.pause()
  await until(() => errors().length > 0)
  t.strictSame(errors(), [['letter not settled', 'b']])
})

t.test('an attempt that cannot be counted is logged', async t => {
  const { delivery, device, put, errors, requests } = delivering(t, { mailbox: { ...memoryMailbox(), addAttempt: async () => { throw new Error('the disk is gone') } } })
  await put('a')
  const it = device()
  delivery.wake(it.session)
  await it.sees('a')
  it.leave()
  await until(() => errors().length > 0)
  t.strictSame(errors(), [['attempt not counted', 'a']])
  t.strictSame(requests(), ['request of a'])
})

t.test('damage in the mailbox is counted and logged', async t => {
  let damage: (damage: { key: string, reason: string }) => void = () => {}
  const { log, counted } = lettersOn({ mailbox: { ...memoryMailbox(), onDamage (listener) { damage = listener } } })
  damage({ key: 'l!d!1', reason: 'a bit has flipped' })
  t.strictSame(counted(), { damaged: 1 })
  t.match(log.lines, [{ level: 'error', fields: { key: 'l!d!1', reason: 'a bit has flipped' } }])
})

t.test('a sweep that fails is logged, and sweeps do not overlap', async t => {
  const door = gate<never[]>()
  let sweeps = 0
  const mailbox: Mailbox = { ...memoryMailbox(), sweep: async () => { if (++sweeps === 1) throw new Error('no disk'); return await door.opened } }
  const { sweeper, log } = lettersOn({ mailbox })
  sweeper.start()
  await until(() => sweeps === 2)
  await new Promise(resolve => setTimeout(resolve, 1_100))
  t.equal(sweeps, 2)
  t.match(log.lines, [{ level: 'error', words: 'sweep failed' }])
  let closed = false
  const closing = sweeper.close().then(() => { closed = true })
  await turn()
  t.equal(closed, false, 'closing waits for what is under way')
  door.open([])
  await closing
})

t.test('the mailbox is closed once the letters being settled are settled', async t => {
  const settling = gate<boolean>()
  let closed = false
  const { letters } = lettersOn({ mailbox: { ...memoryMailbox(), settle: () => settling.opened, close: async () => { closed = true } } })
  const settled = letters.settle('d', { id: 'a' }, 'delivered')
  const closing = letters.close()
  await turn()
  t.equal(closed, false)
  settling.open(true)
  t.equal(await settled, true)
  await closing
  t.equal(closed, true)
})

t.test('a sweep that goes on failing is logged once, until one works', async t => {
  let sweeps = 0
  const works = new Set([3])
  const mailbox: Mailbox = { ...memoryMailbox(), sweep: async () => { if (!works.has(++sweeps)) throw new Error('no disk'); return [] } }
  const { sweeper, log } = lettersOn({ mailbox })
  sweeper.start()
  t.teardown(() => sweeper.close())
  const logged: number[] = []
  for (const sweep of [1, 2, 3, 4]) {
    await until(() => sweeps === sweep)
    await turn()
    logged.push(log.lines.length)
  }
  t.strictSame(logged, [1, 1, 1, 2])
})

t.test('a letter that cannot be decoded does not count as refused', async t => {
  const { delivery, device, letters, put, status, errors } = delivering(t)
  await letters.put('d', letter('torn', { body: '{"at":' }))
  await put('whole')
  const it = device()
  delivery.wake(it.session)
  await it.sees('whole')
  t.equal(await status('torn'), 'queued')
  t.strictSame(errors(), [['letter not settled', 'torn']])
})

t.test('a close by the server counts no attempt', async t => {
  const { delivery, device, put, status } = delivering(t, { attempts: 1 })
  await put('a')
  for (const code of [1012, 1013, 4005, 4509, 4511]) {
    const it = device()
    delivery.wake(it.session)
    await it.sees('a')
    it.leave(code)
    await turn()
    t.equal(await status('a'), 'queued', String(code))
  }
})

t.test('a node that is draining sends no more letters', async t => {
  const { delivery, device, put, status } = delivering(t, { maxInFlight: 1 })
  await put('a', 'b')
  const [it, other] = [device(), device('other')]
  delivery.wake(it.session)
  await it.sees('a')
  delivery.pause()
  it.acknowledge('a')
  await until(async () => await status('a') === 'delivered')
  delivery.wake(it.session)
  delivery.wake(other.session)
  await turn()
  t.equal(it.calls.length, 1)
  t.equal(await status('b'), 'queued')
})
