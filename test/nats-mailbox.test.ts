import { writeFileSync } from 'node:fs'
import { join as inFolder } from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import { jetstreamManager } from '@nats-io/jetstream'
import { connect } from '@nats-io/transport-node'
import t, { type Test } from 'tap'
import { natsMailbox, type NatsMailboxOptions } from '../lib/nats/index.ts'
import type { Mailbox } from '../lib/storage/mailbox.ts'
import { LetterReader } from '../lib/nats/letter-reader.ts'
import { ServerClock } from '../lib/nats/server-clock.ts'
import { StreamStore } from '../lib/nats/stream-store.ts'
import { Failure } from '../lib/protocol/errors.ts'
import { natsServer } from './campaigns/nats.ts'
import { Proxy } from './campaigns/proxy.ts'
import { letter, sharedClockContract } from './contracts/mailbox.ts'
import { all, gate, reasonOf, until } from './fakes.ts'
import { withProgram } from './programs.ts'
import { listen } from './support.ts'

const plenty = { letters: 1_000, bytes: 1_000_000 }
const MINUTE = 60_000

/** Until the test ends, waits before each write; the write fails if that rejects. */
function beforeAppend (t: Test, wait: (...args: Parameters<StreamStore['append']> extends [string, ...infer Rest] ? Rest : never) => Promise<void>): void {
  const { append } = StreamStore.prototype
  t.teardown(() => { StreamStore.prototype.append = append })
  StreamStore.prototype.append = async function (subject, ...rest) {
    await wait(...rest)
    return await append.call(this, subject, ...rest)
  }
}

t.test('the clock of NATS is read once a minute, and after an invalidation', async t => {
  const { now } = performance
  t.teardown(() => { performance.now = now })
  let [passed, looks] = [0, 0]
  performance.now = () => now.call(performance) + passed
  let look = async (): Promise<number | undefined> => Date.now() + 120_000
  const clock = new ServerClock({ time: () => { looks++; return look() } } as never)
  t.equal(clock.ahead, 0)
  await Promise.all([clock.refresh(), clock.refresh()])
  await clock.refresh()
  t.strictSame([clock.ahead, looks], [120_000, 1])
  passed += MINUTE
  t.equal(clock.ahead, 180_000, 'the clock of the machine was set back by a minute')
  await clock.refresh()
  t.strictSame([clock.ahead, looks], [120_000, 2])
  clock.invalidate()
  look = async () => Date.now() - 5_000
  await clock.refresh()
  t.strictSame([clock.ahead, looks], [-5_000, 3])
  for (const tellsNothing of [
    async () => undefined,
    async () => { throw new Error('NATS is away') },
    async () => {
      passed += 5_000
      return 0
    }
  ]) {
    clock.invalidate()
    look = tellsNothing
    const before = clock.ahead
    await clock.refresh()
    t.ok(clock.ahead - before <= 5_000 && clock.ahead >= before)
  }
})

t.test('a letter that NATS hides behind others is read', async t => {
  const box = { letters: 1, bytes: 1 }
  const letters = [1, 2, 3].map(seq => ({ seq, subject: 'd', data: Buffer.from(`${JSON.stringify({ id: `l${seq}`, box })}\n`) }))
  const reader = new LetterReader(
    {
      subjects: async () => ({ d: letters.length }),
      next: async (_subject: string, from: number) => letters.find(({ seq }) => seq >= from && seq !== 2),
      at: async (position: number) => letters.find(({ seq }) => seq === position)
    } as never,
    {
      subjects: async () => ({ 'd.l1': 1, 'd.l2': 1, 'd.gone': 1, 'd.settled': 1 }),
      last: async (subject: string) => subject === 'd.gone' ? undefined : { data: Buffer.from(JSON.stringify({ position: subject === 'd.settled' ? 9 : Number(subject.at(-1)) })) }
    } as never
  )
  t.strictSame((await all(reader.after('d', 0))).map(({ letter }) => letter.id), ['l1', 'l3', 'l2'], 'late, but not lost')
  t.strictSame((await all(reader.after('d', 2))).map(({ letter }) => letter.id), ['l3'])

  // settled while an earlier one is being delivered
  letters.shift()
  letters[1]!.data = Buffer.from(`${JSON.stringify({ id: 'l3', box, isAfterHidden: true })}\n`)
  const read: string[] = []
  for await (const { letter } of reader.after('d', 0)) {
    read.push(letter.id)
    letters.pop()
  }
  t.strictSame(read, ['l2'])
})

withProgram(t, 'nats-server', 'letters in NATS', async (t, path) => {
  const server = await natsServer(t, path)
  let prefixes = 0
  const prefix = () => `p${++prefixes}`

  const open = async (t: Pick<Test, 'teardown'>, options: NatsMailboxOptions): Promise<Mailbox> => {
    const mailbox = await natsMailbox({ servers: server.servers, ...options })
    t.teardown(() => mailbox.close!())
    return mailbox
  }
  /** A proxy in front of NATS. */
  const before = async (t: Pick<Test, 'teardown'>) => {
    const proxy = await Proxy.start(server.port)
    t.teardown(() => proxy.stop())
    return { proxy, servers: proxy.url.slice('http://'.length) }
  }
  const reading = async (mailbox: Mailbox) => (await all(mailbox.letters('d'))).map(({ id }) => id)

  /** The requests that settle a letter, in order. */
  const steps = (prefix: string) => [
    `STREAM.MSG.GET.KV_${prefix}_entries`, `$KV.${prefix}_receipts.`, `STREAM.MSG.GET.${prefix}_letters`, `STREAM.MSG.DELETE.${prefix}_letters`,
    `STREAM.MSG.DELETE.KV_${prefix}_entries`
  ]
  for (const [at, what] of ['the entry is read', 'the receipt is written', 'the letter is read', 'the letter is erased', 'the entry is erased'].entries()) {
    for (const when of ['before', 'after'] as const) {
      t.test(`a settlement that breaks off ${when} ${what} is settled by the next try`, async t => {
        const { proxy, servers } = await before(t)
        const over = { prefix: prefix() }
        const other = await open(t, over)
        const mailbox = await open(t, { ...over, servers })
        await mailbox.put('d', letter('a'), plenty)
        await mailbox.put('d', letter('b'), plenty)
        const mark = steps(over.prefix)[at]!
        let broken = 0
        proxy.onClientData = said => {
          if (broken || !said.includes(mark)) return
          broken++
          if (when === 'before') proxy.reset()
          else setImmediate(() => proxy.reset()) // the answer is on its way
        }
        const first = await mailbox.settle('d', 'a', 'delivered').catch(error => error.reason)
        t.equal(broken, 1)
        t.ok(first === 'unreachable' || when === 'after', String(first))
        let again: unknown
        await until(async () => typeof (again = await mailbox.settle('d', 'a', 'delivered').catch(error => error.reason)) === 'boolean')
        t.equal((await other.receipt('d', 'a'))!.status, 'delivered')
        t.strictSame(await reading(other), ['b'])
        t.equal(await other.settle('d', 'a', 'expired'), false)
        // reported once, unless only the last answer was lost
        if (at < 4) t.strictSame([first, again].filter(told => told === true).length, 1)
        else t.not(first === true && again === true, true)
      })
    }
  }

  t.test('a letter that one node has begun to settle is completed by another, which does not report it', async t => {
    const { proxy, servers } = await before(t)
    const over = { prefix: prefix() }
    const mailbox = await open(t, { ...over, servers })
    const other = await open(t, over)
    await mailbox.put('d', letter('a', { expiresAt: Date.now() + 500 }), plenty)
    proxy.onClientData = said => { if (said.includes(`STREAM.MSG.DELETE.${over.prefix}_letters`)) proxy.reset() }
    t.equal(await reasonOf(mailbox.settle('d', 'a', 'delivered')), 'unreachable')
    t.strictSame(await reading(other), ['a'], 'it comes again, and the device is shown it once')
    t.strictSame(await other.sweep(Date.now()), [])
    t.strictSame(await other.sweep(Date.now() + 5_000), [], 'later than the node that has put it would')
    t.equal((await other.receipt('d', 'a'))!.status, 'delivered')
    t.strictSame(await reading(other), [])
  })

  t.test('a sweep that breaks off continues when NATS is back', async t => {
    const { proxy, servers } = await before(t)
    const over = { prefix: prefix() }
    const mailbox = await open(t, { ...over, servers })
    const now = Date.now()
    await mailbox.put('d', letter('a', { expiresAt: now }), plenty)
    proxy.onClientData = said => {
      if (!said.includes(`$KV.${over.prefix}_receipts.d`)) return
      proxy.onClientData = undefined
      proxy.reset()
    }
    t.equal(await reasonOf(mailbox.sweep(now)), 'unreachable')
    let expired: unknown[] = []
    await until(async () => (expired = await mailbox.sweep(now).catch(() => [])).length > 0)
    t.match(expired, [{ deviceId: 'd', receipt: { id: 'a', status: 'expired' } }])
  })

  t.test('settling a letter makes room in a NATS that is full', async t => {
    const config = inFolder(server.folder, 'small.conf')
    writeFileSync(config, 'jetstream { max_file_store: 65536 }')
    const small = await natsServer(t, path, ['-c', config])
    const mailbox = await open(t, { servers: small.servers })
    await mailbox.put('d', letter('l', { body: new Uint8Array(4_000) }), plenty)
    const connection = await connect({ servers: small.servers })
    t.teardown(() => connection.close())
    const manager = await jetstreamManager(connection)
    await manager.streams.add({ name: 'others', subjects: ['others'] })
    for (const size of [1_000, 1]) {
      while (await reasonOf(manager.jetstream().publish('others', new Uint8Array(size))) === 'it did not fail');
    }
    t.equal(await reasonOf(mailbox.put('d', letter('no room'), plenty)), 'store-full')
    t.equal(await mailbox.settle('d', 'l', 'delivered'), true)
    t.equal((await mailbox.receipt('d', 'l'))!.status, 'delivered')
    t.strictSame(await reading(mailbox), [])
  })

  sharedClockContract(t, 'NATS', async t => {
    const over = { prefix: prefix() }
    return [await open(t, over), await open(t, over)]
  })

  t.test('of letters of one collapse key that several nodes put at the same time, the last one stays', async t => {
    const over = { prefix: prefix() }
    const { proxy, servers } = await before(t)
    const nodes = [await open(t, { ...over, servers }), await open(t, over), await open(t, over)]
    let mayBeRefused = false
    proxy.onClientData = said => { mayBeRefused ||= said.split(`PUB ${over.prefix}.letters`).slice(1).some(put => put.includes('Last-Subject-Sequence: 0')) }
    for (let round = 0; round < 20; round++) {
      const ids = nodes.map((_, at) => `${round} ${at}`)
      const puts = await Promise.all(nodes.map((node, at) => node.put('d', letter(ids[at]!, { collapse: 'k' }), plenty)))
      t.ok(puts.every(({ fresh }) => fresh))
      const left = await reading(nodes[0]!)
      t.equal(left.length, 1)
      const replaced = ids.filter(id => id !== left[0])
      for (const id of replaced) t.equal((await nodes[1]!.receipt('d', id))!.status, 'replaced')
      t.strictSame(puts.flatMap(put => put.replaced ?? []).map(({ id }) => id).toSorted(), replaced, 'each is reported once')
      t.equal(await nodes[2]!.settle('d', left[0]!, 'delivered'), true)
    }
    t.notOk(mayBeRefused)
  })

  t.test('a letter whose put broke off and is repeated too late for NATS to recognize it does not replace itself', async t => {
    const over = { prefix: prefix(), keepReceipts: 200 } // no longer than NATS recognizes letters
    const mailbox = await open(t, over)
    const connection = await connect({ servers: server.servers })
    t.teardown(() => connection.close())
    const { streams } = await jetstreamManager(connection)
    await mailbox.put('d', letter('a', { collapse: 'k' }), plenty)
    await streams.purge(`KV_${over.prefix}_entries`)
    await sleep(400)
    t.match(await mailbox.put('d', letter('a', { collapse: 'k' }), plenty), { fresh: true, receipt: { status: 'queued' }, replaced: undefined })
    t.equal((await mailbox.receipt('d', 'a'))!.status, 'queued')
  })

  t.test('a letter whose receipt is no longer kept can be put again', async t => {
    const mailbox = await open(t, { prefix: prefix(), keepReceipts: 500 })
    await mailbox.put('d', letter('a'), plenty)
    await mailbox.settle('d', 'a', 'delivered')
    await until(async () => await mailbox.receipt('d', 'a') === undefined)
    const again = mailbox.put('d', letter('a'), plenty)
    t.match(await Promise.race([again, sleep(10_000, 'no answer', { ref: false })]), { fresh: true })
    t.strictSame(await reading(mailbox), ['a'])
  })

  t.test('of many concurrent calls that settle a letter, one resolves with true', async t => {
    const mailbox = await open(t, { prefix: prefix() })
    const settle = async () => (await Promise.all(Array.from({ length: 4 }, () => mailbox.settle('d', 'a', 'expired')))).filter(Boolean).length
    t.equal(await settle(), 0, 'there is none')
    await mailbox.put('d', letter('a'), plenty)
    t.equal(await settle(), 1)
  })

  t.test('of two nodes that settle a letter at the same moment, one reports it', async t => {
    const over = { prefix: prefix() }
    const nodes = [await open(t, over), await open(t, over)]
    await nodes[0]!.put('d', letter('a'), plenty)
    const both = gate()
    let writes = 0
    beforeAppend(t, async (_data, { after } = {}) => {
      if (after !== 0) return
      if (++writes === 2) both.open()
      await both.opened
    })
    t.strictSame((await Promise.all(nodes.map(node => node.settle('d', 'a', 'delivered')))).toSorted(), [false, true])
    t.equal(writes, 2, 'both found no receipt')
    t.match(await nodes[0]!.receipt('d', 'a'), { status: 'delivered' })
  })

  t.test('a letter whose put broke off and is repeated while another node settles it leaves no entry', async t => {
    const over = { prefix: prefix() }
    const mailbox = await open(t, over)
    const other = await open(t, over)
    let breaks = true
    let settled: boolean | undefined
    beforeAppend(t, async data => {
      if (!String(data).includes('"position"')) return
      if (breaks) throw new Failure('unreachable')
      settled = await other.settle('d', 'a', 'delivered')
    })
    t.equal(await reasonOf(mailbox.put('d', letter('a'), plenty)), 'unreachable')
    breaks = false
    await mailbox.put('d', letter('a'), plenty)
    t.equal(settled, true)
    t.equal(await mailbox.addAttempt('d', 'a'), 0, 'there is no entry')
    t.strictSame(await reading(mailbox), [])
    t.match(await mailbox.receipt('d', 'a'), { status: 'delivered' })
  })

  t.test('a letter whose put broke off and is repeated by two nodes has one entry', async t => {
    const over = { prefix: prefix() }
    const mailbox = await open(t, over)
    const other = await open(t, over)
    let breaks = true
    let repeats = 0
    beforeAppend(t, async (data, { id } = {}) => {
      if (breaks && String(data).includes('"position"')) throw new Failure('unreachable')
      if (!breaks && id !== undefined && ++repeats === 1) await other.put('d', letter('a'), plenty)
    })
    t.equal(await reasonOf(mailbox.put('d', letter('a'), plenty)), 'unreachable')
    breaks = false
    t.match(await mailbox.put('d', letter('a'), plenty), { fresh: false, receipt: { status: 'queued' } })
    t.equal(repeats, 2)
    t.equal(await mailbox.addAttempt('d', 'a'), 1)
    t.equal(await mailbox.settle('d', 'a', 'delivered'), true)
    t.equal(await other.addAttempt('d', 'a'), 0)
  })

  t.test('an aborted sweep starts nothing more', async t => {
    const mailbox = await open(t, { prefix: prefix() })
    const now = Date.now()
    await mailbox.put('d', letter('a', { expiresAt: now }), plenty)
    t.strictSame(await mailbox.sweep(now, AbortSignal.abort()), [])
    t.strictSame(await reading(mailbox), ['a'])
    t.match(await mailbox.sweep(now), [{ receipt: { id: 'a', status: 'expired' } }])
  })

  t.test('closing does not wait for a whole sweep', async t => {
    const { proxy, servers } = await before(t)
    const over = { prefix: prefix() }
    const filled = await open(t, over)
    const later = Date.now() + 60 * MINUTE
    await Promise.all([...Array(20).keys()].map(async device => {
      for (let count = 0; count < 10; count++) await filled.put(`d${device}`, letter(`l${count}`, { expiresAt: later }), plenty)
    }))
    const app = await listen(t, { mailbox: await natsMailbox({ ...over, servers }) })
    proxy.delayMs = 100
    let reads = 0
    proxy.onClientData = said => { reads += said.split(`STREAM.MSG.GET.KV_${over.prefix}_entries`).length - 1 }
    await until(() => reads > 0)
    const begun = reads
    await app.close()
    t.ok(begun > 1, 'it reads side by side')
    t.ok(reads - begun <= 10, `${reads - begun} more reads`)
  })
})
