import { Redis } from 'ioredis'
import type { Test } from 'tap'
import t from 'tap'
import type { Backplane, Publication, Request } from '../lib/cluster/backplane.ts'
import { redis, type RedisOptions } from '../lib/redis/index.ts'
import { RedisServer, redisServer } from './campaigns/redis.ts'
import { Connection, reasonOf, until } from './fakes.ts'
import { withProgram } from './programs.ts'

const wake: Request = { kind: 'wake' }

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
