import { getEventListeners, once } from 'node:events'
import { connect, createServer, type AddressInfo, type Socket } from 'node:net'
import { Redis } from 'ioredis'
import type { Test } from 'tap'
import t from 'tap'
import type { Backplane, Publication, Request } from '../lib/cluster/backplane.ts'
import { Connection as RedisConnection, openTimeoutOf, withoutSecrets } from '../lib/redis/connection.ts'
import { redis, type RedisOptions } from '../lib/redis/index.ts'
import { Link } from '../lib/redis/link.ts'
import { RedisServer, redisServer } from './campaigns/redis.ts'
import { Connection, reasonOf, turn, until } from './fakes.ts'
import { withProgram } from './programs.ts'

const wake: Request = { kind: 'wake' }

t.test('an error of Redis names neither its user nor the arguments of a command', async t => {
  const missing = withoutSecrets(new Error("NOPERM User alice has no permissions to run the 'evalsha' command"))
  t.equal(missing.message, "NOPERM this user has no permissions to run the 'evalsha' command")
  t.equal(withoutSecrets(new Error("ERR unknown command 'HELLO', with args beginning with: '3' 'AUTH' 'alice' 'pw'")).message, "ERR unknown command 'HELLO'")
})

withProgram(t, 'redis-server', 'faults of Redis and of nodes', async (t, path) => {
  const server = await RedisServer.start(path)
  t.after(() => server.remove())
  let prefixes = 0

  const join = async (t: Pick<Test, 'teardown'>, options: RedisOptions = {}) => {
    const prefix = `p${++prefixes}`
    const { backplane } = await redis({ url: server.url, prefix, ...options })
    t.teardown(() => backplane.close!())
    const troubles: string[] = []
    backplane.onTrouble!(error => troubles.push((error as Error).message))
    const changes: boolean[] = []
    backplane.onLink!(up => changes.push(up))
    return { backplane, prefix, troubles, changes }
  }
  /** A client of the test itself. */
  const behind = (t: Pick<Test, 'teardown'>, url = server.url) => {
    const client = new Redis(url)
    t.teardown(() => client.disconnect())
    return client
  }
  /** A node that the test plays. */
  const play = async (t: Pick<Test, 'teardown'>, prefix: string, receive: (message: any, reply: (content: object) => void) => void) => {
    const [client, subscriber] = [behind(t), behind(t)]
    await subscriber.subscribe(`${prefix}:node:played`)
    await client.hset(`${prefix}:nodes`, 'played', '1 9999999999999')
    subscriber.on('message', (_channel, payload) => {
      const message = JSON.parse(payload)
      receive(message, content => { void client.publish(`${prefix}:node:${message.from}`, JSON.stringify({ type: 'reply', nonce: message.nonce, ...content })) })
    })
    for (const id of ['d', '$name']) await client.hset(`${prefix}:owners`, id, '7 played 1 1 5 0 n')
  }
  const heardOn = (backplane: Backplane, filter: string) => {
    const heard: Publication[] = []
    return { heard, unwatch: backplane.watch(filter, publication => { heard.push(publication); return 1 }) }
  }

  t.test('a record that is lost is written again, however long ago the device has connected', async t => {
    const { backplane, prefix } = await join(t)
    const client = behind(t)
    await backplane.own('d', new Connection('d', 'a'))
    for (let round = 0; round < 3; round++) {
      await client.del(`${prefix}:owners`)
      await until(async () => await client.hexists(`${prefix}:owners`, 'd') === 1)
    }
  })

  t.test('a connection that has ended delivers nothing more, although Redis does not know yet that it has ended', async t => {
    const sockets: Socket[] = []
    let said = ''
    const forwarded = createServer({ allowHalfOpen: true }, socket => {
      const redis = connect(server.port, server.address)
      socket.on('data', data => redis.write(data)).on('error', () => {}).on('close', () => redis.destroy()) // its end is not forwarded
      redis.on('data', data => {
        said += String(data)
        socket.write(data)
      })
      sockets.push(socket)
    })
    t.teardown(() => forwarded.close())
    await once(forwarded.listen(0, '127.0.0.1'), 'listening')
    const heard: string[] = []
    const { port } = forwarded.address() as AddressInfo
    const connection = await RedisConnection.open({ host: '127.0.0.1', port }, channel => heard.push(channel), new AbortController().signal)
    await connection.subscribe('c')
    const client = behind(t)
    t.equal(await client.publish('c', 'heard'), 1)
    await until(() => heard.length === 1)
    connection.close()
    t.equal(await client.publish('c', 'late'), 1, 'Redis still takes the connection for a subscriber')
    await until(() => said.includes('late'))
    for (let round = 0; round < 5; round++) await client.ping() // meanwhile this process has read what the other socket has
    t.equal(heard.length, 1)
    for (const socket of sockets) socket.end()
  })

  t.test('a request that takes long is waited for as long as its node works on it', async t => {
    const { backplane, prefix } = await join(t)
    const spy = behind(t)
    await spy.psubscribe(`${prefix}:node:*`)
    const owner = new Connection('d', 'a')
    owner.reply = () => new Promise(resolve => {
      spy.on('pmessage', (_pattern, _channel, message) => { if (JSON.parse(message).state === 'there') resolve({ ok: true, value: 'late' }) })
    })
    await backplane.own('d', owner)
    t.strictSame(await backplane.ask('d', wake), { ok: true, value: 'late' })
  })

  t.test('nothing of a request is left once its time is over, although its node still works on it', async t => {
    const { backplane, prefix } = await join(t)
    await play(t, prefix, ({ type }, reply) => { if (type === 'probe') reply({ state: 'there' }) })
    const { signal } = new AbortController()
    const asking = reasonOf(backplane.ask('d', { kind: 'call', method: 'm', params: null, timeout: 1 }, signal))
    await until(() => getEventListeners(signal, 'abort').length === 1)
    t.equal(await asking, 'timeout')
    await turn()
    t.equal(getEventListeners(signal, 'abort').length, 0)
  })

  t.test('messages that no node has sent are reported, and change nothing', async t => {
    const { backplane, prefix, troubles } = await join(t)
    const client = behind(t)
    heardOn(backplane, 'a')
    backplane.follow(() => {})
    await backplane.flush!()
    const [home] = await client.hkeys(`${prefix}:nodes`)
    const request = { type: 'request', deviceId: 'd', kind: 'wake', nonce: 'n', from: 'nobody' }
    const notOne: Array<[channel: string, payload: string]> = [
      [`node:${home}`, '{'], [`node:${home}`, 'null'], [`node:${home}`, '{"type":"reply"}\nvalue\nx'], [`node:${home}`, '{"type":"counts"}'], ['topic:a', ''], ['topic:a', '1\nnull'], ['changes', '{'],
      [`node:${home}`, JSON.stringify({ ...request, from: { toString: 1 } })], [`node:${home}`, JSON.stringify({ ...request, nonce: 'x'.repeat(8_400_000) })],
      ['topic:a', '1\n{"topic":"a","nonce":"n","from":{"toString":1}}']
    ]
    for (const [channel, payload] of notOne) await client.publish(`${prefix}:${channel}`, payload)
    for (const payload of ['{"type":"other"}', '[]', '{"type":"cancel"}']) await client.publish(`${prefix}:node:${home}`, payload)
    await until(() => troubles.length === notOne.length)
    t.equal(await backplane.ask('d', wake), undefined)
    const spy = behind(t)
    await spy.subscribe(`${prefix}:node:tester`)
    const answer = new Promise(resolve => spy.once('message', (_channel, message) => resolve(JSON.parse(message))))
    await client.publish(`${prefix}:node:${home}`, '{"type":"probe","from":"tester","nonce":"n","about":"a request of long ago"}')
    t.strictSame(await answer, { type: 'reply', nonce: 'n', state: 'lost' })
  })

  t.test('a link that is closed while it opens does not come up', async t => {
    const link = new Link({ url: server.url })
    link.reset('it is not up')
    await t.rejects(link.open(async () => link.close()), /Redis at redis:.* cannot be used: closed/)
    t.equal(link.up, false)
  })

  t.test('a filter that is no longer watched hears nothing of a publication that has arrived', async t => {
    const { backplane } = await join(t)
    const { heard, unwatch } = heardOn(backplane, '#')
    backplane.watch('a', () => { unwatch(); return 1 })
    await backplane.flush!()
    t.match(await backplane.publish({ id: 'm', topic: 'a', data: 1 }), { nodes: 1 })
    t.equal(heard.length <= 1, true)
  })

  t.test('closing does not wait for a Redis that does not answer', async t => {
    const own = await redisServer(t, path)
    const { backplane } = await join(t, { url: own.url })
    const { backplane: busy } = await join(t, { url: own.url })
    await busy.own('d', new Connection('d', 'a'))
    await own.hold()
    await Promise.all([backplane.close!(), busy.close!()])
    own.release()
  })

  t.test('a server that accepts connections and says nothing is given up', async t => {
    const sockets = new Set<Socket>()
    const silent = createServer(socket => { sockets.add(socket.resume().on('error', () => {}).on('close', () => sockets.delete(socket))) })
    await new Promise<void>(resolve => silent.listen(0, '127.0.0.1', resolve))
    t.teardown(() => silent.close())
    const { port } = silent.address() as AddressInfo
    t.equal(openTimeoutOf({ sentinels: [{}, {}] }), 11_000)
    await t.rejects(redis({ host: '127.0.0.1', port, connectTimeout: 0 }), /Redis cannot be used: no answer/)
    await until(() => sockets.size === 0)
    const { backplane, troubles } = await join(t, { url: `redis://127.0.0.1:${port}`, startWithout: true })
    await until(() => sockets.size === 2)
    await backplane.close!()
    await until(() => sockets.size === 0)
    t.strictSame(troubles, [])
  })

  t.test('a Redis that accepts connections and refuses what a node needs is tried again after a pause, and reported once', async t => {
    const own = await redisServer(t, path)
    const client = behind(t, own.url)
    const { backplane, prefix, troubles, changes } = await join(t, { url: own.url })
    const { release } = await backplane.own('d', new Connection('d', 'a'))
    await client.call('ACL', 'SETUSER', 'default', '-hdel')
    const startedAt = performance.now()
    await release()
    await until(() => changes.filter(up => up).length === 3)
    t.ok(performance.now() - startedAt >= 1_000)
    t.equal(troubles.length, 1)
    t.match(troubles[0], /devices cannot be written: ERR /)
    await client.call('ACL', 'SETUSER', 'default', '+hdel')
    await until(async () => await client.hexists(`${prefix}:owners`, 'd') === 0)
  })

  t.test('a database that is no number is refused', async t => {
    for (const database of ['/foo', '/1x', '?db=foo']) await t.rejects(redis({ url: server.url + database }), /the database in the `url` of Redis is no number/)
    for (const db of [NaN, 'foo', 1.5]) await t.rejects(redis({ url: server.url, db } as RedisOptions), /`db`, or the database in the `url` of Redis is no number/)
    await t.rejects(redis({ client: new Redis({ db: NaN, lazyConnect: true }) }), /is no number/)
    const { backplane } = await redis({ url: `${server.url}/2?db=2`, db: 2 })
    await backplane.close!()
  })

  t.test('an option in the query of the URL is refused like any other', async t => {
    await t.rejects(redis({ url: `${server.url}?keyPrefix=a` }), { message: 'The query of the `url` of fastify-devices/redis has no option "keyPrefix"' })
    await t.rejects(redis({ url: `${server.url}?db=1&prefix=a` }), { message: 'The query of the `url` of fastify-devices/redis has no option "prefix"' })
    const { backplane } = await join(t, { url: `${server.url}?db=2&family=4` })
    t.strictSame(await backplane.list({ limit: 1 }), [])
  })

  t.test('ids, nodes, topics and times may have any characters', async t => {
    const { backplane } = await join(t)
    const ids = ['"', '$x', '__proto__', 'a/b', 'constructor', '~%d+']
    for (const id of ids) {
      const owner = new Connection(id, `n ${id}\n\0"ü`, 1.5)
      await backplane.own(id, owner)
      owner.confirm = async () => {}
      await backplane.own(id, owner)
      t.strictSame(await backplane.ask(id, wake), { ok: true, value: `n ${id}\n\0"ü` })
    }
    t.match(await backplane.list({ limit: 9 }), ids.filter(id => id !== '$x').map(deviceId => ({ deviceId, node: `n ${deviceId}\n\0"ü`, since: 1.5 })))
    for (const topic of ['__proto__', 'a\nb/ c', '/', 'a'.repeat(60_000), 'a/'.repeat(1_000)]) {
      const { heard, unwatch } = heardOn(backplane, topic)
      heardOn(backplane, `${topic}/#`)
      await backplane.flush!()
      t.match(await backplane.publish({ id: 'm', topic, data: { ['__proto__']: topic } }), { sent: 2, nodes: 1 })
      t.equal(heard[0]!.topic, topic)
      unwatch()
    }
  })

  t.test('a node that no longer has a device is asked twice, because the device may be moving', async t => {
    const { backplane, prefix } = await join(t)
    let asked = 0
    let answers: object[] = []
    await play(t, prefix, (_message, reply) => { asked++; reply(answers.shift() ?? { hasMoved: true }) })
    t.equal(await reasonOf(backplane.ask('d', wake)), 'unreachable')
    t.equal(asked, 2)
    t.equal(await backplane.ask('$name', wake), undefined)
    answers = [{ hasMoved: true }, { ok: true, value: 1 }]
    t.strictSame(await backplane.ask('d', wake), { ok: true, value: 1 })
  })

  t.test('a node says that a device has moved if only its record is left', async t => {
    const { backplane, prefix } = await join(t)
    const client = behind(t)
    const [home] = await client.hkeys(`${prefix}:nodes`)
    await client.hset(`${prefix}:owners`, 'd', `7 ${home} 1 1 5 0 n`)
    t.equal(await reasonOf(backplane.ask('d', wake)), 'unreachable')
  })

  t.test('a node that is connected and does not answer is given up', async t => {
    const { backplane, prefix } = await join(t)
    await play(t, prefix, ({ type }, reply) => { if (type === 'probe') reply({ page: [] }) })
    t.strictSame(await backplane.ask('d', wake), { ok: false, reason: 'timeout' })
  })

  t.test('a wake-up for a device of a node that is taken for dead is not lost silently', async t => {
    const { backplane, prefix } = await join(t)
    const client = behind(t)
    await client.hset(`${prefix}:owners`, 'd', '7 dead 1 1 5 0 n')
    t.equal(await reasonOf(backplane.ask('d', wake)), 'unreachable')
    t.equal(await backplane.ask('d', { kind: 'describe' }), undefined)
  })

  t.test('filters that share a channel are heard until the last of them is no longer watched', async t => {
    const { backplane } = await join(t)
    const [one, other] = [heardOn(backplane, 'a/+'), heardOn(backplane, 'a/#')]
    await backplane.flush!()
    t.match(await backplane.publish({ id: 'm', topic: 'a/b', data: 1 }), { sent: 2 })
    one.unwatch()
    t.match(await backplane.publish({ id: 'n', topic: 'a/b', data: 2 }), { sent: 1 })
    other.unwatch()
    t.match(await backplane.publish({ id: 'o', topic: 'a/b', data: 3 }), { sent: 0 })
    t.strictSame([one.heard.length, other.heard.length], [1, 2])
  })

  t.test('a subscription that Redis refuses is reported, and made once Redis allows it', async t => {
    const own = await redisServer(t, path)
    const client = behind(t, own.url)
    const { backplane, prefix, troubles, changes } = await join(t, { url: own.url })
    await client.call('ACL', 'SETUSER', 'default', 'resetchannels', `&${prefix}:node:*`)
    const { heard } = heardOn(backplane, 'a')
    await until(() => changes.includes(false))
    t.match(troubles[0], /NOPERM/)
    await client.call('ACL', 'SETUSER', 'default', 'allchannels')
    await until(() => changes.at(-1) === true)
    await backplane.publish({ id: 'm', topic: 'a', data: 1 })
    t.equal(heard.length, 1)
  })

  t.test('a subscription that was not answered before the connection ended is made on the next', async t => {
    const own = await redisServer(t, path)
    const { backplane, changes, troubles } = await join(t, { url: own.url })
    await own.hold()
    const { heard } = heardOn(backplane, 'a')
    await until(() => changes.includes(false))
    own.release()
    await until(() => changes.at(-1) === true)
    await backplane.publish({ id: 'm', topic: 'a', data: 1 })
    t.equal(heard.length, 1)
    t.strictSame(troubles, ['Redis does not answer'])
  })
})
