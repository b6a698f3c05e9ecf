import { Redis } from 'ioredis'
import t, { type Test } from 'tap'
import { Failure } from '../lib/protocol/errors.ts'
import { Link } from '../lib/redis/link.ts'
import type { LinkOptions } from '../lib/redis/link-options.ts'
import { mailboxOver } from '../lib/redis/mailbox.ts'
import { ServerClock } from '../lib/redis/server-clock.ts'
import type { Mailbox } from '../lib/storage/mailbox.ts'
import { Proxy } from './campaigns/proxy.ts'
import { redisServer, type RedisServer } from './campaigns/redis.ts'
import { letter, mailboxContract, sharedClockContract } from './contracts/mailbox.ts'
import { all, reasonOf, until } from './fakes.ts'
import { withProgram } from './programs.ts'

const plenty = { letters: 20_000, bytes: 100_000_000 }
const MINUTE = 60_000

type Run = Link['run']
type RunArgs = Parameters<Run>

/** A mailbox on a link, each call of which goes through `around`. */
function mailboxThrough (link: Link, around: (run: () => ReturnType<Run>, ...asked: RunArgs) => Promise<unknown>): Mailbox {
  return mailboxOver({ up: true, run: (...asked: RunArgs) => around(() => link.run(...asked), ...asked) } as never, new ServerClock())
}

t.test('a mailbox remembers a limited number of calls whose answer was lost', async t => {
  const calls: string[] = []
  let answers = false
  const mailbox = mailboxOver({
    up: true,
    async run (_script: unknown, _keys: string[], [, id, ending]: string[]) {
      if (answers) return [0, Buffer.from(`{"id":"${id}","status":"queued"}\n{"status":"delivered","call":"${calls[Number(id)]}"}`)]
      calls.push(JSON.parse(ending!).call)
      throw new Failure('unreachable')
    }
  } as never, new ServerClock())
  for (let id = 0; id < 10_001; id++) await reasonOf(mailbox.settle('d', String(id), 'delivered'))
  answers = true
  t.strictSame(await Promise.all(['0', '1', '10000'].map(id => mailbox.settle('d', id, 'delivered'))), [false, true, true])
})

t.test('a wrong time to keep receipts is refused', async t => {
  for (const wrong of [0, -1, 0.5, Number.NaN, '1' as never]) t.throws(() => mailboxOver(undefined as never, new ServerClock(), wrong), /keepReceipts must be/)
})

withProgram(t, 'redis-server', 'letters in Redis', async (t, path) => {
  const server = await redisServer(t, path)
  let prefixes = 0
  const prefix = () => `p${++prefixes}`

  const openLink = async (t: Pick<Test, 'teardown'>, options: LinkOptions): Promise<Link> => {
    const link = new Link({ url: server.url, ...options })
    await link.open(async () => {})
    t.teardown(() => link.close())
    return link
  }
  const open = async (t: Pick<Test, 'teardown'>, options: LinkOptions, keepReceipts?: number) => mailboxOver(await openLink(t, options), new ServerClock(), keepReceipts)
  const connect = (t: Pick<Test, 'teardown'>, { url }: RedisServer = server): Redis => {
    const client = new Redis(url)
    t.teardown(() => client.disconnect())
    return client
  }
  const reading = async (mailbox: Mailbox, deviceId = 'd') => (await all(mailbox.letters(deviceId))).map(({ id }) => id)

  mailboxContract(t, 'redis()', () => open(t, { prefix: prefix() }))

  t.test('acknowledged letters and receipts survive the kill of a server that syncs each write', async t => {
    const killed = await redisServer(t, path)
    const link = await openLink(t, { url: killed.url })
    const mailbox = mailboxOver(link, new ServerClock())
    const kept: string[] = []
    const put = async (lane: number) => {
      for (let count = 0; ; count++) {
        const id = `${lane} ${count}`
        await mailbox.put(`d${lane}`, letter(id), plenty)
        if (count === 3) await mailbox.settle(`d${lane}`, id, 'delivered')
        else kept.push(id)
      }
    }
    const lanes = Array.from({ length: 16 }, (_, lane) => reasonOf(put(lane)))
    await until(() => kept.length >= 300)
    await killed.stop('SIGKILL')
    t.strictSame(new Set(await Promise.all(lanes)), new Set(['unreachable']))
    await killed.start()
    await until(() => link.up)
    const found = (await Promise.all(lanes.map((_, lane) => reading(mailbox, `d${lane}`)))).flat()
    t.strictSame(kept.filter(id => !found.includes(id)), [])
    for (let lane = 0; lane < lanes.length; lane++) {
      t.match(await mailbox.receipt(`d${lane}`, `${lane} 3`), { status: 'delivered' })
      const ids = found.filter(id => id.startsWith(`${lane} `))
      t.strictSame(ids, ids.toSorted((one, other) => Number(one.split(' ')[1]) - Number(other.split(' ')[1])), 'in order')
    }
  })

  t.test('while Redis is away every operation fails at once, and works again when it is back', async t => {
    const stopped = await redisServer(t, path)
    const link = await openLink(t, { url: stopped.url })
    const mailbox = mailboxOver(link, new ServerClock())
    await mailbox.put('d', letter('a'), plenty)
    await stopped.stop()
    await until(() => !link.up)
    const operations = [
      () => mailbox.put('d', letter('b'), plenty), () => reading(mailbox), () => mailbox.waiting('d'), () => mailbox.size!(), () => mailbox.settle('d', 'a', 'delivered'),
      () => mailbox.receipt('d', 'a'), () => mailbox.addAttempt('d', 'a'), () => mailbox.sweep(Date.now())
    ]
    for (const operation of operations) t.equal(await reasonOf(operation), 'unreachable', String(operation))
    t.strictSame(await mailbox.health!(), { ok: false, reason: 'Redis unreachable' })
    await stopped.start()
    await until(() => link.up)
    t.strictSame(await mailbox.health!(), { ok: true })
    t.strictSame(await reading(mailbox), ['a'])
    t.equal(await mailbox.settle('d', 'a', 'delivered'), true)
  })

  t.test('a Redis without memory takes no letters, but ends them, and has room again', async t => {
    const full = await redisServer(t, path)
    const mailbox = await open(t, { url: full.url })
    const client = connect(t, full)
    const used = Number(/used_memory:(\d+)/.exec(await client.info('memory'))![1])
    await client.config('SET', 'maxmemory', used + 1_000_000)
    const body = new Uint8Array(50_000)
    const soon = Date.now() + MINUTE
    let count = 0
    const put = () => mailbox.put('d', letter(`l${count}`, { body, expiresAt: count < 5 ? soon : soon + MINUTE }), plenty)
    while (await reasonOf(put()) === 'it did not fail') count++
    t.ok(count > 10 && count < 30, `${count} letters`)
    t.equal(await reasonOf(put()), 'store-full')
    t.equal((await reading(mailbox)).length, count)
    t.match(await mailbox.receipt('d', 'l0'), { status: 'queued' })
    t.equal(await mailbox.receipt('d', `l${count}`), undefined)
    t.equal(await mailbox.addAttempt('d', 'l5'), 1)
    t.equal((await mailbox.sweep(soon)).length, 5)
    t.equal(await mailbox.settle('d', 'l5', 'delivered'), true)
    t.match(await mailbox.receipt('d', 'l5'), { status: 'delivered' })
    t.equal((await put()).fresh, true)
    t.equal(await mailbox.waiting('d'), count - 5)
    t.equal(await mailbox.size!(), count - 5)
  })

  t.test('a letter of 8 MB and more is refused before it is sent', async t => {
    const mailbox = await open(t, { prefix: prefix() })
    for (const body of [new Uint8Array(8_388_608), `"${'x'.repeat(8_388_606)}"`]) t.equal(await reasonOf(mailbox.put('d', letter('a', { body }), plenty)), 'too-large')
    const body = new Uint8Array(8_000_000)
    await mailbox.put('d', letter('a', { body }), plenty)
    t.equal((await all(mailbox.letters('d')))[0]!.body.length, body.length)
  })

  t.test('ids and collapse keys may have any character, and the names of keys and fields', async t => {
    const over = { prefix: prefix() }
    const mailbox = await open(t, over)
    const every = `${String.fromCharCode(...Array(0x800).keys())}\u2028€😀`
    const deviceId = 'AZaz09._:@+=~-'
    const names = [every, 'bytes', 'l', 'a', 'c', '"k"', 'k', 'c"k"', '\n', ' ', 'd d', 'position', 'expiries', '']
    const ending = { status: 'replaced' as const }
    for (const id of names) {
      t.match(await mailbox.put(deviceId, letter(id, { body: new Uint8Array(1), collapse: id }), plenty), { fresh: true, receipt: { id, collapse: id } })
      t.equal(await mailbox.addAttempt(deviceId, id), 1)
    }
    t.strictSame(await reading(mailbox, deviceId), names)
    for (const id of names) {
      t.match(await mailbox.put(deviceId, letter(`${id}'`, { body: new Uint8Array(1), collapse: id, expiresAt: 1 }), { letters: names.length, bytes: names.length }), { fresh: true, replaced: { id, collapse: id, ...ending } })
      t.match(await mailbox.receipt(deviceId, id), { id, collapse: id, ...ending })
    }
    const swept = await mailbox.sweep(1)
    t.strictSame(swept.map(one => `${one.deviceId} ${one.receipt.id}`).toSorted(), names.map(id => `${deviceId} ${id}'`).toSorted())
    const left = await connect(t).keys(`${over.prefix}:*`)
    t.strictSame(left.filter(key => !key.startsWith(`${over.prefix}:receipt:`)), [`${over.prefix}:position`])
  })

  t.test('letters that have ended and whose receipts have expired leave nothing', async t => {
    const over = { prefix: prefix() }
    const mailbox = await open(t, over, 500)
    const soon = Date.now() + MINUTE
    const ids = Array.from({ length: 10_000 }, (_, at) => ({ deviceId: `d${at % 100}`, id: `l${at}` }))
    const fate = (at: number) => ['delivered', 'cancelled', 'expired', 'replaced'][at % 4]!
    await Promise.all(ids.map(({ deviceId, id }, at) => mailbox.put(deviceId, letter(id, { expiresAt: soon, ...(at % 5 === 0 && { collapse: `k${at % 7}` }) }), plenty)))
    await Promise.all(ids.map(({ deviceId, id }, at) => at % 3 === 0 && mailbox.addAttempt(deviceId, id)))
    await Promise.all(ids.map(({ deviceId, id }, at) => fate(at) !== 'expired' && mailbox.settle(deviceId, id, fate(at) as never)))
    while ((await mailbox.sweep(soon)).length > 0);
    t.equal(await mailbox.size!(), 0)
    const client = connect(t)
    await until(async () => (await client.keys(`${over.prefix}:*`)).length <= 1)
    t.strictSame(await client.keys(`${over.prefix}:*`), [`${over.prefix}:position`])
  })

  t.test('a letter whose receipt is no longer kept can be put again', async t => {
    const mailbox = await open(t, { prefix: prefix() }, 50)
    await mailbox.put('d', letter('a'), plenty)
    await mailbox.settle('d', 'a', 'delivered')
    await until(async () => await mailbox.receipt('d', 'a') === undefined)
    t.match(await mailbox.put('d', letter('a'), plenty), { fresh: true })
    t.strictSame(await reading(mailbox), ['a'])
  })

  t.test('letters are read in pages, and many large ones are not read at once', async t => {
    const link = await openLink(t, { prefix: prefix() })
    let pages = 0
    const mailbox = mailboxThrough(link, async run => {
      pages++
      return await run()
    })
    const names = Array.from({ length: 70 }, (_, at) => `l${at}`)
    for (const [deviceId, size, expected] of [['small', 10, 3], ['large', 400_000, 24]] as const) {
      await Promise.all(names.map(id => mailbox.put(deviceId, letter(id, { body: new Uint8Array(size) }), plenty)))
      pages = 0
      t.strictSame(await reading(mailbox, deviceId), names)
      t.equal(pages, expected)
    }
    await Promise.all(names.slice(0, 32).map(id => mailbox.put('d', letter(id), plenty)))
    pages = 0
    t.equal((await reading(mailbox)).length, 32)
    t.equal(pages, 1, 'none is left behind a full page')
  })

  t.test('letters that end while an earlier one is delivered are not read', async t => {
    const { now } = performance
    t.teardown(() => { performance.now = now })
    let passed = 0
    performance.now = () => now.call(performance) + passed
    const mailbox = await open(t, { prefix: prefix() })
    for (const id of ['a', 'b', 'c', 'e']) await mailbox.put('d', letter(id), plenty)
    const read: string[] = []
    for await (const { id } of mailbox.letters('d')) {
      read.push(id)
      if (id === 'a') await mailbox.settle('d', 'b', 'cancelled')
      if (id === 'c') await mailbox.settle('d', 'e', 'cancelled')
      passed += MINUTE
    }
    t.strictSame(read, ['a', 'c'])
  })

  sharedClockContract(t, 'Redis', async t => {
    const over = { prefix: prefix() }
    const openWithClock = async () => {
      const clock = new ServerClock()
      clock.note(Date.now(), performance.now())
      return mailboxOver(await openLink(t, over), clock)
    }
    return [await openWithClock(), await openWithClock()]
  })

  t.test('positions grow even if Redis loses everything, and if its clock is set back', async t => {
    const over = { prefix: prefix() }
    const mailbox = await open(t, over)
    const client = connect(t)
    const positions: number[] = []
    const putAndEnd = async (id: string) => {
      await mailbox.put('d', letter(id), plenty)
      positions.push(...(await all(mailbox.letters('d'))).map(({ position }) => position))
      await mailbox.settle('d', id, 'delivered')
    }
    await putAndEnd('a')
    await client.flushall()
    await putAndEnd('b')
    const future = (Date.now() + MINUTE) * 1_000
    await client.set(`${over.prefix}:position`, future)
    await putAndEnd('c')
    await putAndEnd('e')
    const [a, b, ...later] = positions
    t.ok(a! < b!)
    t.strictSame(later, [future + 1, future + 2])
  })

  t.test('Redis may lose its scripts and all its data while letters are put and settled', async t => {
    const emptied = await redisServer(t, path)
    const mailbox = await open(t, { url: emptied.url })
    const client = connect(t, emptied)
    const over = new AbortController()
    let puts = 0
    const work = async (lane: number) => {
      const deviceId = `d${lane % 4}`
      let last = 0
      for (let count = 0; !over.signal.aborted; count++) {
        const id = `${lane} ${count}`
        await mailbox.put(deviceId, letter(id, { collapse: `k${lane % 2}` }), plenty)
        puts++
        for await (const { position } of mailbox.letters(deviceId, last)) last = position
        await mailbox.addAttempt(deviceId, id)
        await mailbox.settle(deviceId, id, 'delivered')
        await mailbox.sweep(Date.now())
      }
    }
    const lanes = Promise.all(Array.from({ length: 16 }, (_, lane) => work(lane)))
    for (let round = 0; round < 40; round++) {
      await client.script('FLUSH')
      if (round % 2 === 0) await client.flushall()
      const before = puts
      await until(() => puts > before + 10)
    }
    over.abort()
    await lanes
    for (let device = 0; device < 4; device++) for (const id of await reading(mailbox, `d${device}`)) await mailbox.settle(`d${device}`, id, 'delivered')
    t.equal(await mailbox.size!(), 0)
    const left = await client.keys('*')
    t.strictSame(left.filter(key => !key.startsWith('devices:receipt:')), ['devices:position'])
  })

  t.test('an index entry whose letter was deleted by hand is dropped', async t => {
    const over = { prefix: prefix() }
    const mailbox = await open(t, over)
    for (const id of ['a', 'b']) await mailbox.put('d', letter(id, { expiresAt: 1 }), plenty)
    await connect(t).del(`${over.prefix}:letters:d`)
    t.strictSame(await reading(mailbox), [])
    t.strictSame(await mailbox.sweep(1), [])
    t.equal(await mailbox.size!(), 0)
    t.equal(await mailbox.waiting('d'), 0)
  })

  t.test('of many concurrent calls that settle a letter, on two nodes, one resolves with true', async t => {
    const over = { prefix: prefix() }
    const nodes = [await open(t, over), await open(t, over)]
    const settle = async () => (await Promise.all(Array.from({ length: 8 }, (_, at) => nodes[at % 2]!.settle('d', 'a', 'expired')))).filter(Boolean).length
    t.equal(await settle(), 0, 'there is none')
    await nodes[0]!.put('d', letter('a'), plenty)
    t.equal(await settle(), 1)
  })

  t.test('of letters of one collapse key that several nodes put at the same time, the last one stays', async t => {
    const over = { prefix: prefix() }
    const nodes = [await open(t, over), await open(t, over), await open(t, over)]
    for (let round = 0; round < 20; round++) {
      const ids = nodes.map((_, at) => `${round} ${at}`)
      const puts = await Promise.all(nodes.map((node, at) => node.put('d', letter(ids[at]!, { collapse: 'k' }), plenty)))
      const left = await reading(nodes[0]!)
      t.equal(left.length, 1)
      t.strictSame(puts.flatMap(put => put.replaced ?? []).map(({ id }) => id).toSorted(), ids.filter(id => id !== left[0]), 'each is reported once')
      t.equal(await nodes[2]!.settle('d', left[0]!, 'delivered'), true)
    }
  })

  t.test('a settlement whose answer was lost is reported by its next try, and by no other call', async t => {
    const proxy = await Proxy.start(server.port)
    t.teardown(() => proxy.stop())
    const over = { prefix: prefix() }
    const link = await openLink(t, { ...over, url: proxy.url.replace('http', 'redis') })
    const mailbox = mailboxOver(link, new ServerClock())
    const other = await open(t, over)
    for (const id of ['a', 'b']) await mailbox.put('d', letter(id), plenty)
    await mailbox.settle('d', 'b', 'delivered') // Redis knows the script now
    proxy.onClientData = said => { if (said.includes('"status":"delivered"')) process.nextTick(() => proxy.blackhole()) }
    const first = reasonOf(mailbox.settle('d', 'a', 'delivered'))
    await until(async () => (await other.receipt('d', 'a'))!.status === 'delivered')
    proxy.onClientData = undefined
    proxy.resetBlackholed()
    t.equal(await first, 'unreachable')
    await until(() => link.up)
    t.equal(await other.settle('d', 'a', 'delivered'), false)
    t.equal(await mailbox.settle('d', 'a', 'cancelled'), false, 'another ending')
    t.strictSame((await Promise.all([1, 2, 3].map(() => mailbox.settle('d', 'a', 'delivered')))).toSorted(), [false, false, true])
    t.match(await mailbox.receipt('d', 'a'), { status: 'delivered' })
    t.notOk('call' in (await mailbox.receipt('d', 'a'))!)
  })

  t.test('of concurrent settlements that all lose their answers, one is reported by its next try', async t => {
    const link = await openLink(t, { prefix: prefix() })
    let isLossy = true
    const mailbox = mailboxThrough(link, async run => {
      const answer = await run()
      if (isLossy) throw new Failure('unreachable')
      return answer
    })
    await reasonOf(mailbox.put('d', letter('a'), plenty))
    const settle = () => Promise.all([1, 2, 3].map(() => mailbox.settle('d', 'a', 'delivered').catch(error => error.reason)))
    t.strictSame(await settle(), ['unreachable', 'unreachable', 'unreachable'])
    t.strictSame(await settle(), ['unreachable', 'unreachable', 'unreachable'])
    isLossy = false
    t.strictSame((await settle()).toSorted(), [false, false, true])
  })

  t.test('expired letters whose sweep lost its answer are reported by the next one', async t => {
    const over = { prefix: prefix() }
    const link = await openLink(t, over)
    const lost = new Set<unknown>()
    const mailbox = mailboxThrough(link, async (run, _script, _keys, [, id]) => {
      const answer = await run()
      if (lost.has(id)) throw new Failure('unreachable')
      return answer
    })
    const names = ['a', 'b', 'c']
    for (const id of names) await mailbox.put('d', letter(id, { expiresAt: 1 }), plenty)
    for (const id of ['a', 'b']) lost.add(id)
    t.strictSame((await mailbox.sweep(1)).map(({ receipt }) => receipt.id), ['c'], 'what is known is reported')
    t.equal(await reasonOf(mailbox.sweep(1)), 'unreachable')
    lost.clear()
    t.strictSame(await (await open(t, over)).sweep(1), [], 'another node does not report them')
    t.match(await mailbox.sweep(1), ['a', 'b'].map(id => ({ deviceId: 'd', receipt: { id, status: 'expired' } })))
    t.strictSame(await mailbox.sweep(1), [])
  })

  t.test('an aborted sweep starts nothing', async t => {
    const mailbox = await open(t, { prefix: prefix() })
    await mailbox.put('d', letter('a', { expiresAt: 1 }), plenty)
    t.strictSame(await mailbox.sweep(1, AbortSignal.abort()), [])
    t.strictSame(await reading(mailbox), ['a'])
    t.match(await mailbox.sweep(1), [{ receipt: { id: 'a', status: 'expired' } }])
  })
})
