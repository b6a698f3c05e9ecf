import type { Test } from 'tap'
import type { MailboxLimits, Ending, StoredLetter, Letter, Mailbox } from '../../lib/storage/mailbox.ts'
import { all, reasonOf } from '../fakes.ts'

const HOUR = 3_600_000
const MINUTE = 60_000
const plenty: MailboxLimits = { letters: 1_000, bytes: 1_000_000 }

/** A letter that waits an hour, unless it says otherwise. */
export function letter (id: string, members: Partial<Letter> = {}): Letter {
  return { id, body: `"${id}"`, expiresAt: Date.now() + HOUR, ...members }
}

/** The contract that every mailbox keeps. */
export function mailboxContract (t: Test, name: string, make: () => Promise<Mailbox> | Mailbox): void {
  void t.test(`${name} keeps the contract of a mailbox`, async t => {
    const fresh = async (t: Pick<Test, 'teardown'>) => {
      const mailbox = await make()
      t.teardown(() => mailbox.close?.())
      return mailbox
    }
    const ids = async (mailbox: Mailbox, deviceId: string, after?: number) => (await all(mailbox.letters(deviceId, after))).map(({ id }) => id)
    const put = async (mailbox: Mailbox, deviceId: string, ...names: string[]) => {
      for (const id of names) await mailbox.put(deviceId, letter(id), plenty)
    }
    const sweep = async (mailbox: Mailbox, now: number) => {
      const found: string[] = []
      for (;;) {
        const expired = await mailbox.sweep(now)
        if (expired.length === 0) return found.toSorted()
        found.push(...expired.map(({ deviceId, receipt }) => `${deviceId} ${receipt.id}`))
      }
    }

    t.test('letters come in the order in which they were put', async t => {
      const mailbox = await fresh(t)
      const names = Array.from({ length: 30 }, (_, at) => `l${(at * 7) % 30}`)
      await put(mailbox, 'd', ...names)
      t.strictSame(await ids(mailbox, 'd'), names)
      t.strictSame(await ids(mailbox, 'd'), names, 'reading removes nothing')
      t.equal(await mailbox.waiting('d'), 30)
    })

    t.test('positions grow and are never reused, and reading continues behind any of them', async t => {
      const mailbox = await fresh(t)
      await put(mailbox, 'd', 'a', 'b', 'c')
      const kept = await all(mailbox.letters('d'))
      const [a, b, c] = kept.map(({ position }) => position) as [number, number, number]
      t.ok(0 < a && a < b && b < c)
      t.strictSame(await ids(mailbox, 'd', 0), ['a', 'b', 'c'])
      t.strictSame(await ids(mailbox, 'd', a), ['b', 'c'])
      t.strictSame(await ids(mailbox, 'd', c), [])
      for (const id of ['a', 'b', 'c']) await mailbox.settle('d', id, 'delivered')
      t.strictSame(await ids(mailbox, 'd'), [])
      await put(mailbox, 'd', 'e')
      t.strictSame(await ids(mailbox, 'd', c), ['e'])
    })

    t.test('a letter comes back exactly as it was', async t => {
      const mailbox = await fresh(t)
      const bytes = Uint8Array.from({ length: 256 }, (_, at) => at)
      const inside = Buffer.concat([Buffer.from('around'), bytes, Buffer.from('around')]).subarray(6, 262)
      const text = JSON.stringify({ name: 'ü€😀 "\\\n\u2028\0', list: [1, null] })
      const expiresAt = Date.now() + HOUR
      const letters: Letter[] = [
        { id: 'bytes', body: bytes, expiresAt },
        { id: 'inside', body: inside, expiresAt },
        { id: 'no bytes', body: new Uint8Array(0), expiresAt },
        { id: 'text', body: text, expiresAt, collapse: 'ü', digest: 'abc', awaitedBy: 'n1' },
        { id: 'caused', body: bytes, expiresAt, context: { id: 'req-1 ü"\n', traceparent: '00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01', tracestate: 'a=1' } }
      ]
      for (const one of letters) await mailbox.put('d', one, plenty)
      for (const [at, kept] of (await all(mailbox.letters('d'))).entries()) {
        const { id, body, collapse, digest, awaitedBy, context } = letters[at]!
        t.strictSame([kept.id, kept.expiresAt, kept.collapse, kept.digest, kept.awaitedBy, kept.context], [id, expiresAt, collapse, digest, awaitedBy, context])
        t.notOk('context' in (await mailbox.receipt('d', id))!, 'a receipt does not name the request')
        t.equal(typeof kept.body, typeof body)
        if (typeof kept.body === 'string') t.equal(kept.body, body)
        else t.strictSame([...kept.body], [...body as Uint8Array], id)
      }
    })

    t.test('a mailbox that works is healthy', async t => {
      const mailbox = await fresh(t)
      await put(mailbox, 'd', 'a')
      t.strictSame(await mailbox.health?.() ?? { ok: true }, { ok: true })
    })

    t.test('letters of one device do not affect those of another', async t => {
      const mailbox = await fresh(t)
      const neighbours = ['d', 'd1', 'D', 'd.1', 'd~', 'd:1', 'd+', 'x'.repeat(128)]
      for (const deviceId of neighbours) {
        t.equal((await mailbox.put(deviceId, letter('same', { body: `"${deviceId}"`, collapse: 'k' }), { letters: 1, bytes: 200 })).fresh, true)
      }
      for (const deviceId of neighbours) t.strictSame((await all(mailbox.letters(deviceId))).map(({ body }) => body), [`"${deviceId}"`])
      await mailbox.settle('d', 'same', 'cancelled')
      await mailbox.addAttempt('d1', 'same')
      for (const deviceId of neighbours.slice(1)) t.equal(await mailbox.waiting(deviceId), 1)
      t.equal((await mailbox.receipt('d1', 'same'))!.status, 'queued')
      t.equal(await mailbox.addAttempt('D', 'same'), 1)
    })

    t.test('a device of which nothing is known has no letters', async t => {
      const mailbox = await fresh(t)
      t.strictSame(await ids(mailbox, 'nobody'), [])
      t.equal(await mailbox.waiting('nobody'), 0)
      t.equal(await mailbox.receipt('nobody', 'l'), undefined)
      t.equal(await mailbox.settle('nobody', 'l', 'delivered'), false)
      t.equal(await mailbox.addAttempt('nobody', 'l'), 0)
    })

    t.test('a device has no more letters than its limit', async t => {
      const mailbox = await fresh(t)
      const limits = { letters: 2, bytes: 1_000 }
      for (const id of ['a', 'b']) await mailbox.put('d', letter(id), limits)
      t.equal(await reasonOf(mailbox.put('d', letter('c'), limits)), 'mailbox-full')
      t.strictSame(await ids(mailbox, 'd'), ['a', 'b'])
      t.equal(await mailbox.receipt('d', 'c'), undefined, 'a refused letter leaves no trace')
      await mailbox.settle('d', 'a', 'delivered')
      t.equal((await mailbox.put('d', letter('c'), limits)).fresh, true)
      t.strictSame(await ids(mailbox, 'd'), ['b', 'c'])
    })

    t.test('a device has no more bytes than its limit', async t => {
      const mailbox = await fresh(t)
      const limits = { letters: 100, bytes: 10 }
      await mailbox.put('d', letter('euros', { body: '"€€"' }), limits)
      t.equal(await reasonOf(mailbox.put('d', letter('bytes', { body: new Uint8Array(3) }), limits)), 'mailbox-full')
      t.equal((await mailbox.put('d', letter('fits', { body: new Uint8Array(2) }), limits)).fresh, true)
      t.equal(await reasonOf(mailbox.put('d', letter('one more', { body: '1' }), limits)), 'mailbox-full')
      await mailbox.settle('d', 'euros', 'expired')
      t.equal((await mailbox.put('d', letter('now', { body: new Uint8Array(8) }), limits)).fresh, true)
      t.strictSame(await ids(mailbox, 'd'), ['fits', 'now'])
    })

    t.test('of many letters at once no more are taken than the limit allows', async t => {
      const mailbox = await fresh(t)
      const limits = { letters: 5, bytes: 1_000 }
      const outcomes = await Promise.all(Array.from({ length: 12 }, (_, at) => reasonOf(mailbox.put('d', letter(`l${at}`), limits))))
      t.equal(outcomes.filter(outcome => outcome === 'mailbox-full').length, 7)
      t.equal(outcomes.filter(outcome => outcome === 'it did not fail').length, 5)
      t.equal(await mailbox.waiting('d'), 5)
      t.equal((await ids(mailbox, 'd')).length, 5)
    })

    t.test('a letter with a known id is not kept again, and its first receipt stays', async t => {
      const mailbox = await fresh(t)
      const limits = { letters: 1, bytes: 100 }
      const first = await mailbox.put('d', letter('a', { digest: 'first' }), limits)
      t.match(first, { fresh: true, receipt: { id: 'a', status: 'queued', digest: 'first' } })
      const again = await mailbox.put('d', letter('a', { body: '"other"', digest: 'second', collapse: 'k' }), limits)
      t.strictSame(again, { receipt: first.receipt, fresh: false })
      t.strictSame((await all(mailbox.letters('d'))).map(({ body }) => body), ['"a"'])

      await mailbox.settle('d', 'a', 'delivered')
      const late = await mailbox.put('d', letter('a', { digest: 'first' }), limits)
      t.match(late, { fresh: false, receipt: { id: 'a', status: 'delivered', digest: 'first' } })
      t.equal(await mailbox.waiting('d'), 0)
    })

    t.test('of concurrent puts of the same letter, one is fresh', async t => {
      const mailbox = await fresh(t)
      const puts = await Promise.all(Array.from({ length: 8 }, () => mailbox.put('d', letter('a', { digest: 'same' }), plenty)))
      t.equal(puts.filter(({ fresh }) => fresh).length, 1)
      t.ok(puts.every(({ receipt }) => receipt.id === 'a' && receipt.status === 'queued'))
      t.strictSame(await ids(mailbox, 'd'), ['a'])
    })

    t.test('a letter replaces the one with the same collapse key, and is the last', async t => {
      const mailbox = await fresh(t)
      await mailbox.put('d', letter('a', { collapse: 'k' }), plenty)
      await mailbox.put('d', letter('b', { collapse: 'other' }), plenty)
      await mailbox.put('d', letter('c'), plenty)
      const put = await mailbox.put('d', letter('e', { collapse: 'k' }), plenty)
      t.match(put, { fresh: true, receipt: { id: 'e', status: 'queued', collapse: 'k' } })
      t.ok(JSON.stringify(put.replaced).includes('a'))
      t.strictSame(await ids(mailbox, 'd'), ['b', 'c', 'e'])
      t.equal((await mailbox.receipt('d', 'a'))!.status, 'replaced')
      t.equal(await mailbox.settle('d', 'a', 'delivered'), false)
      t.equal((await mailbox.put('d', letter('f'), plenty)).replaced, undefined)
      await mailbox.settle('d', 'e', 'delivered')
      t.equal((await mailbox.put('d', letter('g', { collapse: 'k' }), plenty)).replaced, undefined, 'an ended letter is not replaced')
    })

    t.test('a replaced letter no longer counts towards the limits', async t => {
      const mailbox = await fresh(t)
      const limits = { letters: 1, bytes: 10 }
      await mailbox.put('d', letter('a', { body: new Uint8Array(10), collapse: 'k' }), limits)
      t.equal((await mailbox.put('d', letter('b', { body: new Uint8Array(10), collapse: 'k' }), limits)).fresh, true)
      t.equal(await reasonOf(mailbox.put('d', letter('c', { body: new Uint8Array(11), collapse: 'k' }), limits)), 'mailbox-full')
      t.strictSame(await ids(mailbox, 'd'), ['b'], 'a letter that does not fit replaces none')
      t.equal((await mailbox.receipt('d', 'b'))!.status, 'queued')
      t.equal(await mailbox.receipt('d', 'c'), undefined)
    })

    t.test('a letter is settled once', async t => {
      const mailbox = await fresh(t)
      await put(mailbox, 'd', 'a', 'b')
      t.equal(await mailbox.settle('d', 'unknown', 'delivered'), false)
      const outcomes = await Promise.all((['delivered', 'expired', 'cancelled'] as const).map(async ending => await mailbox.settle('d', 'a', ending) && ending))
      const [ending, ...more] = outcomes.filter(outcome => outcome !== false)
      t.strictSame(more, [])
      t.equal((await mailbox.receipt('d', 'a'))!.status, ending)
      t.equal(await mailbox.settle('d', 'a', 'refused', { code: 1, message: 'late' }), false)
      t.equal((await mailbox.receipt('d', 'a'))!.status, ending)
      t.strictSame(await ids(mailbox, 'd'), ['b'])
      t.equal(await mailbox.waiting('d'), 1)
    })

    t.test('a receipt describes a letter and how it ended', async t => {
      const mailbox = await fresh(t)
      const expiresAt = Date.now() + HOUR
      const endings: Ending[] = ['delivered', 'expired', 'cancelled', 'replaced', 'refused', 'dead-lettered']
      const detail = { code: 'E7', message: 'No', data: { why: [1] } }
      for (const ending of endings) {
        const from = Date.now()
        const { receipt } = await mailbox.put('d', { id: ending, body: '"€"', expiresAt, collapse: ending, digest: 'abc', awaitedBy: 'n1' }, plenty)
        const known = { id: ending, expiresAt, size: 5, collapse: ending, digest: 'abc', awaitedBy: 'n1' }
        t.strictSame(receipt, { ...known, status: 'queued', at: receipt.at })
        t.ok(receipt.at >= from && receipt.at <= Date.now())
        t.strictSame(await mailbox.receipt('d', ending), receipt)

        t.equal(await mailbox.settle('d', ending, ending, ending === 'refused' ? detail : undefined), true)
        const settled = (await mailbox.receipt('d', ending))!
        t.strictSame(settled, { ...known, status: ending, at: settled.at, ...(ending === 'refused' && { device: detail }) })
        t.ok(settled.at >= receipt.at && settled.at <= Date.now())
      }
      const { receipt } = await mailbox.put('d', { id: 'bare', body: new Uint8Array(7), expiresAt }, plenty)
      t.strictSame(receipt, { id: 'bare', expiresAt, size: 7, status: 'queued', at: receipt.at })
    })

    t.test('a mailbox that counts its letters counts those of all devices that wait', async t => {
      const mailbox = await fresh(t)
      if (!mailbox.size) return
      const soon = Date.now() + HOUR / 2
      t.equal(await mailbox.size(), 0)
      await put(mailbox, 'd', 'a', 'b', 'c')
      for (let again = 0; again < 2; again++) await mailbox.put('e', letter('a', { digest: 'same' }), plenty)
      await mailbox.put('e', letter('old', { collapse: 'k' }), plenty)
      await mailbox.put('e', letter('new', { collapse: 'k', expiresAt: soon }), plenty)
      await reasonOf(mailbox.put('d', letter('refused'), { letters: 3, bytes: 1_000 }))
      t.equal(await mailbox.size(), 5)
      await mailbox.settle('d', 'a', 'delivered')
      await mailbox.settle('d', 'a', 'delivered')
      await mailbox.settle('d', 'unknown', 'delivered')
      await mailbox.addAttempt('d', 'b')
      t.equal(await mailbox.size(), 4)
      await sweep(mailbox, soon)
      t.equal(await mailbox.size(), 3)
      for (const id of ['b', 'c']) await mailbox.settle('d', id, 'cancelled')
      await mailbox.settle('e', 'a', 'dead-lettered')
      t.equal(await mailbox.size(), 0)
    })

    t.test('attempts are counted for each letter', async t => {
      const mailbox = await fresh(t)
      await put(mailbox, 'd', 'a', 'b')
      t.equal(await mailbox.addAttempt('d', 'a'), 1)
      t.equal(await mailbox.addAttempt('d', 'a'), 2)
      t.equal(await mailbox.addAttempt('d', 'b'), 1)
      t.equal(await mailbox.addAttempt('d', 'a'), 3)
      t.strictSame(await ids(mailbox, 'd'), ['a', 'b'], 'a strike alone takes nothing out')
      await mailbox.settle('d', 'a', 'dead-lettered')
      t.equal(await mailbox.addAttempt('d', 'a'), 0)
      t.equal(await mailbox.addAttempt('d', 'unknown'), 0)
    })

    t.test('expired letters are swept and returned once', async t => {
      const mailbox = await fresh(t)
      const now = Date.now() + HOUR
      t.strictSame(await sweep(mailbox, now), [])
      await mailbox.put('d', letter('past', { expiresAt: now - 1 }), plenty)
      await mailbox.put('d', letter('later', { expiresAt: now + 1 }), plenty)
      await mailbox.put('d', letter('now', { expiresAt: now }), plenty)
      await mailbox.put('e', letter('past', { expiresAt: now - 10 }), plenty)
      await mailbox.put('e', letter('settled', { expiresAt: now - 10 }), plenty)
      await mailbox.settle('e', 'settled', 'delivered')

      t.strictSame(await sweep(mailbox, now - 11), [])
      t.strictSame(await sweep(mailbox, now), ['d now', 'd past', 'e past'])
      t.strictSame(await sweep(mailbox, now), [])
      t.strictSame(await ids(mailbox, 'd'), ['later'])
      t.equal(await mailbox.waiting('e'), 0)
      t.equal((await mailbox.receipt('d', 'past'))!.status, 'expired')
      t.equal((await mailbox.receipt('d', 'later'))!.status, 'queued')
      t.equal(await mailbox.settle('d', 'past', 'delivered'), false)
      t.strictSame(await sweep(mailbox, now + 1), ['d later'])
    })

    t.test('many letters that expire at once are all swept', async t => {
      const mailbox = await fresh(t)
      const now = Date.now() + HOUR
      const expected: string[] = []
      for (let count = 0; count < 300; count++) {
        await mailbox.put(`d${count % 7}`, letter(`l${count}`, { expiresAt: now }), plenty)
        expected.push(`d${count % 7} l${count}`)
      }
      t.strictSame(await sweep(mailbox, now), expected.toSorted())
      for (let device = 0; device < 7; device++) t.equal(await mailbox.waiting(`d${device}`), 0)
    })

    t.test('an expired letter no longer counts towards the limits', async t => {
      const mailbox = await fresh(t)
      const now = Date.now() + HOUR
      const limits = { letters: 1, bytes: 5 }
      await mailbox.put('d', letter('a', { body: '12345', expiresAt: now }), limits)
      await sweep(mailbox, now)
      t.equal((await mailbox.put('d', letter('b', { body: '12345' }), limits)).fresh, true)
    })

    t.test('letters that are put during a read are in this read or the next, each once', async t => {
      const mailbox = await fresh(t)
      await put(mailbox, 'd', 'a', 'b')
      const seen: StoredLetter[] = []
      for await (const one of mailbox.letters('d')) {
        seen.push(one)
        if (one.id === 'a') await put(mailbox, 'd', 'c')
        if (one.id === 'b') await put(mailbox, 'd', 'e')
      }
      seen.push(...await all(mailbox.letters('d', seen.at(-1)!.position)))
      t.strictSame(seen.map(({ id }) => id), ['a', 'b', 'c', 'e'])
    })

    t.test('letters may be settled during a read, even the last of them', async t => {
      const mailbox = await fresh(t)
      await put(mailbox, 'd', 'a', 'b', 'c')
      const seen: StoredLetter[] = []
      for await (const one of mailbox.letters('d')) {
        seen.push(one)
        t.equal(await mailbox.settle('d', one.id, 'delivered'), true)
        if (one.id === 'c') await put(mailbox, 'd', 'e')
      }
      seen.push(...await all(mailbox.letters('d', seen.at(-1)!.position)))
      t.strictSame([...new Set(seen.map(({ id }) => id))], ['a', 'b', 'c', 'e'])
      t.equal(seen.length, 4)
    })

    t.test('a read may stop early', async t => {
      const mailbox = await fresh(t)
      await put(mailbox, 'd', 'a', 'b', 'c')
      for await (const { id } of mailbox.letters('d')) if (id === 'b') break
      t.strictSame(await ids(mailbox, 'd'), ['a', 'b', 'c'])
    })
  })
}

/** What the mailboxes of two nodes hold that share a server: the clocks of the nodes do not matter. */
export function sharedClockContract (t: Test, server: string, open: (t: Test) => Promise<[Mailbox, Mailbox]>): void {
  void t.test(`letters expire by the clock of ${server}, not by those of the nodes`, async t => {
    const { now } = Date
    t.teardown(() => { Date.now = now })
    for (const wrong of [120_000, -120_000]) {
      const [right, other] = await open(t)
      const onWrong = async <T>(work: () => Promise<T>): Promise<T> => {
        Date.now = () => now() + wrong
        try {
          return await work()
        } finally {
          Date.now = now
        }
      }
      const near = (time: number, expected: number) => Math.abs(time - expected) < 10_000
      await right.put('d', letter('a', { expiresAt: Date.now() + MINUTE }), plenty)
      await onWrong(async () => {
        t.strictSame(await other.sweep(Date.now()), [], `a clock that is wrong by ${wrong} lets nothing expire`)
        const [a] = await all(other.letters('d'))
        t.ok(near(a!.expiresAt, Date.now() + MINUTE))
        const { receipt } = await other.put('d', letter('b', { expiresAt: Date.now() + MINUTE }), plenty)
        t.ok(near(receipt.expiresAt, Date.now() + MINUTE))
        t.ok(near(receipt.at, Date.now()))
      })
      const [, b] = await all(right.letters('d'))
      t.ok(near(b!.expiresAt, Date.now() + MINUTE))
      t.ok(near((await right.receipt('d', 'b'))!.expiresAt, Date.now() + MINUTE))
      t.strictSame(await right.sweep(Date.now() + MINUTE - 20_000), [])
      await onWrong(async () => {
        const expired = await other.sweep(Date.now() + MINUTE + 20_000)
        t.strictSame(expired.map(({ receipt }) => receipt.id).toSorted(), ['a', 'b'])
        t.ok(expired.every(({ receipt }) => near(receipt.at, Date.now())))
        t.ok(near((await other.receipt('d', 'a'))!.at, Date.now()))
      })
    }
  })
}
