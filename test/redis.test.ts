import { Redis, Cluster } from 'ioredis'
import t, { type Test } from 'tap'
import type { Backplane, PresenceChange, Publication, Request } from '../lib/cluster/backplane.ts'
import { redis, type RedisOptions } from '../lib/redis/index.ts'
import { checkServer } from '../lib/redis/server-check.ts'
import { ServerClock } from '../lib/redis/server-clock.ts'
import { freePort } from './campaigns/port.ts'
import { RedisServer, redisServer } from './campaigns/redis.ts'
import { backplaneContract } from './contracts/backplane.ts'
import { advanceClock, Connection, gate, reasonOf, until } from './fakes.ts'
import { withProgram } from './programs.ts'

const wake: Request = { kind: 'wake' }
const call: Request = { kind: 'call', method: 'm', params: null, timeout: 60_000 }

t.test('a server that cannot be used is refused with the reason', async t => {
  const info = (fields: Record<string, string>) => Object.entries({ redis_version: '7.2.4', redis_mode: 'standalone', role: 'master', ...fields }).map(([name, value]) => `${name}:${value}`).join('\r\n')
  checkServer(info({}))
  checkServer(info({ maxmemory_policy: 'volatile-lru', server_name: 'valkey' }))
  t.throws(() => checkServer(info({ redis_mode: 'cluster' })), /Redis Cluster is not supported/)
  t.throws(() => checkServer('server_name:valkey\r\nredis_version:7.2.4\r\nserver_mode:cluster'), /Redis Cluster is not supported/)
  t.throws(() => checkServer(info({ redis_version: '6.2.14' })), /Redis 6\.2\.14 is too old: version 7 is needed/)
  t.throws(() => checkServer('maxmemory_policy:noeviction'), /Redis unknown is too old/)
  t.throws(() => checkServer(info({ role: 'slave' })), /is a replica/)
  t.throws(() => checkServer(info({ maxmemory_policy: 'allkeys-lru' })), /maxmemory-policy is allkeys-lru, which drops letters/)
})

t.test('the clock of Redis is known from the fastest answer, and forgotten with the connection', async t => {
  const { now } = performance
  let time = 1_000
  performance.now = () => time
  t.teardown(() => { performance.now = now })
  const clock = new ServerClock()
  t.ok(Math.abs(clock.now() - Date.now()) < 1_000)
  t.equal(clock.ahead, 0)
  const reads = (server: number, roundTrip: number) => {
    const sentAt = time
    time += roundTrip
    clock.note(server, sentAt)
  }
  reads(Date.now() + 60_000, 10)
  t.ok(Math.abs(clock.ahead - 60_000) <= 1_000)
  reads(Date.now() + 90_000, 20)
  t.ok(Math.abs(clock.ahead - 60_000) <= 1_000, 'a slower answer is less accurate')
  clock.invalidate()
  reads(Date.now() + 90_000, 20)
  t.ok(Math.abs(clock.ahead - 90_000) <= 1_000)
})

withProgram(t, 'redis-server', 'over Redis', async (t, path) => {
  const server = await RedisServer.start(path)
  t.after(() => server.remove())
  let prefixes = 0
  const nextPrefix = () => `p${++prefixes}`

  const join = async (t: Pick<Test, 'teardown'>, options: RedisOptions = {}, count = 2) => {
    const over = { url: server.url, prefix: nextPrefix(), ...options }
    const backplanes = (await Promise.all(Array.from({ length: count }, () => redis(over)))).map(({ backplane }) => backplane)
    for (const backplane of backplanes) t.teardown(() => backplane.close!())
    const changes: PresenceChange[] = []
    backplanes[0]!.follow(change => changes.push(change))
    await backplanes[0]!.flush!()
    return { backplanes: backplanes as [Backplane, Backplane, ...Backplane[]], prefix: over.prefix, changes }
  }
  /** A client of the test itself. */
  const behind = (t: Pick<Test, 'teardown'>, url = server.url) => {
    const client = new Redis(url)
    t.teardown(() => client.disconnect())
    return client
  }
  const links = (backplane: Backplane) => {
    const changes: boolean[] = []
    backplane.onLink!(up => changes.push(up))
    return changes
  }
  const listed = async (backplane: Backplane) => (await backplane.list({ limit: 100 })).map(({ deviceId, node }) => `${deviceId} ${node}`)
  backplaneContract(t, 'redis()', async () => {
    const options = { url: server.url, prefix: nextPrefix() }
    const [{ backplane: a }, { backplane: b }] = [await redis(options), await redis(options)]
    return { a, b, close: async () => { await Promise.all([a.close!(), b.close!()]) } }
  })

  t.test('closing the backplane ends the connections, and nothing of the node is left', async t => {
    const own = await redisServer(t, path)
    const client = behind(t, own.url)
    const connections = async () => (await client.client('LIST') as string).trim().split('\n').length - 1
    const { backplane, mailbox } = await redis({ url: own.url })
    await backplane.own('d', new Connection('d', 'a'))
    t.equal(await connections(), 2)
    t.equal(mailbox.close, undefined, 'the backplane closes what they share')
    await backplane.close!()
    await until(async () => await connections() === 0)
    t.equal(await reasonOf(mailbox.waiting('d')), 'unreachable')
    t.strictSame(await client.keys('*'), ['devices:generation'])
    t.strictSame(await backplane.health!(), { ok: false, reason: 'Redis unreachable' })
  })

  t.test('a Redis that cannot be used is refused at the start, and no connection stays', async t => {
    const port = await freePort()
    const refused = await redis({ url: `redis://user:secret@127.0.0.1:${port}` }).catch(({ message }) => message)
    t.match(refused, `fastify-devices: Redis at redis://127.0.0.1:${port} cannot be used: connect ECONNREFUSED`)
    t.match(refused, 'startWithout')
    await t.rejects(redis({ host: '127.0.0.1', port }), /Redis cannot be used: connect ECONNREFUSED/)
    const client = behind(t)
    await client.call('ACL', 'SETUSER', 'noscripts', 'on', '>pw', '~*', '&*', '+@all', '-@scripting')
    await t.rejects(redis({ url: server.url, username: 'noscripts', password: 'pw' }), /NOPERM.*evalsha/)
    await t.rejects(redis({ url: server.url, username: 'nobody', password: 'pw' }), /WRONGPASS/)
    const cluster = await redisServer(t, path, ['--cluster-enabled', 'yes', '--cluster-port', String(await freePort())])
    await t.rejects(redis({ url: cluster.url }), /Redis Cluster is not supported/)
    const evicting = await redisServer(t, path, ['--maxmemory-policy', 'allkeys-lru'])
    await t.rejects(redis({ url: evicting.url }), /maxmemory-policy is allkeys-lru/)
    const ofCluster = new Cluster([{ host: '127.0.0.1', port: cluster.port }], { lazyConnect: true })
    await t.rejects(redis({ client: ofCluster as never }), /Redis Cluster is not supported/)
    await until(async () => (await client.client('LIST') as string).trim().split('\n').length === 1)
  })

  t.test('an option that does not exist is refused by its name, and so is a prefix with other characters', async t => {
    await t.rejects(redis({ url: server.url, keyPrefix: 'a' } as object), { message: 'fastify-devices/redis has no option "keyPrefix"' })
    await t.rejects(redis({ url: server.url, prefix: 'a:b' }), /the prefix "a:b" is wrong/)
  })

  t.test('the settings of an existing client are used, and the client is left alone', async t => {
    const client = new Redis(server.url, { keyPrefix: 'theirs:', db: 3, retryStrategy: () => 10 })
    t.teardown(() => client.disconnect())
    const prefix = nextPrefix()
    const { backplane } = await redis({ client, prefix })
    await backplane.own('d', new Connection('d', 'a'))
    t.strictSame(await backplane.ask('d', wake), { ok: true, value: 'a' })
    t.equal(await behind(t, `${server.url}/3`).hexists(`${prefix}:owners`, 'd'), 1, 'in the database of the client, without its prefix')
    await backplane.close!()
    t.equal(client.status, 'ready')
    t.equal(client.listenerCount('close'), 0)
  })

  t.test('a node may start before Redis does: it serves its own devices, and reports that once', async t => {
    const own = await redisServer(t, path)
    await own.stop()
    const { backplane, mailbox } = await redis({ url: own.url, startWithout: true })
    t.teardown(() => backplane.close!())
    const troubles: unknown[] = []
    backplane.onTrouble!(error => troubles.push(error))
    const changes = links(backplane)
    await until(() => troubles.length > 0)
    for (const work of [mailbox.waiting('d'), backplane.ask('d', wake), backplane.list({ limit: 1 }), backplane.list({ limit: 1, topic: 'a' }), backplane.publish({ id: 'm', topic: 'a', data: 1 })]) {
      t.equal(await reasonOf(work), 'unreachable')
    }
    const gone = await backplane.own('gone', new Connection('gone', 'a'))
    const { generation } = await backplane.own('d', new Connection('d', 'a'))
    t.ok(generation > gone.generation)
    await gone.release()
    await own.start()
    await until(() => changes.includes(true))
    await until(async () => (await listed(backplane)).join() === 'd a')
    t.equal((await backplane.list({ limit: 9 }))[0]!.generation, generation)
    t.equal(troubles.length, 1)
  })

  t.test('closing is not reported as an outage, and is possible at any time', async t => {
    const { backplane } = await redis({ url: server.url, prefix: nextPrefix() })
    const changes = links(backplane)
    await backplane.close!()
    await backplane.close!()
    t.strictSame(changes, [])
    for (const url of [server.url, `redis://127.0.0.1:${await freePort()}`]) {
      const { backplane: starting } = await redis({ url, prefix: nextPrefix(), startWithout: true })
      await starting.close!()
      t.equal(await reasonOf(starting.ask('d', wake)), 'unreachable')
    }
    const client = behind(t)
    await until(async () => (await client.client('LIST') as string).trim().split('\n').length <= 2)
  })

  t.test('while Redis is away nothing waits, and once it is back each device has its owner and each subscription is heard once', async t => {
    for (const persistent of [true, false]) {
      const own = await redisServer(t, path, ['--appendonly', persistent ? 'yes' : 'no'])
      const { backplanes: [a, b] } = await join(t, { url: own.url })
      const [moved, stays] = [new Connection('moved', 'a'), new Connection('stays', 'a')]
      const heard: unknown[] = []
      b.watch('news/+', ({ data }) => { heard.push(data); return 1 })
      await b.flush!()
      const before = await a.own('moved', moved)
      await a.own('stays', stays)
      const mute = new Connection('mute', 'b')
      const asked = gate()
      mute.reply = () => { asked.open(); return new Promise(() => {}) }
      await b.own('mute', mute)
      const pending = reasonOf(a.ask('mute', call))
      await asked.opened
      const changes = links(a)
      await own.stop('SIGKILL')
      await until(() => changes.includes(false))
      t.equal(await pending, 'dropped')
      for (const work of [() => a.ask('stays', wake), () => a.list({ limit: 1 }), () => a.publish({ id: 'm', topic: 'news/a', data: 1 })]) t.equal(await reasonOf(work()), 'unreachable')
      t.strictSame(await a.health!(), { ok: false, reason: 'Redis unreachable' })
      const after = await b.own('moved', new Connection('moved', 'b'))
      t.ok(after.generation > before.generation)
      await own.start()
      await until(() => changes.at(-1) === true)
      await until(() => moved.yielded === 1)
      for (const node of [a, b]) await until(async () => (await listed(node).catch(() => [])).join() === 'moved b,mute b,stays a')
      t.equal(stays.yielded, 0)
      await until(async () => (await a.publish({ id: 'm', topic: 'news/a', data: 2 }).catch(() => undefined))?.sent === 1)
      const { length } = heard
      t.strictSame(await a.publish({ id: 'n', topic: 'news/b', data: 3 }), { sent: 1, nodes: 1 })
      t.equal(heard.length, length + 1)
      t.ok((await a.own('stays', new Connection('stays', 'a'))).generation > after.generation)
    }
  })

  t.test('after a FLUSHALL the devices are there again, and generations have not fallen', async t => {
    const own = await redisServer(t, path)
    const client = behind(t, own.url)
    const { backplanes: [a, b] } = await join(t, { url: own.url })
    let woken = 0
    const owner = new Connection('d', 'a')
    owner.reply = ({ kind }) => { if (kind === 'wake') woken++; return { ok: true, value: 'a' } }
    const { generation } = await a.own('d', owner)
    await client.flushall()
    await until(async () => (await listed(b)).join() === 'd a')
    t.equal((await b.list({ limit: 1 }))[0]!.generation, generation)
    t.ok(woken > 0, 'letters may have been put meanwhile')
    t.ok((await b.own('d', new Connection('d', 'b'))).generation > generation)
    await until(() => owner.yielded === 1)
  })

  t.test('generations do not fall where the clock of Redis does', async t => {
    const { backplanes: [a, b], prefix } = await join(t)
    const ahead = (Date.now() + 3_600_000) * 1_000
    await behind(t).set(`${prefix}:generation`, ahead)
    const { generation } = await a.own('d', new Connection('d', 'a'))
    t.equal(generation, ahead + 1)
    await behind(t).del(`${prefix}:generation`)
    t.ok((await a.own('e', new Connection('e', 'a'))).generation > generation, 'a node knows what it has given')
    t.equal((await b.own('d', new Connection('d', 'b'))).generation > generation, true)
  })

  t.test('scripts that Redis has forgotten are sent again', async t => {
    const { backplanes: [a, b] } = await join(t)
    await a.own('d', new Connection('d', 'a'))
    await behind(t).script('FLUSH')
    t.strictSame(await Promise.all([b.ask('d', wake), b.ask('d', wake)]), [{ ok: true, value: 'a' }, { ok: true, value: 'a' }])
  })

  t.test('a record that is lost is written again', async t => {
    const { backplanes: [a, b], prefix } = await join(t)
    await a.own('d', new Connection('d', 'a'))
    await behind(t).del(`${prefix}:owners`, `${prefix}:index`)
    await until(async () => (await listed(b)).join() === 'd a')
  })

  t.test('a node that was suspended yields devices taken over meanwhile before it answers', async t => {
    const { backplanes: [a, b], prefix } = await join(t)
    const client = behind(t)
    const [lost, kept] = [new Connection('lost', 'a'), new Connection('kept', 'a')]
    await a.own('lost', lost)
    await a.own('kept', kept)
    // another node has taken the device, and this one has not heard of it
    const [generation = '0', home = ''] = (await client.hget(`${prefix}:owners`, 'lost'))!.split(' ')
    await client.hset(`${prefix}:owners`, 'lost', `${Number(generation) + 1} elsewhere 1 1 1 ${generation} elsewhere`)
    await client.hset(`${prefix}:nodes`, 'elsewhere', '1 9999999999999')
    let asked = 0
    lost.reply = () => { asked++; return { ok: true, value: 'a' } }
    advanceClock(t, 3_000)
    await client.publish(`${prefix}:node:${home}`, JSON.stringify({ type: 'request', from: 'tester', nonce: 'n', deviceId: 'lost', kind: 'wake' }))
    await until(() => lost.yielded === 1)
    t.equal(asked, 0)
    t.strictSame(await b.ask('kept', wake), { ok: true, value: 'a' })
    t.equal(kept.yielded, 0)
  })

  t.test('a dead node is detected: its devices are no longer listed, nor asked, and are reported as disconnected', async t => {
    const { backplanes: [a, b], prefix, changes } = await join(t)
    const client = behind(t)
    for (const id of ['d1', '$worker/w']) await client.hset(`${prefix}:owners`, id, '7 dead 2 1 5 0 some node')
    await client.zadd(`${prefix}:index`, 0, 'd1')
    await client.hset(`${prefix}:nodes`, 'dead', '2 9999999999999')
    await b.own('d2', new Connection('d2', 'b'))
    t.strictSame(await listed(a), ['d1 some node', 'd2 b'])
    t.equal(await reasonOf(a.ask('d1', wake)), 'unreachable', 'it may be back soon')
    t.equal(await a.ask('$worker/w', { kind: 'reached' }), undefined)
    t.equal(await reasonOf(a.ask('d1', { kind: 'call', method: 'm', params: null, timeout: 1 })), 'timeout')
    await client.hset(`${prefix}:nodes`, 'dead', '2 1')
    t.strictSame(await listed(a), ['d2 b'])
    await until(async () => await client.hlen(`${prefix}:owners`) === 1)
    await until(() => changes.some(({ kind, presence }) => kind === 'disconnected' && presence.deviceId === 'd1'))
    t.match(changes.at(-1), { presence: { deviceId: 'd1', node: 'some node', generation: 7, since: 5 } })
    t.equal(await client.hexists(`${prefix}:nodes`, 'dead'), 0)
    t.equal(await a.ask('d1', call), undefined)
  })

  t.test('of two owners that came while Redis was away the newer one stays', async t => {
    const own = await redisServer(t, path)
    const { backplanes: [a, b] } = await join(t, { url: own.url })
    const changes = [links(a), links(b)]
    await own.stop('SIGKILL')
    await until(() => changes.every(up => up.includes(false)))
    const [older, newer, here, alsoHere] = [new Connection('d', 'older'), new Connection('d', 'newer'), new Connection('e', 'here'), new Connection('e', 'also here')]
    const { generation } = await a.own('d', older)
    await until(() => Date.now() * 1_000 > generation + 50_000) // nodes know the time of Redis within a round trip
    await b.own('d', newer)
    await a.own('e', here)
    let confirmed = 0
    alsoHere.confirm = async () => { confirmed++ }
    await a.own('e', alsoHere)
    t.equal(confirmed, 1)
    t.equal(here.yielded, 1)
    await own.start()
    await until(() => older.yielded === 1)
    await until(async () => (await listed(a).catch(() => [])).join() === 'd newer,e also here')
    t.strictSame([newer.yielded, alsoHere.yielded], [0, 0])
  })

  t.test('an owner that came while Redis was away stays if the device has given the newer connection up', async t => {
    const own = await redisServer(t, path)
    const client = behind(t, own.url)
    const { backplanes: [a], prefix } = await join(t, { url: own.url }, 1)
    const changes = links(a)
    await own.stop('SIGKILL')
    await until(() => changes.includes(false))
    const owner = new Connection('d', 'a')
    const { generation } = await a.own('d', owner)
    const later = new Connection('e', 'a')
    await a.own('e', later)
    await own.start()
    // another node was there first
    for (const id of ['d', 'e']) await client.hset(`${prefix}:owners`, id, `${generation + 10_000_000} other 1 1 1 0 other`)
    await until(() => changes.at(-1) === true)
    await client.hdel(`${prefix}:owners`, 'd')
    await until(() => later.yielded === 1)
    await until(async () => await client.hexists(`${prefix}:owners`, 'd') === 1)
    t.equal(owner.yielded, 0)
  })

  t.test('a server that has become a replica is left', async t => {
    const [own, master] = [await redisServer(t, path), await redisServer(t, path)]
    const client = behind(t, own.url)
    const { backplanes: [a] } = await join(t, { url: own.url }, 1)
    await a.own('d', new Connection('d', 'a'))
    const changes = links(a)
    const troubles: Error[] = []
    a.onTrouble!(error => troubles.push(error as Error))
    await client.replicaof('127.0.0.1', master.port)
    await until(() => changes.includes(false))
    await until(() => troubles.some(({ message }) => message.includes('is a replica')))
    await client.replicaof('NO', 'ONE')
    await until(() => changes.at(-1) === true)
    await until(async () => (await listed(a).catch(() => [])).join() === 'd a')
  })

  t.test('a call to a node that dies fails with dropped', async t => {
    const { backplanes: [a], prefix } = await join(t, {}, 1)
    const client = behind(t)
    const listener = new Redis(server.url)
    await listener.subscribe(`${prefix}:node:mute`)
    await client.hset(`${prefix}:owners`, 'd', '7 mute 1 1 5 0 n')
    await client.hset(`${prefix}:nodes`, 'mute', '1 9999999999999')
    const asked = gate()
    listener.on('message', () => asked.open())
    const failed = a.ask('d', call)
    await asked.opened
    listener.disconnect()
    t.strictSame(await failed, { ok: false, reason: 'dropped' })
  })

  t.test('an owner that is late or fails ends only the request', async t => {
    const { backplanes: [a, b] } = await join(t)
    const owner = new Connection('d', 'b')
    await b.own('d', owner)
    owner.reply = () => new Promise(() => {})
    t.equal(await reasonOf(a.ask('d', { kind: 'call', method: 'm', params: null, timeout: 1 })), 'timeout')
    owner.reply = () => { throw new Error('a defect') }
    t.match(await a.ask('d', wake), { ok: false, reason: 'internal' })
    owner.reply = () => ({ ok: true, value: 1n })
    t.match(await a.ask('d', wake), { ok: false, reason: 'internal' })
    owner.reply = () => ({ ok: true, value: 'x'.repeat(9_000_000) })
    t.match(await a.ask('d', wake), { ok: false, reason: 'too-large' })
    owner.reply = () => ({ ok: true, value: 'there' })
    t.strictSame(await a.ask('d', wake), { ok: true, value: 'there' })
    const aborted = AbortSignal.abort()
    let signal: AbortSignal | undefined
    owner.reply = (_request, given) => { signal = given; return new Promise(resolve => given!.addEventListener('abort', () => resolve({ ok: false, reason: 'dropped' }))) }
    t.match(await a.ask('d', call, aborted), { reason: 'dropped' })
    t.equal(signal!.aborted, true)
  })

  t.test('what is larger than a message between nodes may be is refused', async t => {
    const { backplanes: [a] } = await join(t)
    const data = 'x'.repeat(9_000_000)
    t.equal(await reasonOf(a.ask('d', { kind: 'send', id: 'm', data })), 'too-large')
    t.equal(await reasonOf(a.publish({ id: 'm', topic: 'a', data })), 'too-large')
  })

  t.test('a page may be larger than one step, and a device that two nodes list is returned once', async t => {
    const { backplanes: [a, b] } = await join(t)
    await Promise.all(Array.from({ length: 2_100 }, (_, at) => (at % 2 === 0 ? a : b).own(`d${at}`, new Connection(`d${at}`, 'n'))))
    for (const topic of [undefined, 'any']) {
      const ids = (await a.list({ limit: 5_000, topic })).map(({ deviceId }) => deviceId)
      t.strictSame(ids, Array.from({ length: 2_100 }, (_, at) => `d${at}`).toSorted())
    }
  })

  t.test('devices of one topic are listed without those of a node that does not answer, and once if two nodes have them', async t => {
    const { backplanes: [a], prefix } = await join(t, {}, 1)
    const client = behind(t)
    const { generation } = await a.own('d', new Connection('d', 'a'))
    const other = new Redis(server.url)
    t.teardown(() => other.disconnect())
    await other.subscribe(`${prefix}:node:other`)
    await client.hset(`${prefix}:nodes`, 'other', '1 9999999999999', 'silent', '1 9999999999999', 'dead', '1 1')
    const says = (presences: object[]) => {
      other.removeAllListeners('message')
      other.on('message', (_channel, message) => {
        const { from, nonce } = JSON.parse(message)
        void client.publish(`${prefix}:node:${from}`, JSON.stringify({ type: 'reply', nonce, page: presences }))
      })
    }
    for (const [theirs, node] of [[generation + 1, 'other'], [generation - 1, 'a']] as const) {
      says([{ deviceId: 'd', node: 'other', since: 1, generation: theirs }])
      t.match(await a.list({ limit: 9, topic: 'news' }), [{ node }])
    }
    other.removeAllListeners('message')
    t.match(await a.list({ limit: 9, topic: 'news' }), [{ node: 'a' }])
  })

  t.test('an error thrown by a listener is reported, and the connection stays', async t => {
    const { backplanes: [a, b] } = await join(t)
    const troubles: unknown[] = []
    a.onTrouble!(error => troubles.push(error))
    const defect = new Error('a defect')
    a.watch('a', () => { throw defect })
    await a.flush!()
    t.strictSame(await b.publish({ id: 'm', topic: 'a', data: 1 }), { sent: 0, nodes: 0 })
    t.strictSame(troubles, [defect])
    t.equal(await a.ask('d', wake), undefined)
  })

  t.test('a publication that was held back arrives with its age', async t => {
    const { backplanes: [a, b], prefix } = await join(t)
    const heard: Publication[] = []
    a.watch('a', publication => { heard.push(publication); return 1 })
    await a.flush!()
    await b.publish({ id: 'm', topic: 'a', data: 1 })
    t.equal('age' in heard[0]!, false)
    const minuteAgo = (Date.now() - 60_000) * 1_000
    await behind(t).publish(`${prefix}:topic:a`, `${minuteAgo}\n${JSON.stringify({ id: 'late', topic: 'a', data: 2, from: 'n', nonce: 'x' })}`)
    await until(() => heard.length === 2)
    t.ok(heard[1]!.age! > 59_000 && heard[1]!.age! < 70_000)
  })

  t.test('many publications arrive, each once', async t => {
    const { backplanes: [a, b] } = await join(t)
    const heard = new Map<unknown, number>()
    const listen = ({ data }: Publication) => { heard.set(data, (heard.get(data) ?? 0) + 1); return 1 }
    for (const filter of ['a/b', 'a/+', '#']) a.watch(filter, listen)
    await a.flush!()
    for (let round = 0; round < 12; round++) {
      const results = await Promise.all(Array.from({ length: 1_000 }, (_, at) => b.publish({ id: 'm', topic: 'a/b', data: round * 1_000 + at })))
      t.ok(results.every(({ sent, nodes }) => sent === 1 && nodes === 1))
    }
    t.equal(heard.size, 12_000)
    t.ok([...heard.values()].every(times => times === 1))
  })

  t.test('a node that does not count its devices in time is waited for briefly', async t => {
    const { backplanes: [a], prefix } = await join(t, {}, 1)
    const silent = new Redis(server.url)
    t.teardown(() => silent.disconnect())
    await silent.subscribe(`${prefix}:topic:a`)
    t.strictSame(await a.publish({ id: 'm', topic: 'a', data: 1 }), { sent: 0, nodes: 0 })
    const { nonce, from } = await new Promise<any>(resolve => {
      silent.once('message', (_channel, message) => resolve(JSON.parse(message.split('\n')[1]!)))
      void a.publish({ id: 'm', topic: 'a', data: 1 })
    })
    await until(async () => await behind(t).publish(`${prefix}:node:${from}`, JSON.stringify({ type: 'counts', counts: [[nonce, 1], ['unknown', 1]] })) === 1)
    t.equal(await a.ask('d', wake), undefined, 'a count that comes too late changes nothing')
  })

  t.test('a Redis that does not answer is given up, and is used again when it does', async t => {
    const own = await redisServer(t, path)
    const { backplanes: [a, b] } = await join(t, { url: own.url })
    const changes = links(a)
    const mute = new Connection('d', 'b')
    mute.reply = () => new Promise(() => {})
    await b.own('d', mute)
    await own.hold()
    const pending = [reasonOf(a.ask('d', call)), reasonOf(a.publish({ id: 'm', topic: 'a', data: 1 })), reasonOf(a.list({ limit: 9 }))]
    await until(() => changes.includes(false))
    t.strictSame(await Promise.all(pending), ['dropped', 'unreachable', 'unreachable'])
    own.release()
    mute.reply = () => ({ ok: true, value: 'b' })
    await until(() => changes.at(-1) === true)
    await until(async () => (await a.ask('d', wake).catch(() => undefined))?.ok === true)
  })

  t.test('a Redis that delivers no messages is given up', async t => {
    const own = await redisServer(t, path)
    const { backplanes: [a], prefix } = await join(t, { url: own.url }, 1)
    const client = behind(t, own.url)
    const changes = links(a)
    const pubsub = (await client.client('LIST', 'TYPE', 'PUBSUB') as string).match(/ id=(\d+)|^id=(\d+)/)!
    t.ok(pubsub)
    await client.call('ACL', 'SETUSER', 'default', 'resetchannels', `&${prefix}:none`)
    await until(() => changes.includes(false))
    await client.call('ACL', 'SETUSER', 'default', 'allchannels')
    await until(() => changes.at(-1) === true)
  })

  t.test('a device that could not be released is erased once Redis accepts it', async t => {
    const own = await redisServer(t, path)
    const client = behind(t, own.url)
    const { backplanes: [a], prefix } = await join(t, { url: own.url }, 1)
    const { release } = await a.own('d', new Connection('d', 'a'))
    await client.call('ACL', 'SETUSER', 'default', '-hdel')
    await release()
    await client.call('ACL', 'SETUSER', 'default', '+hdel')
    await until(async () => await client.hexists(`${prefix}:owners`, 'd') === 0)
  })

  t.test('many ids that come once leave nothing', async t => {
    const own = await redisServer(t, path, ['--appendonly', 'no'])
    const client = behind(t, own.url)
    const { backplanes: [a] } = await join(t, { url: own.url }, 1)
    for (let at = 0; at < 100_000; at += 1_000) {
      await Promise.all(Array.from({ length: 1_000 }, async (_, more) => {
        const id = `once-${at + more}`
        const { release } = await a.own(id, new Connection(id, 'a'))
        await release()
      }))
    }
    t.strictSame((await client.keys('*')).map(key => key.split(':')[1]).toSorted(), ['generation', 'nodes'])
  })
})
