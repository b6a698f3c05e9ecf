import { setTimeout as sleep } from 'node:timers/promises'
import { jetstreamManager, StorageType, type StreamConfig } from '@nats-io/jetstream'
import { connect } from '@nats-io/transport-node'
import t, { type Test } from 'tap'
import type { Owner } from '../lib/cluster/backplane.ts'
import { nats, natsBackplane, natsMailbox } from '../lib/nats/index.ts'
import { Link } from '../lib/nats/link.ts'
import { StreamStore, type StoredRecord } from '../lib/nats/stream-store.ts'
import { StreamScan } from '../lib/nats/stream-scan.ts'
import { Failure } from '../lib/protocol/errors.ts'
import { natsCluster, natsServer } from './campaigns/nats.ts'
import { Proxy } from './campaigns/proxy.ts'
import { letter } from './contracts/mailbox.ts'
import { all, reasonOf, until } from './fakes.ts'
import { withProgram } from './programs.ts'

const plenty = { letters: 1_000, bytes: 1_000_000 }
const SECOND = 1_000_000_000

let prefixes = 0
const prefix = () => `p${++prefixes}`

interface Over {
  servers: string[] | string
  replicas?: number
  config?: Partial<StreamConfig>
}

/** A stream of six records, of which the first and the third are erased. */
async function six (t: Pick<Test, 'teardown'>, { servers, replicas = 1, config = {} }: Over): Promise<StreamStore> {
  const link = new Link({ servers, replicas, prefix: prefix(), startWithout: true })
  t.teardown(() => link.close())
  const records = StreamStore.stream(link, 'six', config)
  await link.open(manager => records.prepare(manager))
  await until(() => link.up)
  for (const subject of ['a', 'b', 'c', 'd', 'e', 'f']) await records.append(subject, `of ${subject}`)
  for (const [subject, seq] of [['a', 1], ['c', 3]] as const) await records.erase(subject, seq)
  return records
}

/** Erases at positions without a record: an impossible one, before the first, in a gap, after the last, far after it. */
async function eraseNothing (t: Test, records: StreamStore, why: string): Promise<void> {
  for (const [subject, seq] of [['a', 0], ['a', 1], ['c', 3], ['g', 7], ['g', 100]] as const) t.equal(await records.erase(subject, seq), false, `${why}, ${seq}`)
}

function ownerOf (deviceId: string, node: string): Owner {
  return { presence: { deviceId, node, since: Date.now() }, answer: async () => ({ ok: true, value: null }), listensTo: () => false, yield () {} }
}

async function managerOf (t: Pick<Test, 'teardown'>, servers: string[] | string) {
  const connection = await connect({ servers })
  t.teardown(() => connection.close())
  return await jetstreamManager(connection, { checkAPI: false })
}

withProgram(t, 'nats-server', 'records of one server', async (t, path) => {
  const server = await natsServer(t, path)
  const { servers } = server

  t.test('erasing a record that is gone resolves with false, at any position', async t => {
    for (const storage of [StorageType.File, StorageType.Memory]) {
      const records = await six(t, { servers, config: { storage } })
      await eraseNothing(t, records, storage)
      t.equal(await records.erase('f', 6), true)
      t.equal(await records.erase('f', 6), false, 'it was the last')
    }
  })

  t.test('of concurrent attempts one erases the record', async t => {
    const records = await six(t, { servers })
    const found = (await records.at(4))!
    const erased = await Promise.all(Array.from({ length: 8 }, () => records.remove(found)))
    t.equal(erased.filter(Boolean).length, 1)
  })

  t.test('an unexpected record is not erased', async t => {
    const records = await six(t, { servers })
    t.equal(await records.erase('e', 4), false)
    t.equal(await records.erase('d', 4, ({ data }) => Buffer.from(data).toString() === 'of another'), false)
    t.match(await records.at(4), { seq: 4, subject: 'd' })
    t.equal(await records.erase('d', 4, ({ data }) => Buffer.from(data).toString() === 'of d'), true)
    t.equal(await records.at(4), undefined)
  })

  t.test('a record that cannot be erased does not count as gone', async t => {
    const link = new Link({ servers, prefix: prefix() })
    t.teardown(() => link.close())
    const records = StreamStore.stream(link, 'kept', { deny_delete: true })
    await link.open(manager => records.prepare(manager))
    await records.append('a', 'of a')
    t.equal(await reasonOf(records.erase('a', 1)), 'unreachable')
    t.match(await records.at(1), { subject: 'a' })
  })

  t.test('a scan visits each record once per pass, with any gaps', async t => {
    const link = new Link({ servers, prefix: prefix() })
    t.teardown(() => link.close())
    const records = StreamStore.stream(link, 'round')
    await link.open(manager => records.prepare(manager))
    const scan = new StreamScan(records)
    const round = async () => {
      const seen: number[] = []
      await scan.step(async ({ seq }) => { seen.push(seq) })
      return seen.toSorted((one, other) => one - other)
    }
    t.strictSame(await round(), [])
    for (let count = 0; count < 60; count++) await records.append(`s${count}`, '')
    const found = await Promise.all([...Array(60).keys()].map(at => records.at(at + 1)))
    for (const at of [...Array(59).keys()].filter(at => at % 7 > 0 && (at < 20 || at > 40))) await records.remove(found[at] as StoredRecord)
    const left = found.filter((_, at) => at % 7 === 0 || at === 59 || (at >= 20 && at <= 40)).map(one => one!.seq)
    const seen: number[] = []
    while (seen.length < left.length) seen.push(...await round())
    t.strictSame(seen.toSorted((one, other) => one - other), left)
    const aborted: number[] = []
    await scan.step(async ({ seq }) => { aborted.push(seq) }, AbortSignal.abort())
    t.strictSame(aborted, [])
  })

  t.test('changed options are applied to the stream when a node starts', async t => {
    const over = { prefix: prefix() }
    const proxy = await Proxy.start(server.port)
    t.teardown(() => proxy.stop())
    const manager = await managerOf(t, servers)
    const maxAge = async () => (await manager.streams.info(`KV_${over.prefix}_receipts`)).config.max_age / SECOND
    const before = await natsMailbox({ ...over, servers: proxy.url.slice('http://'.length), keepReceipts: 50_000 })
    t.teardown(() => before.close!())
    await before.put('d', letter('a'), plenty)
    t.equal(await maxAge(), 50)
    const after = await natsMailbox({ ...over, servers, keepReceipts: 60_000, maxBytes: 1_000_000 })
    t.teardown(() => after.close!())
    t.equal(await maxAge(), 60)
    t.strictSame((await all(after.letters('d'))).map(({ id }) => id), ['a'])
    // a node with older options that reconnects leaves the stream as it is
    proxy.reset()
    await until(async () => await reasonOf(before.waiting('d')) === 'unreachable')
    await until(async () => await reasonOf(before.put('d', letter('b'), plenty)) === 'it did not fail')
    t.equal(await maxAge(), 60)
  })

  t.test('settings of the operator stay in a stream', async t => {
    const over = { prefix: prefix(), servers }
    const manager = await managerOf(t, servers)
    await (await natsMailbox(over)).close!()
    await manager.streams.update(`${over.prefix}_letters`, { description: 'of the operator' })
    const mailbox = await natsMailbox(over)
    t.teardown(() => mailbox.close!())
    await mailbox.put('d', letter('a'), plenty)
    t.equal((await manager.streams.info(`${over.prefix}_letters`)).config.description, 'of the operator')
  })

  t.test('replicas on a single server are refused at start', async t => {
    const over = { prefix: prefix(), servers }
    await (await nats(over)).backplane.close!()
    for (const open of [nats, natsMailbox, natsBackplane]) {
      await t.rejects(async () => { await open({ ...over, replicas: 3 }) }, { message: /NATS at \S+ cannot be used: replicas > 1 not supported in non-clustered mode/ })
    }
    const manager = await managerOf(t, servers)
    t.equal((await manager.streams.info(`${over.prefix}_letters`)).config.num_replicas, 1)
  })
})

withProgram(t, 'nats-server', 'records of three servers', async (t, path) => {
  const cluster = await natsCluster(t, path)
  const servers = cluster.map(server => server.servers)
  const resets = () => cluster.flatMap(({ log }) => log.split('\n').filter(line => line.includes('Resetting stream')))

  t.test('erasing without a record resets no replica', async t => {
    const records = await six(t, { servers, replicas: 3 })
    await eraseNothing(t, records, 'three replicas')
    t.equal(await records.erase('f', 6), true)
    t.equal(await records.erase('f', 6), false, 'it was the last')
    t.match(await records.append('g', 'of g'), { seq: 7 })
    t.strictSame(resets(), [])
    const single = await six(t, { servers })
    await eraseNothing(t, single, 'one replica')
  })

  t.test('streams get their replicas when a node with that option starts', async t => {
    const over = { prefix: prefix(), servers }
    const single = await nats(over)
    await single.mailbox.put('d', letter('a'), plenty)
    await single.backplane.close!()
    const { backplane, mailbox } = await nats({ ...over, replicas: 3 })
    t.teardown(() => backplane.close!())
    const manager = await managerOf(t, servers)
    for (const name of [`${over.prefix}_letters`, ...['entries', 'receipts', 'devices'].map(name => `KV_${over.prefix}_${name}`)]) {
      t.equal((await manager.streams.info(name)).config.num_replicas, 3)
    }
    t.equal(await mailbox.settle('d', 'a', 'delivered'), true)
    await mailbox.put('d', letter('b'), plenty)
    t.strictSame((await all(mailbox.letters('d'))).map(({ id }) => id), ['b'])
    t.strictSame(await backplane.list({ limit: 1 }), [])
    await t.rejects(natsBackplane({ ...over, replicas: 5 }), { message: /cannot be changed \(num_replicas from 3 to 5\): no suitable peers/ })
  })
})

withProgram(t, 'nats-server', 'records of three servers, one of which is killed', async (t, path) => {
  t.test('replicas agree, although two nodes take the same devices and put their first letters at the same moment', async t => {
    const cluster = await natsCluster(t, path)
    const over = { servers: cluster.map(server => server.servers), replicas: 3, prefix: prefix(), reconnectTimeWait: 50 }
    const nodes = await Promise.all([1, 2].map(async node => ({ node: `n${node}`, backplane: await natsBackplane(over), mailbox: await natsMailbox(over) })))
    const stop = new AbortController()
    let turns = 0
    async function lane (number: number): Promise<void> {
      for (let turn = 0; !stop.signal.aborted; turn++) {
        const deviceId = `d${number}-${turn % 3}`
        try {
          const both = await Promise.all(nodes.map(async ({ node, backplane, mailbox }) => {
            const ownership = await backplane.own(deviceId, ownerOf(deviceId, node))
            await mailbox.put(deviceId, letter(`${node}-${turn}`), plenty)
            return ownership
          }))
          await Promise.all(both.map(ownership => ownership.release()))
          for (const { node, mailbox } of nodes) await mailbox.settle(deviceId, `${node}-${turn}`, 'delivered')
          turns++
        } catch (error) {
          if (!(error instanceof Failure)) throw error
          await sleep(20)
        }
      }
    }
    const lanes = Promise.all(Array.from({ length: 20 }, (_, number) => lane(number)))
    const more = async (count: number) => {
      const enough = turns + count
      await until(() => turns >= enough)
    }
    for (const server of cluster) {
      await more(150)
      await server.stop('SIGKILL')
      await more(50)
      await server.start()
    }
    await more(150)
    stop.abort()
    await lanes
    for (const { backplane, mailbox } of nodes) await Promise.all([backplane.close!(), mailbox.close!()])
    t.strictSame(cluster.flatMap(({ log }) => log.match(/Resetting stream.*/g) ?? []), [])
  })
})
