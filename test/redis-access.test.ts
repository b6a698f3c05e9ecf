import { readFileSync } from 'node:fs'
import { join } from 'node:path'
import { inspect } from 'node:util'
import { Redis } from 'ioredis'
import t from 'tap'
import { redis } from '../lib/redis/index.ts'
import { redisServer } from './campaigns/redis.ts'
import { backplaneContract } from './contracts/backplane.ts'
import { mailboxContract } from './contracts/mailbox.ts'
import { withProgram } from './programs.ts'
import { root } from './root.ts'

/** What docs/redis.md allows the user `devices`, whose prefix is `devices` too. */
const [documented] = /^ACL SETUSER devices .*$/m.exec(readFileSync(join(root, 'docs/redis.md'), 'utf8'))!
const allowed = [...documented.matchAll(/ \+(?<command>[a-z|]+)/g)].map(({ groups }) => groups!.command!)

withProgram(t, 'redis-server', 'a user with the permissions of docs/redis.md', async (t, path) => {
  const server = await redisServer(t, path)
  const administrator = new Redis(server.url)
  t.teardown(() => administrator.disconnect())
  await administrator.config('RESETSTAT')
  let made = 0

  /** A user like the documented one, whose name is the prefix of a cluster. */
  async function connect (): Promise<Awaited<ReturnType<typeof redis>>> {
    return await redis({ url: server.url, username: `p${made}`, password: 'secret', prefix: `p${made}` })
  }
  async function addUser (): Promise<void> {
    made++
    await administrator.call(...documented.replaceAll('devices', `p${made}`).split(' ') as ['ACL', ...string[]])
  }

  backplaneContract(t, 'redis() of that user', async () => {
    await addUser()
    const [{ backplane: a }, { backplane: b }] = [await connect(), await connect()]
    return { a, b, close: async () => { await Promise.all([a.close!(), b.close!()]) } }
  })
  mailboxContract(t, 'redis() of that user', async () => {
    await addUser()
    const { backplane, mailbox } = await connect()
    return Object.assign(mailbox, { close: () => backplane.close!() })
  })

  t.test('was refused nothing, and needs each of its permissions', async t => {
    t.strictSame((await administrator.call('ACL', 'LOG') as unknown[]).map(entry => inspect(entry)), [])
    const used = [...(await administrator.info('commandstats')).matchAll(/^cmdstat_([^:]+):/gm)].map(([, command]) => command!)
    t.strictSame(allowed.filter(command => !used.includes(command)), [])
    t.ok(allowed.includes('info') && !allowed.includes('flushall'))
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
