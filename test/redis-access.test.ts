import { readFileSync } from 'node:fs'
import { join } from 'node:path'
import { inspect } from 'node:util'
import fastifyRedis from '@fastify/redis'
import Fastify from 'fastify'
import { Redis } from 'ioredis'
import t from 'tap'
import devices from '../lib/index.ts'
import { redis } from '../lib/redis/index.ts'
import { createWorker } from '../lib/workers/worker.ts'
import { freePort } from './campaigns/port.ts'
import { redisServer } from './campaigns/redis.ts'
import { ServerProcess } from './campaigns/server-process.ts'
import { certificate } from './certificates.ts'
import { backplaneContract } from './contracts/backplane.ts'
import { mailboxContract } from './contracts/mailbox.ts'
import { reasonOf, until } from './fakes.ts'
import { withProgram } from './programs.ts'
import { root } from './root.ts'
import { connect } from './support.ts'

const page = readFileSync(join(root, 'docs/redis.md'), 'utf8')
/** What the page allows the user `devices`, whose prefix is `devices` too. */
const [documented] = /^ACL SETUSER devices .*$/m.exec(page)!
const allowed = [...documented.matchAll(/ \+(?<command>[a-z|]+)/g)].map(({ groups }) => groups!.command!)

withProgram(t, 'redis-server', 'a user with the permissions of docs/redis.md', async (t, path) => {
  const server = await redisServer(t, path)
  const administrator = new Redis(server.url)
  t.teardown(() => administrator.disconnect())
  await administrator.config('RESETSTAT')
  let made = 0

  /** A user like the documented one, whose name is the prefix of a cluster. */
  async function connectUser (): Promise<Awaited<ReturnType<typeof redis>>> {
    return await redis({ url: server.url, username: `p${made}`, password: 'secret', prefix: `p${made}`, disableClientInfo: true })
  }
  async function addUser (): Promise<void> {
    made++
    await administrator.call(...documented.replaceAll('devices', `p${made}`).split(' ') as ['ACL', ...string[]])
  }

  backplaneContract(t, 'redis() of that user', async () => {
    await addUser()
    const [{ backplane: a }, { backplane: b }] = [await connectUser(), await connectUser()]
    return { a, b, close: async () => { await Promise.all([a.close!(), b.close!()]) } }
  })
  mailboxContract(t, 'redis() of that user', async () => {
    await addUser()
    const { backplane, mailbox } = await connectUser()
    return Object.assign(mailbox, { close: () => backplane.close!() })
  })

  t.test('was refused nothing, and needs each of its permissions', async t => {
    t.strictSame((await administrator.call('ACL', 'LOG') as unknown[]).map(entry => inspect(entry)), [])
    const used = new Set((await administrator.info('commandstats')).match(/(?<=^cmdstat_)[^:]+/gm))
    t.strictSame(allowed.filter(command => !used.has(command)), [])
    t.ok(allowed.includes('info') && !allowed.includes('flushall'))
  })

  t.test('has to be allowed each channel: one that Redis refuses is reported once, and subscribed to when it is allowed', async t => {
    await addUser()
    const [user, prefix] = [`p${made}`, `p${made}:`]
    await administrator.call('ACL', 'SETUSER', user, 'resetchannels', `&${prefix}node:*`)
    const { backplane } = await connectUser()
    t.teardown(() => backplane.close!())
    const troubles: string[] = []
    backplane.onTrouble!(error => troubles.push((error as Error).message))
    let heard = 0
    backplane.watch('news', () => ++heard)
    await until(async () => !(await backplane.health!()).ok)
    await administrator.call('ACL', 'SETUSER', user, `&${prefix}*`)
    await until(async () => (await backplane.health!()).ok)
    t.match(await backplane.publish({ id: 'm', topic: 'news', data: 1 }), { sent: 1, nodes: 1 })
    t.match(troubles, [/^NOPERM/])
    t.equal(troubles.length, 1)
  })

  t.test('reaches no keys and channels of others', async t => {
    await addUser()
    const user = new Redis(server.url, { username: `p${made}`, password: 'secret' })
    t.teardown(() => user.disconnect())
    await t.rejects(user.hget('other:owners', 'd'), /NOPERM/)
    await t.rejects(user.publish('other:changes', ''), /NOPERM/)
    await t.rejects(user.flushall(), /NOPERM/)
  })
})

withProgram(t, 'redis-server', 'the client of @fastify/redis is neither used nor closed', async (t, path) => {
  const server = await redisServer(t, path)
  const app = Fastify()
  await app.register(fastifyRedis, { url: server.url })
  const { backplane, mailbox } = await redis({ client: app.redis })
  await app.register(devices, { backplane, mailbox })
  t.teardown(() => app.close())
  await app.ready()
  const connections = async () => (await app.redis.client('LIST') as string).trim().split('\n').length
  t.equal(await connections(), 3)
  t.ok((await app.devices.health()).ok)
  await backplane.close!()
  await until(async () => await connections() === 1)
})

withProgram(t, 'redis-server', 'docs/redis.md lists the keys and the channels of a cluster', async (t, path) => {
  const server = await redisServer(t, path)
  const client = new Redis(server.url)
  t.teardown(() => client.disconnect())
  const [app, other] = [Fastify(), Fastify()] as const
  for (const one of [app, other]) {
    await one.register(devices, await redis({ url: server.url }))
    t.teardown(() => one.close())
  }
  await connect(await app.listen({ port: 0, host: '127.0.0.1' }), 'here')
  for (const topic of ['a/b', 'a/+', '#']) await app.devices.join('here', topic)
  await other.ready()
  other.devices.on('connected', () => {}, { everywhere: true })
  const { id } = await app.devices.send('away', 1, { ttl: 60_000 }) as { id: string }
  await app.devices.send('away', 2, { ttl: 60_000, collapse: 'c' })
  await app.devices.cancel('away', id)
  // a dead node, so that one that lives erases its records
  await client.hset('devices:nodes', 'dead', '1 1')
  await until(async () => await client.exists('devices:sweeper') === 1)

  const documentedNames = [...page.matchAll(/^\| `(devices:[^`]+)` \|/gm)].map(([, name]) => name!)
  const patterns = documentedNames.map(name => new RegExp(`^${name.replaceAll(/<\w+>/g, '[^ ]+')}$`))
  const used = [...await client.keys('*'), ...await client.pubsub('CHANNELS', '*') as string[]]
  t.strictSame(used.filter(name => !patterns.some(pattern => pattern.test(name))), [], 'which the page lacks')
  t.strictSame(documentedNames.filter((_, at) => !used.some(name => patterns[at]!.test(name))), [], 'which do not exist')
})

withProgram(t, 'redis-server', 'a Redis that refuses writes is as one that is unreachable, and is used again when it takes them', async (t, path) => {
  const server = await redisServer(t, path)
  const client = new Redis(server.url)
  t.teardown(() => client.disconnect())
  const app = Fastify()
  await app.register(devices, await redis({ url: server.url }))
  t.teardown(() => app.close())
  const device = await connect(await app.listen({ port: 0, host: '127.0.0.1' }), 'd')
  await client.config('SET', 'min-replicas-to-write', '1')
  t.equal(await reasonOf(app.devices.send('away', 1, { ttl: 60_000 })), 'unreachable')
  await until(async () => !(await app.devices.health()).ok)
  t.equal(await reasonOf(app.devices.send('away', 1)), 'unreachable')
  t.equal(await reasonOf(app.devices.list({})), 'unreachable')
  await app.devices.send('d', 'hello')
  t.match(await device.message(), { params: { data: 'hello' } })
  await client.config('SET', 'min-replicas-to-write', '0')
  await until(async () => (await app.devices.health()).ok)
  t.match(await app.devices.send('away', 1, { ttl: 60_000 }), { status: 'queued' })
})

withProgram(t, 'redis-server', 'while Redis has no memory left letters are refused, and everything else works', async (t, path) => {
  const server = await redisServer(t, path)
  const client = new Redis(server.url)
  t.teardown(() => client.disconnect())
  const app = Fastify()
  await app.register(devices, await redis({ url: server.url }))
  t.teardown(() => app.close())
  const address = await app.listen({ port: 0, host: '127.0.0.1' })
  await app.devices.send('d', 'kept', { ttl: 60_000 })
  await client.config('SET', 'maxmemory', '1')
  t.equal(await reasonOf(app.devices.send('d', 1, { ttl: 60_000 })), 'store-full')
  const device = await connect(address, 'd')
  device.handle('message', () => ({})).handle('reboot', () => ({ at: 'noon' }))
  t.match(await device.next(({ method }) => method === 'message'), { params: { data: 'kept' } })
  await until(async () => (await app.devices.letters('d')).receipts.length === 0)
  t.strictSame(await app.devices.call('d', 'reboot'), { at: 'noon' })
  t.match(await app.devices.broadcast('all'), { sent: 1 })
  t.match(await app.devices.list({}), [{ deviceId: 'd' }])
  t.ok((await app.devices.health()).ok)
  await client.config('SET', 'maxmemory', '0')
  t.match(await app.devices.send('away', 1, { ttl: 60_000 }), { status: 'queued' })
})

withProgram(t, 'redis-server', 'a server with TLS is verified', async (t, path) => {
  const port = await freePort()
  const files = Object.entries({ cert: 'server.pem', key: 'server.key', 'ca-cert': 'ca.pem' }).flatMap(([name, file]) => [`--tls-${name}-file`, join(root, 'test/certificates', file)])
  await redisServer(t, path, ['--tls-port', String(port), '--tls-auth-clients', 'no', ...files])
  const url = `rediss://127.0.0.1:${port}`
  const { backplane } = await redis({ url, tls: { ca: certificate('ca.pem') } })
  t.teardown(() => backplane.close!())
  t.strictSame(await backplane.health!(), { ok: true })
  // the second connection is closed during its handshake, at one moment or another
  for (let time = 0; time < 20; time++) await t.rejects(redis({ url }), /at rediss:\/\/127\.0\.0\.1:\d+ cannot be used: .*certificate/)
})

withProgram(t, 'redis-server', 'a worker over Redis answers the devices of a gateway', async (t, path) => {
  const { url } = await redisServer(t, path)
  const app = Fastify()
  await app.register(devices, await redis({ url }))
  t.teardown(() => app.close())
  const address = await app.listen({ port: 0, host: '127.0.0.1' })
  const { backplane } = await redis({ url })
  const worker = await createWorker({ backplane })
  t.teardown(() => worker.close())
  worker.handle('meter', (params, { device }) => ({ params, of: device.id }))
  const device = await connect(address, 'd')
  await until(async () => (await device.ask('meter', { watts: 5 })).result !== undefined)
  t.strictSame((await device.ask('meter', { watts: 5 })).result, { params: { watts: 5 }, of: 'd' })
})

withProgram(t, 'redis-server', 'Sentinel names the master, also after a failover', async (t, path) => {
  const printed = t.capture(console, 'error')
  const master = await redisServer(t, path)
  const replica = await redisServer(t, path, ['--replicaof', '127.0.0.1', String(master.port)])
  const asked = new Redis(replica.url).on('error', () => {}) // it disconnects its clients once
  t.teardown(() => asked.disconnect())
  await until(async () => (await asked.info('replication')).includes('master_link_status:up'))
  const sentinel = await freePort()
  const administrator = new Redis(sentinel, { maxRetriesPerRequest: null, retryStrategy: () => 50 }).on('error', () => {})
  t.teardown(() => administrator.disconnect())
  const folder = t.testdir({ 'sentinel.conf': `
    port ${sentinel}
    bind 127.0.0.1
    sentinel monitor mymaster 127.0.0.1 ${master.port} 1
    sentinel down-after-milliseconds mymaster 1000
  ` })
  const watching = new ServerProcess([path, join(folder, 'sentinel.conf'), '--sentinel'], async () => await administrator.ping() === 'PONG')
  t.teardown(() => watching.stop('SIGKILL'))
  await watching.start()
  await until(async () => String(await administrator.call('SENTINEL', 'replicas', 'mymaster')).includes(String(replica.port)))

  const [first, second] = [Fastify(), Fastify()]
  for (const app of [first, second]) {
    const away = { host: '127.0.0.1', port: await freePort() }
    await app.register(devices, await redis({ sentinels: [{ host: '127.0.0.1', port: sentinel }, away], name: 'mymaster' }))
    t.teardown(() => app.close())
  }
  const device = await connect(await first.listen({ port: 0, host: '127.0.0.1' }), 'd')
  await second.ready()
  const generation = async () => (await second.devices.list({}))[0]?.generation
  const isJoined = async () => (await Promise.all([first, second].map(app => app.devices.health()))).every(({ ok }) => ok)
  const before = await generation()
  t.ok(before)

  await administrator.call('SENTINEL', 'failover', 'mymaster')
  await until(async () => (await asked.info('replication')).includes('role:master'))
  // both nodes have left the former master, which has become a replica
  await until(async () => (await asked.hlen('devices:nodes')) === 2 && await isJoined())
  t.equal(await generation(), before)
  await second.devices.send('d', 'hello')
  t.match(await device.message(), { params: { data: 'hello' } })
  t.strictSame(printed.args(), [], 'a Sentinel that is away is no error')
})

t.test('no error shows a password, whichever part of the address has it', async t => {
  const port = await freePort()
  for (const [url, shown] of [
    [`redis://:open-sesame@127.0.0.1:${port}`, `at redis://127.0.0.1:${port} cannot`], [`redis://open-sesame:open@sesame@127.0.0.1:${port}`, `at redis://127.0.0.1:${port} cannot`],
    [`redis://127.0.0.1:${port}?password=open-sesame`, `at redis://127.0.0.1:${port} cannot`], [`redis://:open/sesame@127.0.0.1:${port}`, 'Redis cannot be used'],
    [`:open-sesame@127.0.0.1:${port}`, 'Redis cannot be used']
  ] as const) {
    const error = await redis({ url }).then(() => undefined, error => error)
    t.match(error.message, shown)
    t.notMatch(inspect(error, { depth: 9 }), 'sesame', url)
  }
})
