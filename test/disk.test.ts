import { spawn } from 'node:child_process'
import { once } from 'node:events'
import { chmod, copyFile, cp, mkdir, mkdtemp, readdir, readFile, rename, rm, stat, truncate, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { createInterface } from 'node:readline'
import { setTimeout as sleep } from 'node:timers/promises'
import { ClassicLevel } from 'classic-level'
import t from 'tap'
import type { Mailbox } from '../lib/storage/mailbox.ts'
import { memoryMailbox, type MemoryMailboxOptions } from '../lib/storage/memory.ts'
import { diskMailbox, type DiskMailboxOptions } from '../lib/storage/disk/index.ts'
import { withChecksum } from '../lib/storage/disk/checksum.ts'
import { recordOf } from '../lib/storage/disk/mend.ts'
import { Batch } from '../lib/storage/disk/batch.ts'
import { Compactor } from '../lib/storage/disk/compactor.ts'
import { databaseIn, END } from '../lib/storage/disk/database.ts'
import { Journal } from '../lib/storage/disk/journal.ts'
import { LetterCache } from '../lib/storage/disk/letter-cache.ts'
import { entryOf } from '../lib/storage/disk/schema.ts'
import { BatchCounter } from '../lib/storage/disk/batch-counter.ts'
import { letter, mailboxContract } from './contracts/mailbox.ts'
import { all, gate, reasonOf, turn } from './fakes.ts'
import { root } from './root.ts'
import { listen, request, until } from './support.ts'
import { interceptWrites } from './writes.ts'

const plenty = { letters: 1_000, bytes: 1_000_000 }

async function folder (t: { teardown (end: () => unknown): void }): Promise<string> {
  const path = await mkdtemp(join(tmpdir(), 'letters-'))
  t.teardown(() => rm(path, { recursive: true, force: true }))
  return path
}

async function reopened (mailbox: Mailbox, options: DiskMailboxOptions): Promise<Mailbox> {
  await mailbox.close!()
  return await diskMailbox(options)
}

const silent = { damaged () {}, troubled () {} }

const ids = async (mailbox: Mailbox, deviceId: string) => (await all(mailbox.letters(deviceId))).map(({ id }) => id)

mailboxContract(t, 'diskMailbox()', async () => await diskMailbox({ path: await folder(t) }))

t.test('letters, receipts and attempts are there after the folder is reopened', async t => {
  const path = await folder(t)
  let mailbox = await diskMailbox({ path })
  await mailbox.put('d', letter('a', { body: 'text', collapse: 'k' }), plenty)
  await mailbox.put('d', letter('b', { body: Buffer.from([0, 10, 255]) }), plenty)
  await mailbox.put('d', letter('c', { awaitedBy: 'node' }), plenty)
  await mailbox.put('e', letter('a'), plenty)
  await mailbox.settle('d', 'c', 'refused', { code: 1, message: 'no' })
  await mailbox.addAttempt('d', 'a')
  const before = await all(mailbox.letters('d'))
  mailbox = await reopened(mailbox, { path })

  const after = await all(mailbox.letters('d'))
  t.strictSame(after, before)
  t.equal(await mailbox.waiting('d'), 2)
  t.equal(await mailbox.waiting('e'), 1)
  t.equal(await mailbox.size!(), 3)
  t.match(await mailbox.receipt('d', 'c'), { status: 'refused', device: { code: 1, message: 'no' } })
  t.equal(await mailbox.addAttempt('d', 'a'), 2)
  t.match(await mailbox.put('d', letter('a', { digest: 'same' }), plenty), { fresh: false, receipt: { status: 'queued' } })
  t.match(await mailbox.put('d', letter('z', { collapse: 'k' }), plenty), { fresh: true, replaced: { id: 'a' } })
  t.strictSame(await ids(mailbox, 'd'), ['b', 'z'])
  t.ok((await all(mailbox.letters('d'))).at(-1)!.position > 4, 'no position comes again')
  await mailbox.close!()
})

t.test('a letter of any size and script comes back as it was', async t => {
  const path = await folder(t)
  let mailbox = await diskMailbox({ path })
  const bodies = [100, 21_000, 22_000, 65_000, 200_000].flatMap(size => ['x'.repeat(size), '☃'.repeat(size), Buffer.alloc(size, 7)])
  for (const [number, body] of bodies.entries()) await mailbox.put('d', letter(String(number), { body }), { letters: 100, bytes: 10_000_000 })
  mailbox = await reopened(mailbox, { path })
  const found = (await all(mailbox.letters('d'))).map(({ body }) => body)
  t.strictSame(found.map(body => Buffer.from(body)), bodies.map(body => Buffer.from(body)))
  await mailbox.close!()
})

t.test('acknowledged letters survive a kill', async t => {
  const path = await folder(t)
  const child = spawn(process.execPath, [join(root, 'dist/test/campaigns/writer.js'), path], { stdio: ['ignore', 'pipe', 'inherit'] })
  const exited = once(child, 'exit')
  const promised: string[] = []
  for await (const id of createInterface(child.stdout)) {
    promised.push(id)
    if (promised.length === 500) break
  }
  child.kill('SIGKILL')
  await exited
  const mailbox = await diskMailbox({ path })
  const kept = await ids(mailbox, 'd')
  t.strictSame(kept.slice(0, promised.length), promised)
  t.equal(await mailbox.waiting('d'), kept.length)
  await mailbox.close!()
})

t.test('a folder belongs to one mailbox at a time', async t => {
  const path = await folder(t)
  const mailbox = await diskMailbox({ path })
  await t.rejects(diskMailbox({} as never), { message: /needs the option "path"/ })
  await t.rejects(diskMailbox({ path }), { message: /in use by another process/ })
  await mailbox.close!()
})

t.test('a folder of another format is left alone', async t => {
  const path = await folder(t)
  const journal = await Journal.open(path, silent)
  await journal.write(batch => batch.put('format', 'fastify-devices letters 3'))
  await journal.close()
  await t.rejects(diskMailbox({ path }), { message: /of another format/ })
  await t.rejects(diskMailbox({ path }), { message: /of another format/ }, 'and not locked either')
})

t.test('no other user may read the folder', async t => {
  const path = await folder(t)
  await chmod(path, 0o755)
  const mailbox = await diskMailbox({ path })
  await mailbox.put('d', letter('a'), plenty)
  t.equal((await stat(path)).mode & 0o777, 0o700)
  await mailbox.sweep(Date.now())
  for (const name of await readdir(path)) {
    const { mode, isDirectory } = await stat(join(path, name)).then(stats => ({ mode: stats.mode, isDirectory: stats.isDirectory() }))
    t.equal(mode & 0o777, isDirectory ? 0o700 : 0o600, name)
  }
  await mailbox.close!()
})

/** Lets the database write only what a test lets it. */
function intercept (t: { teardown (end: () => unknown): void }, write: (go: () => Promise<void>) => Promise<void>): { restore (): void } {
  const intercepted = interceptWrites(write)
  t.teardown(intercepted.restore)
  return intercepted
}

t.test('nothing is acknowledged before it is on disk, not even a repeated letter', async t => {
  const mailbox = await diskMailbox({ path: await folder(t) })
  const disk = gate()
  const { restore } = intercept(t, async go => { await disk.opened; await go() })
  let promised = 0
  const puts = ['a', 'a', 'b'].map(async id => { const put = await mailbox.put('d', letter(id, { digest: id }), plenty); promised++; return put })
  await turn()
  t.equal(promised, 0)
  disk.open()
  t.strictSame((await Promise.all(puts)).map(({ fresh }) => fresh), [true, false, true])
  restore()
  const later = gate()
  const second = intercept(t, async go => { await later.opened; await go() })
  const settled = mailbox.settle('d', 'b', 'delivered')
  t.strictSame(await ids(mailbox, 'd'), ['a'], 'what is about to go is not handed out again')
  later.open()
  t.equal(await settled, true)
  second.restore()
  t.strictSame(await Promise.all([mailbox.settle('d', 'a', 'delivered'), mailbox.settle('d', 'a', 'cancelled')]), [true, false])
  await mailbox.close!()
})

t.test('a receipt is kept for its time, and then deleted', async t => {
  const mailbox = await diskMailbox({ path: await folder(t), keepReceipts: 1_000 })
  await mailbox.put('d', letter('a'), plenty)
  await mailbox.settle('d', 'a', 'delivered')
  const now = Date.now()
  t.strictSame(await mailbox.sweep(now), [])
  t.ok(await mailbox.receipt('d', 'a'))
  t.strictSame(await mailbox.sweep(now + 2_000), [])
  t.equal(await mailbox.receipt('d', 'a'), undefined)
  await mailbox.close!()
})

t.test('a disk that is full refuses, forgets nothing, and works again by itself', async t => {
  const path = await folder(t)
  const mailbox = await diskMailbox({ path })
  await mailbox.put('d', letter('a', { collapse: 'k' }), plenty)
  const { restore } = intercept(t, async () => { throw new Error('IO error: No space left on device') })
  t.equal(await reasonOf(mailbox.put('d', letter('b', { collapse: 'k' }), plenty)), 'store-full')
  t.equal(await reasonOf(mailbox.settle('d', 'a', 'delivered')), 'store-full')
  t.equal(await mailbox.waiting('d'), 1)
  t.strictSame(await ids(mailbox, 'd'), ['a'])
  restore()
  await until(async () => await reasonOf(mailbox.put('d', letter('c'), plenty)) === 'it did not fail')
  t.strictSame(await ids(mailbox, 'd'), ['a', 'c'])
  await mailbox.close!()
})

t.test('its health says why letters cannot be written, and becomes good again without other writes', async t => {
  const path = await folder(t)
  const mailbox = await diskMailbox({ path })
  const isHealthy = async () => (await mailbox.health!()).ok
  t.strictSame(await mailbox.health!(), { ok: true })
  for (const [error, reason] of [
    [new Error('IO error: No space left on device'), 'disk full'],
    [new Error('not open', { cause: new Error('ENOSPC: no space left') }), 'disk full'],
    [new Error('IO error: the sync failed'), 'the last write failed']
  ] as const) {
    const { restore } = intercept(t, async () => { throw error })
    t.equal(await reasonOf(mailbox.put('d', letter('b'), plenty)), 'store-full')
    for (let looks = 0; looks < 10; looks++) t.strictSame(await mailbox.health!(), { ok: false, reason })
    restore()
    await until(isHealthy)
  }

  const elsewhere = `${path}-elsewhere`
  await rename(path, elsewhere)
  t.strictSame(await mailbox.health!(), { ok: false, reason: 'folder removed' }, 'without a write')
  t.equal(await reasonOf(mailbox.put('d', letter('c'), plenty)), 'store-full')
  await rename(elsewhere, path)
  t.strictSame(await mailbox.health!(), { ok: false, reason: 'folder removed' }, 'the database is not open again yet')
  await until(isHealthy)
  await mailbox.put('d', letter('d'), plenty)
  await mailbox.close!()
})

/** Letters in a folder that has been opened twice, so that they are in a table. */
async function keepTwenty (path: string): Promise<void> {
  const mailbox = await diskMailbox({ path })
  for (let n = 0; n < 20; n++) await mailbox.put('d', letter(String(n)), plenty)
  await (await reopened(mailbox, { path })).close!()
}

/** Whether the mailbox takes letters again, soon. */
const heals = (mailbox: Mailbox) => until(async () => await reasonOf(mailbox.put('healed', letter(String(Math.random())), plenty)) === 'it did not fail')

t.test('a letter that could not be settled waits, even if the folder cannot be reopened for a while', async t => {
  const mailbox = await diskMailbox({ path: await folder(t) })
  await mailbox.put('d', letter('a', { expiresAt: Date.now() + 60_000 }), plenty)
  const { restore } = intercept(t, async () => { throw new Error('IO error: No space left on device') })
  const { open } = ClassicLevel.prototype
  t.teardown(() => { ClassicLevel.prototype.open = open })
  ClassicLevel.prototype.open = async () => { throw Object.assign(new Error('x'), { cause: new Error('IO error: No space left on device') }) }
  t.equal(await reasonOf(mailbox.put('e', letter('b'), plenty)), 'store-full')
  await sleep(300) // it is tried now and then
  t.equal(await reasonOf(mailbox.put('e', letter('b'), plenty)), 'store-full')
  t.equal(await reasonOf(mailbox.settle('d', 'a', 'delivered')), 'store-full')
  restore()
  ClassicLevel.prototype.open = open
  await heals(mailbox)
  t.equal(await mailbox.waiting('d'), 1)
  t.strictSame(await ids(mailbox, 'd'), ['a'])
  t.match(await mailbox.sweep(Date.now() + 61_000), [{ receipt: { id: 'a' } }])
  await mailbox.close!()
})

t.test('a failed write that reached the disk is reverted', async t => {
  const path = await folder(t)
  let mailbox = await diskMailbox({ path })
  for (const id of ['a', 'b']) await mailbox.put('d', letter(id), plenty)
  await mailbox.put('d', letter('k1', { collapse: 'k' }), plenty)
  const { restore } = intercept(t, async go => { await go(); throw new Error('IO error: the sync failed') })
  const failed = await Promise.all([
    mailbox.settle('d', 'a', 'delivered'), mailbox.put('d', letter('c', { digest: 'c' }), plenty), mailbox.put('d', letter('k2', { collapse: 'k' }), plenty),
    mailbox.addAttempt('d', 'b'), mailbox.settle('d', 'c', 'cancelled')
  ].map(reasonOf))
  t.strictSame(new Set(failed), new Set(['store-full']))
  restore()
  await heals(mailbox)
  for (const look of ['as it is', 'opened anew']) {
    t.equal(await mailbox.waiting('d'), 3, look)
    t.strictSame(await ids(mailbox, 'd'), ['a', 'b', 'k1'], look)
    for (const id of ['a', 'b', 'k1']) t.match(await mailbox.receipt('d', id), { status: 'queued' })
    t.equal(await mailbox.receipt('d', 'c'), undefined)
    t.equal(await mailbox.receipt('d', 'k2'), undefined)
    mailbox = await reopened(mailbox, { path })
  }
  t.equal(await mailbox.addAttempt('d', 'b'), 1)
  t.match(await mailbox.put('d', letter('c', { digest: 'c' }), plenty), { fresh: true })
  await mailbox.close!()
})

t.test('a failed write is not read before it is reverted', async t => {
  const mailbox = await diskMailbox({ path: await folder(t) })
  const [reached, undoing] = [gate(), gate()]
  let failing = true
  intercept(t, async go => {
    if (failing) {
      await go()
      throw new Error('IO error: the sync failed')
    }
    reached.open()
    await undoing.opened
    await go()
  })
  t.equal(await reasonOf(mailbox.put('d', letter('a', { digest: 'a' }), plenty)), 'store-full')
  failing = false
  await sleep(300)
  const put = mailbox.put('e', letter('b'), plenty)
  await reached.opened
  t.equal(await reasonOf(mailbox.receipt('d', 'a')), 'store-full')
  t.equal(await reasonOf(ids(mailbox, 'e')), 'store-full')
  t.equal(await reasonOf(mailbox.put('d', letter('a', { digest: 'a' }), plenty)), 'store-full', 'nor promised')
  undoing.open()
  await put
  t.match(await mailbox.put('d', letter('a', { digest: 'a' }), plenty), { fresh: true })
  t.strictSame(await ids(mailbox, 'd'), ['a'])
  await mailbox.close!()
})

t.test('a folder that was removed or replaced takes no letters, is reported once, and works again when it is back', async t => {
  const path = await folder(t)
  const mailbox = await diskMailbox({ path })
  const errors: Array<{ msg: string, err: Error }> = []
  const stream = { write: (line: string) => { errors.push(JSON.parse(line)) } }
  const app = await listen(t, { mailbox, authenticate: false, guard: false }, { logger: { level: 'error', stream } })
  const send = async () => (await request(app, 'POST', '/devices/d/messages?ttl=60', 1)).status
  t.equal(await send(), 202)
  const elsewhere = `${path}-elsewhere`
  t.teardown(() => rm(elsewhere, { recursive: true, force: true }))
  for (const replaced of [false, true]) {
    await rename(path, elsewhere)
    if (replaced) await mkdir(path)
    t.match(await request(app, 'POST', '/devices/d/messages?ttl=60', 2), { status: 507, body: { code: 'STORE_FULL' } })
    await sleep(300) // it is tried now and then
    t.equal(await send(), 507)
    await mailbox.sweep(Date.now() + 61_000).catch(() => {})
    if (replaced) t.strictSame(await readdir(path), [], 'what is there now is left alone')
    if (replaced) await rm(path, { recursive: true })
    const told = errors.filter(({ msg }) => msg === 'mailbox error').map(({ err }) => err.message)
    t.strictSame(told, Array(replaced ? 2 : 1).fill(`The folder "${path}" was removed or replaced: letters are refused until it is back`))
    await rename(elsewhere, path)
    await until(async () => await send() === 202)
  }
  t.equal(await mailbox.waiting('d'), 3)
  t.equal((await ids(mailbox, 'd')).length, 3)
  await rm(path, { recursive: true })
  t.equal(await send(), 507)
})

t.test('the files shrink once much has been removed and nothing is due', async t => {
  const path = await folder(t)
  const mailbox = await diskMailbox({ path, keepReceipts: 0 })
  const size = async () => {
    const sizes = await Promise.all((await readdir(path)).map(async name => (await stat(join(path, name)).catch(() => ({ size: 0 }))).size))
    return sizes.reduce((sum, size) => sum + size, 0)
  }
  const many = 6_000
  await Promise.all(Array.from({ length: many }, (_, n) => mailbox.put('d', letter(String(n), { expiresAt: 1_000 }), { letters: many, bytes: 1_000_000 })))
  await mailbox.put('d', letter('kept'), { letters: many + 1, bytes: 1_000_000 })
  const before = await size() // the first sweep that finds nothing due may end with small files
  t.equal((await expiredOf(mailbox, 1_000)).length, many)
  await until(async () => {
    await mailbox.sweep(Date.now() + 1_000) // more than one may find nothing due
    return await size() < before / 10
  })
  t.strictSame(await ids(mailbox, 'd'), ['kept'])
  await mailbox.close!()
})

t.test('files that a read has kept are deleted once it has ended', async t => {
  const path = await folder(t)
  const db = databaseIn(path, true)
  await db.open()
  t.teardown(() => db.close())
  const compactor = new Compactor()
  const write = async (fill: (batch: Batch) => void) => {
    const batch = new Batch(db, 1)
    fill(batch)
    await batch.write()
  }
  const compact = async () => {
    compactor.start({ db, write })
    await compactor.running
  }
  const size = async () => (await Promise.all((await readdir(path)).map(async name => (await stat(join(path, name))).size))).reduce((sum, size) => sum + size)
  const keys = Array.from({ length: 10_000 }, (_, n) => `k${n}`)
  await write(batch => { for (const key of keys) batch.put(key, Buffer.alloc(100)) })
  await db.compactRange(END, END)
  const before = await size()
  await write(batch => { for (const key of keys) batch.del(key) })
  const read = db.iterator()
  await read.next()
  compactor.countRemoved(keys.length)
  await compact()
  t.ok(await size() > before, 'the read still needs them')
  await read.close()
  await compact()
  t.ok(await size() < before / 10)
})

t.test('files with few deletions are not compacted', async t => {
  const path = await folder(t)
  const most = { letters: 10_000, bytes: 100_000_000 }
  let mailbox = await diskMailbox({ path, keepReceipts: 0 })
  for (let n = 0; n < 40; n++) await mailbox.put('d', letter(`large ${n}`, { body: 'x'.repeat(200_000) }), most)
  mailbox = await reopened(mailbox, { path, keepReceipts: 0 })
  const tables = async () => (await readdir(path)).filter(name => name.endsWith('.ldb'))
  const before = await tables()
  await Promise.all(Array.from({ length: 6_000 }, (_, n) => mailbox.put('d', letter(String(n), { expiresAt: 1_000 }), most)))
  t.equal((await expiredOf(mailbox, 1_000)).length, 6_000)
  for (let sweep = 0; sweep < 3; sweep++) await mailbox.sweep(Date.now() + 1_000)
  await mailbox.close!()
  t.strictSame(await tables(), before)
})

t.test('a mailbox whose folder was removed has nothing to sweep or to seal', async t => {
  const path = await folder(t)
  const mailbox = await diskMailbox({ path })
  await rm(path, { recursive: true })
  t.strictSame(await mailbox.sweep(Date.now() + 3_600_000), [])
  await mailbox.close!()
})

t.test('a write into a folder that was moved away is not acknowledged', async t => {
  const path = await folder(t)
  const elsewhere = `${path}-elsewhere`
  const mailbox = await diskMailbox({ path })
  const { restore } = intercept(t, async go => { await go(); await rename(path, elsewhere) })
  t.equal(await reasonOf(mailbox.put('d', letter('a'), plenty)), 'store-full')
  restore()
  await rename(elsewhere, path)
  await heals(mailbox)
  t.strictSame(await ids(mailbox, 'd'), [])
  t.equal(await mailbox.receipt('d', 'a'), undefined)
  await mailbox.close!()
})

t.test('a write that builds on a failed one fails with it', async t => {
  const mailbox = await diskMailbox({ path: await folder(t) })
  const disk = gate()
  await mailbox.put('d', letter('r', { collapse: 'k' }), plenty)
  const { restore } = intercept(t, async () => { await disk.opened; throw new Error('IO error: No space left on device') })
  const first = reasonOf(mailbox.put('d', letter('a', { collapse: 'k' }), plenty))
  await turn()
  const second = reasonOf(mailbox.put('d', letter('b', { collapse: 'k' }), plenty))
  disk.open()
  t.strictSame(await Promise.all([first, second]), ['store-full', 'store-full'])
  restore()
  await heals(mailbox)
  t.strictSame(await ids(mailbox, 'd'), ['r'])
  t.equal(await mailbox.waiting('d'), 1)
  await mailbox.close!()
})

t.test('an expired letter is returned once, whatever fails after it', async t => {
  const mailbox = await diskMailbox({ path: await folder(t) })
  const [many, most] = [1_200, { letters: 2_000, bytes: 1_000_000 }]
  await Promise.all(Array.from({ length: many }, (_, n) => mailbox.put('d', letter(String(n), { expiresAt: 1_000 + n }), most)))
  let writes = 0
  const { restore } = intercept(t, async go => {
    if (++writes === 1 || writes > 3) throw new Error('IO error: No space left on device')
    await go()
  })
  t.equal(await reasonOf(mailbox.sweep(5_000)), 'store-full', 'nothing has')
  await sleep(300)
  const told = (await mailbox.sweep(5_000)).map(({ receipt }) => receipt.id)
  t.ok(told.length > 0 && told.length < many, `${told.length} have`)
  t.equal(await mailbox.waiting('d'), many - told.length)
  t.equal(await reasonOf(mailbox.sweep(5_000)), 'store-full')
  restore()
  await heals(mailbox)
  told.push(...(await mailbox.sweep(5_000)).map(({ receipt }) => receipt.id))
  t.strictSame(told.toSorted(), Array.from({ length: many }, (_, n) => String(n)).toSorted())
  t.strictSame(await mailbox.sweep(5_000), [])
  t.equal(await mailbox.waiting('d'), 0)
  await mailbox.close!()
})

t.test('a clock that is set back delays nothing', async t => {
  const mailbox = await diskMailbox({ path: await folder(t) })
  const { restore } = intercept(t, async () => { throw new Error('IO error: No space left on device') })
  t.equal(await reasonOf(mailbox.put('d', letter('a'), plenty)), 'store-full')
  restore()
  const { now } = Date
  t.teardown(() => { Date.now = now })
  Date.now = () => now() - 3_600_000
  await heals(mailbox)
  await mailbox.close!()
})

t.test('a receipt that is due in the second in which its letter would have expired is deleted, too', async t => {
  const day = 86_400_000
  const mailbox = await diskMailbox({ path: await folder(t), keepReceipts: day })
  const now = Math.ceil(Date.now() / 1_000) * 1_000
  const real = Date.now
  t.teardown(() => { Date.now = real })
  Date.now = () => now + 100
  await mailbox.put('d', letter('a', { expiresAt: now + 100 + day }), plenty)
  Date.now = () => now + 400
  await mailbox.settle('d', 'a', 'delivered')
  await mailbox.sweep(now + day + 200)
  t.ok(await mailbox.receipt('d', 'a'))
  await mailbox.sweep(now + day + 1_200)
  t.equal(await mailbox.receipt('d', 'a'), undefined)
  await mailbox.close!()
})

t.test('a table to which nothing refers is no damage', async t => {
  const path = await folder(t)
  await damagesOf(path)
  await writeFile(join(path, '999999.ldb'), 'half a table')
  t.strictSame(await damagesOf(path), [])
  t.notOk((await readdir(path)).includes('999999.ldb'))
})

t.test('a manifest that is cut short is reported and repaired', async t => {
  const path = await folder(t)
  await keepTwenty(path)
  const name = (await readdir(path)).find(name => name.startsWith('MANIFEST'))!
  await truncate(join(path, name), (await stat(join(path, name))).size - 1)
  t.match(await damagesOf(path), [`${path}: Corruption`])
  t.strictSame(await damagesOf(path), [])
  const mailbox = await diskMailbox({ path })
  t.equal(await mailbox.waiting('d'), 20)
  await mailbox.close!()
})

/** Changes the records of a folder behind the back of the mailbox. */
async function tamper (path: string, change: (db: ClassicLevel<string, Buffer>) => Promise<void>): Promise<void> {
  const db = new ClassicLevel<string, Buffer>(path, { valueEncoding: 'buffer' })
  await db.open()
  await change(db)
  await db.close()
}

async function flip (db: ClassicLevel<string, Buffer>, key: string): Promise<void> {
  const value = (await db.get(key))!
  value[value.length - 1]! ^= 1
  await db.put(key, value)
}

t.test('a damaged letter is reported and skipped, and those around it are delivered', async t => {
  const path = await folder(t)
  let mailbox = await diskMailbox({ path })
  for (const id of ['a', 'b', 'c']) await mailbox.put('d', letter(id, { collapse: id }), plenty)
  await mailbox.close!()
  await tamper(path, async db => {
    await flip(db, 'r!d!b')
    await flip(db, 'l!d!0000000000000003')
    await db.put('r!d!d', Buffer.from([1]))
  })
  mailbox = await diskMailbox({ path })
  const damages: string[] = []
  mailbox.onDamage!(({ key }) => damages.push(key))
  t.strictSame(new Set(damages), new Set(['r!d!b', 'l!d!0000000000000003', 'r!d!d']))
  t.strictSame(await ids(mailbox, 'd'), ['a', 'c'])
  t.match(await mailbox.receipt('d', 'b'), { status: 'damaged' })
  t.match(await mailbox.receipt('d', 'c'), { status: 'queued' })
  t.equal(await mailbox.settle('d', 'c', 'delivered'), true)
  t.equal(await mailbox.waiting('d'), 1)
  await mailbox.close!()
})

t.test('the items of a damaged list are listed again', async t => {
  const path = await folder(t)
  const now = Date.now()
  const later = now + 2 * 86_400_000
  let mailbox = await diskMailbox({ path })
  for (const id of ['a', 'b']) await mailbox.put('d', letter(id, { expiresAt: now + 60_000 }), plenty)
  await mailbox.put('d', letter('c'), plenty)
  await mailbox.settle('d', 'c', 'delivered')
  await mailbox.close!()
  await tamper(path, async db => {
    for await (const key of db.keys({ gte: 'd!', lt: 'd"' })) await flip(db, key)
  })
  mailbox = await diskMailbox({ path })
  const damages: string[] = []
  mailbox.onDamage!(({ key, reason }) => damages.push(`${key}: ${reason}`))
  t.strictSame(await mailbox.sweep(now + 61_000), [])
  t.match(damages, [/^d!.*: the checksum does not fit/, /^d!/])
  t.strictSame((await mailbox.sweep(now + 61_000)).map(({ receipt }) => receipt.id), ['a', 'b'])
  t.equal(damages.length, 2, 'each is told once')
  t.ok(await mailbox.receipt('d', 'c'))
  await mailbox.sweep(later)
  t.equal(await mailbox.receipt('d', 'c'), undefined)
  await mailbox.close!()
})

t.test('after damage everything is listed again, however much it is', async t => {
  const path = await folder(t)
  const many = 2_500
  let mailbox = await diskMailbox({ path })
  await Promise.all(Array.from({ length: many }, (_, n) => mailbox.put('d', letter(String(n), { expiresAt: 1_000 }), { letters: many, bytes: 1_000_000 })))
  await mailbox.close!()
  await tamper(path, async db => { await db.clear({ gte: 'd!', lt: 'd"' }) })
  await suspect(path)
  mailbox = await diskMailbox({ path })
  const told = await expiredOf(mailbox, 1_000)
  t.equal(told.length, many)
  await mailbox.close!()
})

t.test('the current `keepReceipts` applies to older receipts', async t => {
  const path = await folder(t)
  const now = Date.now()
  let mailbox = await diskMailbox({ path, keepReceipts: 1_000 })
  await mailbox.put('d', letter('a'), plenty)
  await mailbox.settle('d', 'a', 'delivered')
  mailbox = await reopened(mailbox, { path, keepReceipts: 60_000 })
  await mailbox.sweep(now + 10_000)
  t.ok(await mailbox.receipt('d', 'a'))
  await mailbox.sweep(now + 70_000)
  t.equal(await mailbox.receipt('d', 'a'), undefined)
  await mailbox.close!()
})

t.test('a letter that expires later in the same second waits', async t => {
  const mailbox = await diskMailbox({ path: await folder(t) })
  for (const at of [1_000, 1_500, 1_900]) await mailbox.put('d', letter(`${at}`, { expiresAt: at }), plenty)
  const swept = async (now: number) => (await mailbox.sweep(now)).map(({ receipt }) => receipt.id)
  t.strictSame(await swept(999), [])
  t.strictSame(await swept(1_500), ['1000', '1500'])
  t.strictSame(await swept(1_899), [])
  t.strictSame(await swept(1_900), ['1900'])
  await mailbox.close!()
})

/** What is told of damage when the folder is opened, which works in any case. */
async function damagesOf (path: string): Promise<string[]> {
  const damages: string[] = []
  const mailbox = await diskMailbox({ path })
  mailbox.onDamage!(({ key, reason }) => damages.push(`${key}: ${reason}`))
  await mailbox.put('next', letter(String(Math.random())), plenty)
  await mailbox.close!()
  return damages
}

t.test('damage that LevelDB notices is repaired and reported', async t => {
  const path = await folder(t)
  await keepTwenty(path)
  for (const name of await readdir(path)) {
    if (!name.startsWith('MANIFEST')) continue
    const bytes = await readFile(join(path, name))
    bytes[10]! ^= 1
    await writeFile(join(path, name), bytes)
  }
  let mailbox = await diskMailbox({ path })
  const damages: string[] = []
  mailbox.onDamage!(({ reason }) => damages.push(reason))
  t.match(damages[0], /checksum mismatch/)
  t.equal(await mailbox.waiting('d'), 20)
  await mailbox.close!()

  await writeFile(join(path, 'CURRENT'), 'MANIFEST-999999\n')
  t.match((await damagesOf(path))[0], /No such file/)
  mailbox = await diskMailbox({ path })
  t.equal(await mailbox.waiting('d'), 20)
  await mailbox.close!()

  const other = await folder(t)
  await mkdir(join(other, 'CURRENT'))
  await t.rejects(diskMailbox({ path: other }), { message: /cannot be opened/ })
  await t.rejects(diskMailbox({ path: other }), { message: /cannot be opened/ }, 'and not locked either')
  const file = join(await folder(t), 'file')
  await writeFile(file, '')
  await t.rejects(diskMailbox({ path: file }))
})

t.test('acknowledged batches that are missing are reported', async t => {
  const path = await folder(t)
  const older = await folder(t)
  const mailbox = await diskMailbox({ path })
  await mailbox.put('d', letter('a'), plenty)
  await cp(path, older, { recursive: true })
  await mailbox.put('d', letter('b'), plenty)
  await mailbox.put('d', letter('c'), plenty)
  await mailbox.close!()
  await copyFile(join(path, 'batches'), join(older, 'batches'))
  t.strictSame(await damagesOf(older), ['batches: the newest 2 of 4 batches are missing'])
  t.strictSame(await damagesOf(older), [])
  for (const tally of ['', '0000000000000004 1\n', 'x']) {
    await writeFile(join(older, 'batches'), tally)
    t.strictSame(await damagesOf(older), ['batches: the counter is damaged: the newest writes may be missing'])
  }
  t.strictSame(await damagesOf(older), [])
})

t.test('what a damaged log has lost is reported', async t => {
  const path = await folder(t)
  const mailbox = await diskMailbox({ path })
  for (const id of ['a', 'b', 'c']) await mailbox.put('d', letter(id), plenty)
  await mailbox.close!()
  const name = join(path, (await readdir(path)).find(name => name.endsWith('.log'))!)
  const bytes = await readFile(name)
  bytes[20]! ^= 1
  await writeFile(name, bytes)
  t.match(await damagesOf(path), [/\.log: dropping \d+ bytes/])
})

t.test('a batch counter that cannot be written lags behind and stops nothing', async t => {
  const path = await folder(t)
  const tally = new BatchCounter(join(path, 'batches'))
  tally.record(3)
  tally.close()
  tally.record(4)
  const again = new BatchCounter(join(path, 'batches'))
  t.equal(again.count, 3)
  again.close()
})

t.test('the lock of a folder is mended, or the folder is not opened', async t => {
  const path = await folder(t)
  await damagesOf(path)
  await writeFile(join(path, 'lock', 'CURRENT'), 'nonsense')
  t.strictSame(await damagesOf(path), [])
  await rm(join(path, 'lock'), { recursive: true })
  await writeFile(join(path, 'lock'), '')
  await t.rejects(diskMailbox({ path }), { message: /cannot be opened/ })
})

/** Puts a key of a table out of order: LevelDB ends a process in which it merges that table. */
async function disorder (path: string, change: (table: Buffer) => void = () => {}): Promise<void> {
  const name = join(path, (await readdir(path)).find(name => name.endsWith('.ldb'))!)
  const table = await readFile(name)
  table.write('z', table.indexOf('format'))
  change(table)
  await writeFile(name, table)
}

/** As if two processes had ended soon after their start. */
const endTwice = (path: string) => writeFile(join(path, 'starts'), '2')

t.test('files over which LevelDB ends the process are replaced by new ones with their records', async t => {
  const cases: Array<[what: string, prepare: (path: string) => Promise<void>]> = [
    ['two processes ended soon', endTwice],
    ['it ended while files were taken out', async path => {
      await mkdir(join(path, 'torn'))
      const name = (await readdir(path)).find(name => name.endsWith('.ldb'))!
      await rename(join(path, name), join(path, 'torn', name))
    }],
    ['it ended while records were copied', async path => {
      await mkdir(join(path, 'salvage'))
      for (const name of await readdir(path)) if (/ldb|log$/.test(name)) await rename(join(path, name), join(path, 'salvage', name))
    }]
  ]
  for (const [what, prepare] of cases) {
    const path = await folder(t)
    await keepTwenty(path)
    let mailbox = await diskMailbox({ path })
    t.equal(await mailbox.addAttempt('d', '1'), 1)
    await mailbox.settle('d', '2', 'delivered')
    await mailbox.close!()
    await disorder(path)
    await prepare(path)
    t.match(await damagesOf(path), [/LevelDB cannot repair its files/], what)
    t.strictSame(await damagesOf(path), [], `${what}: mended`)
    mailbox = await diskMailbox({ path })
    t.strictSame(await ids(mailbox, 'd'), Array.from({ length: 20 }, (_, n) => String(n)).filter(id => id !== '2'), what)
    t.equal(await mailbox.addAttempt('d', '1'), 2)
    t.match(await mailbox.receipt('d', '2'), { status: 'delivered' })
    await mailbox.close!()
  }
})

t.test('a folder starts again without the files from which no record can be read', async t => {
  const path = await folder(t)
  await keepTwenty(path)
  await disorder(path, table => { table[table.indexOf('position') - 3] = 100 }) // LevelDB ends the process that repairs it, too
  await endTwice(path)
  t.match(await damagesOf(path), [/LevelDB cannot repair its files/])
  t.strictSame(await damagesOf(path), [])
})

t.test('a line that a process has not finished holds no record', async t => {
  t.strictSame(recordOf('["key","aGk="]'), ['key', Buffer.from('hi')])
  t.equal(recordOf('["key","aGk'), undefined)
})

t.test('after processes that ended soon over sound files, nothing is lost and no damage reported', async t => {
  const path = await folder(t)
  await keepTwenty(path)
  await endTwice(path)
  t.strictSame(await damagesOf(path), [])
  const mailbox = await diskMailbox({ path })
  t.equal(await mailbox.waiting('d'), 20)
  await mailbox.close!()
})

t.test('a folder that LevelDB cannot repair is left alone, and the error says why', async t => {
  const path = await folder(t)
  await keepTwenty(path)
  await writeFile(join(path, 'CURRENT'), 'nonsense')
  await mkdir(join(path, '000001.dbtmp'))
  await t.rejects(diskMailbox({ path }), { message: /is damaged and cannot be mended: .*000001.dbtmp/ })
  await rm(join(path, '000001.dbtmp'), { recursive: true })
  t.match(await damagesOf(path), [/./])
  const mailbox = await diskMailbox({ path })
  t.equal(await mailbox.waiting('d'), 20)
  await mailbox.close!()
})

t.test('places behind a key that is out of order are found again', async t => {
  const path = await folder(t)
  await keepTwenty(path)
  const name = join(path, (await readdir(path)).find(name => name.endsWith('.ldb'))!)
  const table = await readFile(name)
  table.write('m', table.indexOf('l!d!')) // LevelDB stops there when it reads the keys that begin with `l!`
  await writeFile(name, table)
  t.match(await damagesOf(path), [/the records are not in order/])
  const mailbox = await diskMailbox({ path })
  t.equal((await ids(mailbox, 'd')).length, 20)
  await mailbox.close!()
})

t.test('an option that does not exist is an error that names it', async t => {
  await t.rejects(diskMailbox({ path: await folder(t), keepReciepts: 1 } as DiskMailboxOptions), { message: 'diskMailbox() has no option "keepReciepts"' })
  t.throws(() => memoryMailbox({ maxByte: 1 } as MemoryMailboxOptions), { message: 'memoryMailbox() has no option "maxByte"' })
})

/** The ids of all that is told to have expired by a time. */
async function expiredOf (mailbox: Mailbox, now: number): Promise<string[]> {
  const told: string[] = []
  for (let expired = await mailbox.sweep(now); expired.length > 0; expired = await mailbox.sweep(now)) told.push(...expired.map(({ receipt }) => receipt.id))
  return told
}

/** What a mailbox that found damage before leaves for the next time that the folder is opened. */
const suspect = (path: string) => tamper(path, db => db.put('suspect', Buffer.from(withChecksum('suspect', ''))))

/** Changes the value of a record, or removes it, and nothing tells. */
async function alter (path: string, pattern: RegExp, change: (value: string) => string | undefined): Promise<void> {
  const journal = await Journal.open(path, silent)
  for (const [key, value] of await all(journal.range('a', 'z'))) {
    if (!pattern.test(key)) continue
    const changed = change(Buffer.from(value).toString())
    await journal.write(batch => changed === undefined ? batch.del(key) : batch.put(key, changed))
  }
  await journal.close()
}

t.test('after damage, entries and places are mended from what is left of them, and that is reported', async t => {
  const cases: Array<[what: string, key: RegExp, change: (value: string) => string | undefined, report: RegExp, left: string[]]> = [
    ['the place of a letter', /^l!d!.*1$/, () => undefined, /^l!d!.*1: the record is missing/, ['a', 'b']],
    ['a letter', /^r!d!a$/, () => undefined, /^r!d!a: the record is missing/, ['b']],
    ['the place of one that is done with', /^r!d!a$/, value => value.replace('queued', 'delivered'), /^l!d!.*1: the record is missing/, ['b']]
  ]
  for (const [what, pattern, change, report, left] of cases) {
    const path = await folder(t)
    let mailbox = await diskMailbox({ path })
    for (const id of ['a', 'b', 'c']) await mailbox.put('d', letter(id), plenty)
    await mailbox.settle('d', 'c', 'delivered')
    await mailbox.close!()
    await alter(path, pattern, change)
    await suspect(path)
    const damages = await damagesOf(path)
    t.equal(damages.length, 1, what)
    t.match(damages[0], report, what)
    t.strictSame(await damagesOf(path), [], `${what}: mended`)
    mailbox = await diskMailbox({ path })
    t.strictSame(await ids(mailbox, 'd'), left, what)
    await mailbox.close!()
  }
})

t.test('a place that has no letter is reported when the letters are read, and mended', async t => {
  const cases: Array<[what: string, change: (value: string) => string | undefined, status: string]> = [
    ['a letter that is gone', () => undefined, 'damaged'],
    ['one that is done with', value => value.replace('queued', 'delivered'), 'delivered']
  ]
  for (const [what, change, status] of cases) {
    const path = await folder(t)
    let mailbox = await diskMailbox({ path })
    for (const id of ['a', 'b']) await mailbox.put('d', letter(id, { collapse: id }), plenty)
    await mailbox.close!()
    await alter(path, /^r!d!a$/, change)
    for (const look of ['found', 'opened anew']) {
      mailbox = await diskMailbox({ path })
      const damages: string[] = []
      mailbox.onDamage!(({ key }) => damages.push(key))
      t.strictSame(await Promise.all([ids(mailbox, 'd'), ids(mailbox, 'd')]), [['b'], ['b']], `${what}, read twice at the same moment`)
      t.strictSame(await ids(mailbox, 'd'), ['b'], what)
      t.strictSame(damages, look === 'found' ? ['l!d!0000000000000001'] : [], `${what}: told once`)
      t.equal(await mailbox.waiting('d'), 1, what)
      t.match(await mailbox.receipt('d', 'a'), { status }, what)
      t.match(await mailbox.put('d', letter('c', { collapse: 'a' }), plenty), { fresh: true })
      await mailbox.settle('d', 'c', 'cancelled')
      await mailbox.close!()
    }
  }
})

t.test('a letter whose place is missing can be cancelled, and expires', async t => {
  const path = await folder(t)
  let mailbox = await diskMailbox({ path })
  for (const id of ['a', 'b']) await mailbox.put('d', letter(id, { expiresAt: 1_000 }), plenty)
  await mailbox.close!()
  await alter(path, /^l!/, () => undefined)
  mailbox = await diskMailbox({ path })
  t.equal(await mailbox.settle('d', 'a', 'cancelled'), true)
  t.match(await mailbox.sweep(1_000), [{ receipt: { id: 'b' } }])
  t.equal(await mailbox.waiting('d'), 0)
  await mailbox.close!()
})

t.test('a record that the database does not find by its key is written again', async t => {
  const path = await folder(t)
  let mailbox = await diskMailbox({ path })
  await mailbox.put('d', letter('a'), plenty)
  await mailbox.close!()
  await suspect(path)
  const prototype = ClassicLevel.prototype as unknown as { getSync (key: string): Uint8Array | undefined }
  const { getSync } = prototype
  t.teardown(() => { prototype.getSync = getSync })
  let asked = 0
  // as a filter that says wrongly that a key is not in its table
  prototype.getSync = function (key) { return key === 'r!d!a' && ++asked === 2 ? undefined : getSync.call(this, key) }
  t.strictSame(await damagesOf(path), ['r!d!a: the record is missing or left over'])
  prototype.getSync = getSync
  t.strictSame(await damagesOf(path), [])
})

t.test('damage found while letters are counted is mended, and they are counted again', async t => {
  const path = await folder(t)
  await damagesOf(path)
  const prototype = ClassicLevel.prototype as unknown as Record<string, (...given: unknown[]) => unknown>
  const { iterator } = prototype
  t.teardown(() => { prototype.iterator = iterator! })
  let broken = 1
  prototype.iterator = function (...given) {
    if (broken-- > 0) throw Object.assign(new Error('bad block'), { code: 'LEVEL_CORRUPTION' })
    return iterator!.apply(this, given)
  }
  t.strictSame(await damagesOf(path), ['l!: bad block'])
  broken = 3
  await t.rejects(diskMailbox({ path }), { message: 'Letters cannot be written' })
  broken = 0
  t.match(await damagesOf(path), [/LevelDB cannot repair its files/], 'and not locked either')
  t.strictSame(await damagesOf(path), [])
})

t.test('damage is not mended if the disk is too full for new files', async t => {
  const path = await folder(t)
  await damagesOf(path)
  await writeFile(join(path, 'CURRENT'), 'nonsense')
  await writeFile(join(path, 'sparse'), '')
  await truncate(join(path, 'sparse'), 2 ** 43)
  await t.rejects(diskMailbox({ path }), { message: /too full to mend it/ })
  await rm(join(path, 'sparse'))
  t.match(await damagesOf(path), [/./])
})

t.test('what the database cannot read is reported and mended, and until then reads fail', async t => {
  const path = await folder(t)
  const before = await diskMailbox({ path })
  await before.put('d', letter('a'), plenty)
  const mailbox = await reopened(before, { path })
  const damages: string[] = []
  mailbox.onDamage!(({ key, reason }) => damages.push(`${key}: ${reason}`))
  const broken = (code: string) => () => { throw Object.assign(new Error('bad block'), { code }) }
  const prototype = ClassicLevel.prototype as unknown as Record<string, unknown>
  const { getSync, iterator } = prototype
  t.teardown(() => Object.assign(prototype, { getSync, iterator }))

  prototype.getSync = broken('LEVEL_DATABASE_NOT_OPEN')
  t.equal(await reasonOf(mailbox.receipt('d', 'a')), 'store-full')
  t.strictSame(damages, [], 'closed is not damaged')
  prototype.getSync = broken('LEVEL_CORRUPTION')
  t.equal(await reasonOf(mailbox.receipt('d', 'a')), 'store-full')
  t.strictSame(await mailbox.health!(), { ok: false, reason: 'damaged files are being mended' })
  prototype.iterator = broken('LEVEL_CORRUPTION')
  t.equal(await reasonOf(ids(mailbox, 'd')), 'store-full')
  Object.assign(prototype, { getSync, iterator })

  t.strictSame(damages, ['r!d!a: bad block', 'l!d!0000000000000001: bad block'])
  await until(async () => await reasonOf(mailbox.put('d', letter('b'), plenty)) === 'it did not fail')
  t.strictSame(await ids(mailbox, 'd'), ['a', 'b'])
  await mailbox.close!()
})

t.test('a due letter that cannot be read ends once it can', async t => {
  const mailbox = await diskMailbox({ path: await folder(t) })
  await mailbox.put('d', letter('a', { expiresAt: 1_000 }), plenty)
  const prototype = ClassicLevel.prototype as unknown as Record<string, unknown>
  const { hasMany } = prototype
  t.teardown(() => Object.assign(prototype, { hasMany }))
  prototype.hasMany = () => { throw Object.assign(new Error('bad block'), { code: 'LEVEL_CORRUPTION' }) }
  t.equal(await reasonOf(mailbox.sweep(1_000)), 'store-full')
  Object.assign(prototype, { hasMany })
  await heals(mailbox)
  t.strictSame(await expiredOf(mailbox, 1_000), ['a'])
  await mailbox.close!()
})

t.test('due letters end in several sweeps, each once', async t => {
  const mailbox = await diskMailbox({ path: await folder(t), keepReceipts: 1_000 })
  const many = 6_000
  await Promise.all(Array.from({ length: many }, (_, n) => mailbox.put('d', letter(String(n), { expiresAt: 1_000 + n }), { letters: many, bytes: 1_000_000 })))
  const first = (await mailbox.sweep(10_000)).map(({ receipt }) => receipt.id)
  t.ok(first.length < many)
  const told = [...first, ...await expiredOf(mailbox, 10_000)]
  t.strictSame(told.toSorted(), Array.from({ length: many }, (_, n) => String(n)).toSorted())
  t.equal(await mailbox.waiting('d'), 0)
  t.strictSame(await mailbox.sweep(Date.now() + 2_000), [])
  t.equal(await mailbox.receipt('d', '0'), undefined)
  t.equal(await mailbox.receipt('d', String(many - 1)), undefined, 'what is forgotten is all forgotten in one sweep')
  await mailbox.close!()
})

t.test('the cache gives all letters behind a position, or none', async t => {
  const recent = new LetterCache({ letters: 3, bytes: 100 })
  const held = (position: number, body = '1') => entryOf({ id: String(position), body, expiresAt: 0 }, position)
  const positions = (deviceId: string, after: number) => recent.behind(deviceId, after)?.map(({ position }) => position)
  t.equal(positions('d', 0), undefined)
  recent.add('d', held(5), true)
  recent.add('d', held(6), false)
  t.strictSame(positions('d', 0), [5, 6], 'all there is')
  t.strictSame(positions('d', 5), [6])
  recent.add('e', held(7), false)
  t.equal(positions('e', 5), undefined, 'there may be older ones')
  t.strictSame(positions('e', 6), [7])
  recent.add('e', held(8), false)
  t.equal(positions('d', 4), undefined, 'the oldest had to go')
  t.strictSame(positions('d', 5), [6])
  recent.add('e', held(9, 'x'.repeat(99)), false)
  t.equal(positions('d', 5), undefined)
  t.strictSame(positions('e', 8), [9], 'never more bytes than may be')
  recent.forget('e')
  recent.forget('nobody')
  t.equal(positions('e', 8), undefined)
  recent.remove('e', '9')
  recent.add('e', held(10), true)
  t.strictSame(positions('e', 0), [10])
})

t.test('a letter that ends during a read is not returned', async t => {
  const mailbox = await diskMailbox({ path: await folder(t) })
  for (const id of ['a', 'b', 'c']) await mailbox.put('d', letter(id), plenty)
  const handed: string[] = []
  for await (const { id } of mailbox.letters('d')) {
    handed.push(id)
    if (id !== 'a') continue
    await mailbox.settle('d', 'b', 'cancelled')
    // and one that is only not at hand any more is
    for (let n = 0; n < 1_000; n++) await mailbox.put('other', letter(String(n)), plenty)
  }
  t.strictSame(handed, ['a', 'c'])
  await mailbox.close!()
})

t.test('a letter with an attempt that is settled before it is on disk has ended', async t => {
  const mailbox = await diskMailbox({ path: await folder(t) })
  const [{ receipt }, attempts, settled] = await Promise.all([mailbox.put('d', letter('a'), plenty), mailbox.addAttempt('d', 'a'), mailbox.settle('d', 'a', 'cancelled')])
  t.strictSame([receipt.status, attempts, settled], ['queued', 0, true])
  t.strictSame(await ids(mailbox, 'd'), [])
  t.equal(await mailbox.waiting('d'), 0)
  const [, once] = await Promise.all([mailbox.put('d', letter('b'), plenty), mailbox.addAttempt('d', 'b')])
  t.strictSame([once, await mailbox.addAttempt('d', 'b')], [1, 2])
  await mailbox.close!()
})

t.test('a letter that is settled before it is on disk is not cached', async t => {
  const mailbox = await diskMailbox({ path: await folder(t) })
  const put = mailbox.put('d', letter('a'), plenty)
  t.equal(await mailbox.settle('d', 'a', 'cancelled'), true)
  await put
  t.strictSame(await ids(mailbox, 'd'), [])
  await mailbox.close!()
})
