import { spawn } from 'node:child_process'
import { once } from 'node:events'
import { chmod, mkdir, mkdtemp, readdir, readFile, rm, stat, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { createInterface } from 'node:readline'
import { fileURLToPath } from 'node:url'
import { ClassicLevel } from 'classic-level'
import t from 'tap'
import type { Mailbox } from '../lib/mailbox.ts'
import { diskMailbox, type DiskMailboxOptions } from '../lib/mailboxes/disk.ts'
import { letter, mailboxContract } from './contracts/mailbox.ts'
import { all, gate, reasonOf, turn } from './fakes.ts'
import { until } from './support.ts'

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

const ids = async (mailbox: Mailbox, deviceId: string) => (await all(mailbox.letters(deviceId))).map(({ id }) => id)

mailboxContract(t, 'diskMailbox()', async () => await diskMailbox({ path: await folder(t) }))

t.test('letters, receipts and strikes are there again after the folder is opened anew', async t => {
  const path = await folder(t)
  let mailbox = await diskMailbox({ path })
  await mailbox.put('d', letter('a', { body: 'text', collapse: 'k' }), plenty)
  await mailbox.put('d', letter('b', { body: Buffer.from([0, 10, 255]) }), plenty)
  await mailbox.put('d', letter('c', { awaitedBy: 'node' }), plenty)
  await mailbox.put('e', letter('a'), plenty)
  await mailbox.settle('d', 'c', 'refused', { code: 1, message: 'no' })
  await mailbox.strike('d', 'a')
  const before = await all(mailbox.letters('d'))
  mailbox = await reopened(mailbox, { path })

  const after = await all(mailbox.letters('d'))
  t.strictSame(after, before)
  t.equal(await mailbox.waiting('d'), 2)
  t.equal(await mailbox.waiting('e'), 1)
  t.match(await mailbox.receipt('d', 'c'), { status: 'refused', device: { code: 1, message: 'no' } })
  t.equal(await mailbox.strike('d', 'a'), 2)
  t.match(await mailbox.put('d', letter('a'), plenty), { fresh: false, receipt: { status: 'queued' } })
  t.match(await mailbox.put('d', letter('z', { collapse: 'k' }), plenty), { fresh: true, replaced: { id: 'a' } })
  t.strictSame(await ids(mailbox, 'd'), ['b', 'z'])
  t.ok((await all(mailbox.letters('d'))).at(-1)!.position > 4, 'no position comes again')
  await mailbox.close!()
})

t.test('what is promised survives a kill', async t => {
  const path = await folder(t)
  const child = spawn(process.execPath, [fileURLToPath(new URL('../dist/test/campaigns/writer.js', import.meta.url)), path], { stdio: ['ignore', 'pipe', 'inherit'] })
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
  await t.rejects(diskMailbox({ path }), { message: /in use by another process/ })
  await mailbox.close!()
})

t.test('a folder of a newer format is left alone', async t => {
  const path = await folder(t)
  const { Journal } = await import('../lib/mailboxes/journal.ts')
  const journal = await Journal.open(path, () => {})
  await journal.write([{ key: 'format', value: Buffer.from('fastify-devices letters 2') }])
  await journal.close()
  await t.rejects(diskMailbox({ path }), { message: /of a newer format/ })
  await t.rejects(diskMailbox({ path }), { message: /of a newer format/ }, 'and not locked either')
})

t.test('nobody else may read the folder', async t => {
  const path = await folder(t)
  await chmod(path, 0o755)
  const mailbox = await diskMailbox({ path })
  await mailbox.put('d', letter('a'), plenty)
  t.equal((await stat(path)).mode & 0o777, 0o700)
  await mailbox.sweep(Date.now())
  for (const name of await readdir(path)) t.equal((await stat(join(path, name))).mode & 0o777, 0o600, name)
  await mailbox.close!()
})

/** Lets the database write only what a test lets it. */
function intercept (t: { teardown (end: () => unknown): void }, write: (go: () => Promise<void>) => Promise<void>): { restore (): void } {
  const { batch } = ClassicLevel.prototype
  ClassicLevel.prototype.batch = function (this: ClassicLevel, ...given: unknown[]) { return write(() => Reflect.apply(batch, this, given)) } as never
  const restore = () => { ClassicLevel.prototype.batch = batch }
  t.teardown(restore)
  return { restore }
}

t.test('nothing is promised before it is on disk, a second try neither', async t => {
  const mailbox = await diskMailbox({ path: await folder(t) })
  const disk = gate()
  const { restore } = intercept(t, async go => { await disk.opened; await go() })
  let promised = 0
  const puts = ['a', 'a', 'b'].map(async id => { const put = await mailbox.put('d', letter(id), plenty); promised++; return put })
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

t.test('a receipt is kept for its time, and then forgotten', async t => {
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

t.test('a damaged letter is reported and set apart, and those around it still flow', async t => {
  const path = await folder(t)
  let mailbox = await diskMailbox({ path })
  for (const id of ['a', 'b', 'c']) await mailbox.put('d', letter(id, { collapse: id }), plenty)
  await mailbox.close!()
  await tamper(path, async db => {
    await flip(db, 'l!d!0000000000000002')
    await flip(db, 'r!d!c')
    await db.put('l!d!0000000000000009', Buffer.from([1]))
  })
  mailbox = await diskMailbox({ path })
  const damages: string[] = []
  mailbox.onDamage!(({ key }) => damages.push(key))
  t.strictSame(new Set(damages), new Set(['l!d!0000000000000002', 'l!d!0000000000000009', 'r!d!c']))
  t.strictSame(await ids(mailbox, 'd'), ['a', 'c'])
  t.match(await mailbox.receipt('d', 'b'), { status: 'damaged' })
  t.match(await mailbox.receipt('d', 'c'), { status: 'queued' })
  t.equal(await mailbox.settle('d', 'c', 'delivered'), true)
  t.equal(await mailbox.waiting('d'), 1)
  await mailbox.close!()
})

t.test('damage to the files below is mended or survived, and reported', async t => {
  const path = await folder(t)
  let mailbox = await diskMailbox({ path })
  for (let n = 0; n < 20; n++) await mailbox.put('d', letter(String(n)), plenty)
  mailbox = await reopened(mailbox, { path })
  await mailbox.close!()
  for (const name of await readdir(path)) {
    if (!name.startsWith('MANIFEST')) continue
    const bytes = await readFile(join(path, name))
    bytes[10]! ^= 1
    await writeFile(join(path, name), bytes)
  }
  mailbox = await diskMailbox({ path })
  const damages: string[] = []
  mailbox.onDamage!(({ reason }) => damages.push(reason))
  t.match(damages[0], /Corruption/)
  t.equal(await mailbox.waiting('d'), 20)
  await mailbox.close!()

  const other = await folder(t)
  await mkdir(join(other, 'CURRENT'))
  await t.rejects(diskMailbox({ path: other }))
  const file = join(await folder(t), 'file')
  await writeFile(file, '')
  await t.rejects(diskMailbox({ path: file }))
})

t.test('what the database cannot read is reported, and harms nothing else', async t => {
  const mailbox = await diskMailbox({ path: await folder(t) })
  const damages: string[] = []
  mailbox.onDamage!(({ key, reason }) => damages.push(`${key}: ${reason}`))
  await mailbox.put('d', letter('a'), plenty)
  const broken = (code: string) => () => { throw Object.assign(new Error('bad block'), { code }) }
  const prototype = ClassicLevel.prototype as unknown as Record<string, unknown>
  const { getSync, iterator } = prototype
  t.teardown(() => Object.assign(prototype, { getSync, iterator }))

  prototype.getSync = broken('LEVEL_CORRUPTION')
  t.equal(await mailbox.receipt('d', 'a'), undefined)
  prototype.getSync = broken('LEVEL_DATABASE_NOT_OPEN')
  t.equal(await reasonOf(mailbox.receipt('d', 'a')), 'store-full')
  prototype.iterator = broken('LEVEL_CORRUPTION')
  t.strictSame(await ids(mailbox, 'd'), [])
  Object.assign(prototype, { getSync, iterator })

  t.strictSame(damages, ['r!d!a: bad block', 'l!d!0000000000000001: Error: bad block'])
  t.strictSame(await ids(mailbox, 'd'), ['a'])
  await mailbox.close!()
})

t.test('what is due is looked at so much at a time', async t => {
  const mailbox = await diskMailbox({ path: await folder(t) })
  await Promise.all(Array.from({ length: 1_001 }, (_, n) => mailbox.put('d', letter(String(n), { expiresAt: 1_000 + n }), { letters: 2_000, bytes: 1_000_000 })))
  t.equal((await mailbox.sweep(Date.now())).length, 1_000)
  t.match(await mailbox.sweep(Date.now()), [{ deviceId: 'd', receipt: { id: '1000', status: 'expired' } }])
  t.equal(await mailbox.waiting('d'), 0)
  await mailbox.close!()
})
