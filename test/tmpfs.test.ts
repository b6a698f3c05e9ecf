import { execFile } from 'node:child_process'
import { mkdtemp, rm, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { promisify } from 'node:util'
import t, { type Test } from 'tap'
import { diskMailbox } from '../lib/storage/disk/index.ts'
import { all } from './fakes.ts'
import { connect, listen, request, until } from './support.ts'

const run = promisify(execFile)
const MiB = 2 ** 20

/** A file system of a few megabytes; undefined where this user may not mount one. */
async function small (t: Test): Promise<string | undefined> {
  const path = await mkdtemp(join(tmpdir(), 'small-'))
  t.teardown(() => rm(path, { recursive: true, force: true }))
  try {
    await run('mount', ['-t', 'tmpfs', '-o', 'size=12m', 'tmpfs', path])
  } catch (error) {
    t.comment(`a file system cannot be mounted here: ${(error as Error).message}`)
    return undefined
  }
  t.teardown(() => run('umount', [path]))
  return path
}

/** Takes all the room there is; returns what gives it back. */
async function fill (path: string): Promise<() => Promise<void>> {
  const ballast = join(path, 'ballast')
  for (let size = 12 * MiB; size >= 512; size /= 2) await writeFile(ballast, Buffer.alloc(size), { flag: 'a' }).catch(() => {})
  return () => rm(ballast)
}

t.test('a full disk: no promise that is not kept, live traffic goes on, and it works again once there is room', async t => {
  const root = await small(t)
  if (!root) return
  const path = join(root, 'letters')
  const app = await listen(t, { mailbox: await diskMailbox({ path }), authenticate: false, guard: false, maxLetters: 100_000, maxLetterBytes: 100 * MiB })
  const device = await connect(app.url, 'here')
  const promised: string[] = []
  const put = async () => {
    const { status, body } = await request(app, 'POST', '/devices/away/messages?ttl=600', { filling: 'x'.repeat(10_000) })
    if (status === 202) promised.push(body.id)
    return status
  }

  t.equal(await put(), 202)
  const free = await fill(root)
  const statuses = new Set<number>()
  for (let number = 0; number < 200; number++) statuses.add(await put())
  t.ok(statuses.has(507), 'refused')
  t.strictSame([...statuses].filter(status => status !== 507 && status !== 202), [])
  t.match(await request(app, 'POST', '/devices/here/messages', { live: true }), { status: 200 })
  t.match(await device.message(), { params: { data: { live: true } } })
  t.match(await request(app, 'POST', '/devices/away/messages?ttl=600', 1), { status: 507, body: { code: 'STORE_FULL' } })
  t.strictSame((await app.devices.health()).mailbox, { ok: false, reason: 'disk full' })

  await free()
  const freed = Date.now()
  await until(async () => await put() === 202)
  t.comment(`works again after ${Date.now() - freed} ms`)
  await app.devices.ready()
  const seen: string[] = []
  const away = await connect(app.url, 'away')
  away.handle('message', ({ id }) => { seen.push(id); return {} })
  await until(async () => (await request(app, 'GET', '/devices/away')).body.waiting === 0)
  t.strictSame(seen, promised, 'what was promised, all of it, and nothing else')
})

t.test('to start on a full disk is a clear error, and harms nothing', async t => {
  const root = await small(t)
  if (!root) return
  const path = join(root, 'letters')
  let mailbox = await diskMailbox({ path })
  await mailbox.put('d', { id: 'a', body: '1', expiresAt: Date.now() + 600_000 }, { letters: 10, bytes: 100 })
  await mailbox.close!()
  const free = await fill(root)
  await t.rejects(diskMailbox({ path }), { message: /cannot be opened.*No space left/s })
  await t.rejects(diskMailbox({ path: join(root, 'other') }), { message: /No space left|ENOSPC/ })
  await free()
  mailbox = await diskMailbox({ path })
  t.strictSame((await all(mailbox.letters('d'))).map(({ id }) => id), ['a'])
  await mailbox.close!()
})
