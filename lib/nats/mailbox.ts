import { randomBytes } from 'node:crypto'
import type { JetStreamManager } from '@nats-io/jetstream'
import { Failure, type Detail } from '../protocol/errors.ts'
import { sizeOf, type MailboxLimits, type Ending, type ExpiredLetter, type StoredLetter, type Letter, type Mailbox, type PutResult, type Receipt } from '../storage/mailbox.ts'
import { ServerClock } from './server-clock.ts'
import { decodeLetter, encodeLetter, entryOf, keyOf, parse, receiptOf, type ReceiptRecord, type LetterEntry, type LetterHeader } from './letter-format.ts'
import { Link, type Prepare } from './link.ts'
import type { LinkOptions } from './link-options.ts'
import { StreamStore, type StoredRecord } from './stream-store.ts'
import { StreamScan } from './stream-scan.ts'
import { textOf, token } from './subjects.ts'
import { ExpiryIndex } from './expiry-index.ts'

export interface NatsMailboxOptions extends LinkOptions {
  /**
   * Milliseconds for which the receipt of a settled letter is kept.
   * @default 86_400_000
   */
  keepReceipts?: number
  /**
   * Maximum size of all letters together, in bytes; beyond it a letter is refused with `store-full`. -1: unlimited.
   * @default -1
   */
  maxBytes?: number
}

/** The options of the mailbox itself. */
type MailboxSettings = { [name in 'keepReceipts' | 'maxBytes']: number | undefined }

/** A letter of which a put found that it may be kept. */
interface MailboxRoom {
  box: MailboxLimits
  replaced?: StoredLetter
}

const DAY_MS = 86_400_000
const NANOSECONDS_PER_MS = 1_000_000
/** No letter may wait for so long; what is this old was forgotten. */
const MAX_AGE_NS = 32 * DAY_MS * NANOSECONDS_PER_MS
const DUPLICATE_WINDOW_NS = 120_000 * NANOSECONDS_PER_MS
const MAX_PER_SWEEP = 1_000
const SIDE_BY_SIDE = 64
/** A letter that is being settled is without its entry for less than this. */
const UNFINISHED_MS = 10_000

/** A mailbox in JetStream that all nodes share, over a connection of its own. Needs `@nats-io/transport-node` and `@nats-io/jetstream`. */
export async function natsMailbox ({ keepReceipts, maxBytes, ...options }: NatsMailboxOptions = {}): Promise<Mailbox> {
  const link = new Link(options)
  const { mailbox, prepare } = mailboxOver(link, { keepReceipts, maxBytes })
  await link.open(prepare)
  return Object.assign(mailbox, {
    onTrouble: (listener: (error: unknown) => void) => link.onTrouble(listener),
    close: () => link.close()
  })
}

/** The mailbox of a link that is not open yet, and the streams to prepare when it opens. It leaves the link to its caller. */
export function mailboxOver (link: Link, { keepReceipts = DAY_MS, maxBytes = -1 }: MailboxSettings): { mailbox: Mailbox, prepare: Prepare } {
  const mailbox = new NatsMailbox(link, keepReceipts * NANOSECONDS_PER_MS, maxBytes)
  return { mailbox, prepare: manager => mailbox.prepare(manager) }
}

class NatsMailbox implements Mailbox {
  readonly shared = true
  /** A subject for each device; the place of a letter is its position. */
  readonly #letters: StreamStore
  /** By device and letter: the entry of each letter that waits. */
  readonly #entries: StreamStore
  /** By device and letter: the receipt of each that is done with, for a while. */
  readonly #receipts: StreamStore
  readonly #clock: ServerClock
  readonly #reminders: ExpiryIndex
  /** Looks at some entries with each sweep: what a node has put that is no more expires, too. */
  readonly #scan: StreamScan
  readonly #self = randomBytes(9).toString('base64url')
  readonly #settling = new Map<string, Promise<boolean>>()

  constructor (link: Link, keepReceipts: number, maxBytes: number) {
    this.#letters = StreamStore.stream(link, 'letters', { max_age: MAX_AGE_NS, max_bytes: maxBytes, duplicate_window: DUPLICATE_WINDOW_NS })
    this.#entries = StreamStore.bucket(link, 'entries', { max_age: MAX_AGE_NS })
    this.#receipts = StreamStore.bucket(link, 'receipts', { max_age: keepReceipts, duplicate_window: Math.min(keepReceipts, DUPLICATE_WINDOW_NS) })
    this.#clock = new ServerClock(this.#receipts)
    this.#reminders = new ExpiryIndex(() => this.#there(Date.now()))
    this.#scan = new StreamScan(this.#entries)
    link.onChange(() => this.#clock.doubt())
  }

  async prepare (manager: JetStreamManager): Promise<void> {
    await Promise.all([this.#letters, this.#entries, this.#receipts].map(records => records.prepare(manager)))
  }

  async put (deviceId: string, letter: Letter, caps: MailboxLimits): Promise<PutResult> {
    const key = keyOf(deviceId, letter.id)
    await this.#clock.refresh()
    for (;;) {
      const [known, last] = await Promise.all([this.receipt(deviceId, letter.id), this.#letters.last(token(deviceId))])
      if (known) return { receipt: known, fresh: false }
      const { box, replaced } = await this.#roomFor(deviceId, letter, caps, last)
      const head = this.#headOf(letter, box)
      const appended = await this.#letters.append(token(deviceId), encodeLetter(head, letter.body), { after: last?.seq ?? 0, id: `${deviceId} ${letter.id}` })
      if (!appended) continue // another letter was put, or settled
      if (!appended.fresh) {
        await this.#enter(key, appended.seq)
        continue
      }
      await this.#entries.append(key, JSON.stringify(entryOf(head, appended.seq)), { after: 0 })
      this.#reminders.add({ deviceId, letterId: letter.id, expiresAt: head.expiresAt })
      return { receipt: this.#here(receiptOf(head)), fresh: true, ...await this.#replace(deviceId, replaced) }
    }
  }

  async * letters (deviceId: string, after = 0): AsyncGenerator<StoredLetter> {
    // so many and no more: to find that there is no other costs more than to find one
    await this.#clock.refresh()
    const waiting = await this.waiting(deviceId)
    let from = after + 1
    for (let left = waiting; left > 0; left--) {
      const stored = await this.#letters.next(token(deviceId), from)
      if (!stored) break
      yield this.#keptOf(stored)
      from = stored.seq + 1
    }
    if (waiting > 0 && from === after + 1) yield * this.#hidden(deviceId, after)
  }

  /** Up to NATS 2.9, of three letters the one in the middle is not found once the others are erased; its entry is. */
  async * #hidden (deviceId: string, after: number): AsyncGenerator<StoredLetter> {
    const subjects = Object.keys(await this.#entries.subjects(`${token(deviceId)}.*`))
    const entries = await Promise.all(subjects.map(subject => this.#entries.last(subject.split('.').slice(-2).join('.'))))
    const positions = entries.filter(entry => entry !== undefined).map(entry => parse<LetterEntry>(entry).position)
    for (const position of positions.filter(position => position > after).toSorted((one, other) => one - other)) {
      const stored = await this.#letters.at(position)
      if (stored) yield this.#keptOf(stored)
    }
  }

  async waiting (deviceId: string): Promise<number> {
    const [count = 0] = Object.values(await this.#letters.subjects(token(deviceId)))
    return count
  }

  async settle (deviceId: string, letterId: string, ending: Ending, device?: Detail): Promise<boolean> {
    const key = keyOf(deviceId, letterId)
    // one after the other: of two in this mailbox that say the same, one tells of it
    const other = this.#settling.get(key)
    if (other) return !await other.catch(() => false) && await this.settle(deviceId, letterId, ending, device)
    const settling = this.#settle(deviceId, letterId, ending, device).finally(() => this.#settling.delete(key))
    this.#settling.set(key, settling)
    return await settling
  }

  /** The receipt comes first: wherever it breaks off, the letter ends so, and the next one who settles it does the rest. */
  async #settle (deviceId: string, letterId: string, ending: Ending, device?: Detail): Promise<boolean> {
    const key = keyOf(deviceId, letterId)
    const found = await this.#entries.last(key)
    const entry = found ? parse<LetterEntry>(found) : await this.#unentered(deviceId, letterId)
    if (!entry) return false
    const erase = () => this.#letters.erase(token(deviceId), entry.position, stored => decodeLetter(stored).head.id === letterId)
    const done: ReceiptRecord = { ...receiptOf(entry), status: ending, at: this.#there(Date.now()), ...(device && { device }), by: this.#self }
    const isOurs = await this.#end(key, done).catch(async error => {
      if (error.reason !== 'store-full') throw error
      await erase() // which makes room
      return await this.#end(key, done)
    })
    await erase()
    if (found) await this.#entries.remove(found)
    this.#reminders.remove({ deviceId, letterId, expiresAt: entry.expiresAt })
    return isOurs
  }

  async receipt (deviceId: string, letterId: string): Promise<Receipt | undefined> {
    const key = keyOf(deviceId, letterId)
    // the receipt of a letter that is done with is written before its entry goes
    const [entry, found] = await Promise.all([this.#entries.last(key), this.#receipts.last(key)])
    if (!found) return entry && this.#here(receiptOf(parse<LetterEntry>(entry)))
    const { by, ...receipt } = parse<ReceiptRecord>(found)
    return this.#here(receipt)
  }

  async addAttempt (deviceId: string, letterId: string): Promise<number> {
    const key = keyOf(deviceId, letterId)
    for (;;) {
      const found = await this.#entries.last(key)
      if (!found) return 0
      const entry = parse<LetterEntry>(found)
      const struck = { ...entry, strikes: entry.strikes + 1 }
      if (await this.#entries.append(key, JSON.stringify(struck), { after: found.seq })) return struck.strikes
    }
  }

  /** Every node sweeps; who ends a letter is the one who tells of it. */
  async sweep (now: number, signal?: AbortSignal): Promise<ExpiredLetter[]> {
    await this.#clock.refresh()
    await this.#scan.step(stored => this.#remember(stored), signal)
    const due = this.#reminders.until(this.#there(now)).slice(0, MAX_PER_SWEEP).values()
    const expired: ExpiredLetter[] = []
    const lane = async () => {
      for (const reminder of due) {
        if (signal?.aborted) return
        const { deviceId, letterId } = reminder
        if (await this.settle(deviceId, letterId, 'expired')) expired.push({ deviceId, receipt: (await this.receipt(deviceId, letterId))! })
        this.#reminders.remove(reminder)
      }
    }
    const lanes = await Promise.allSettled(Array.from({ length: SIDE_BY_SIDE }, lane))
    const failed = lanes.find(({ status }) => status === 'rejected')
    // those that have ended are told in any case: the rest fails again with the next sweep
    if (failed && expired.length === 0) throw (failed as PromiseRejectedResult).reason
    return expired
  }

  /** Rejects when there is none. */
  async #roomFor (deviceId: string, letter: Letter, caps: MailboxLimits, last: StoredRecord | undefined): Promise<MailboxRoom> {
    const size = sizeOf(letter.body)
    const fits = ({ letters, bytes }: MailboxLimits) => letters < caps.letters && bytes + size <= caps.bytes
    const withIt = ({ letters, bytes }: MailboxLimits) => ({ letters: letters + 1, bytes: bytes + size })
    const { collapse } = letter
    if (collapse === undefined) {
      // letters may have been settled since, so there is at least this much room; up to NATS 2.9 a subject seems to have
      // no last record once that has been erased, although it has others
      const count = last ? undefined : await this.waiting(deviceId)
      const most = last ? decodeLetter(last).head.box : { letters: 0, bytes: 0 }
      if (!count && fits(most)) return { box: withIt(most) }
      if ((count ?? await this.waiting(deviceId)) >= caps.letters) throw new Failure('mailbox-full')
    }
    const box = { letters: 0, bytes: 0 }
    let replaced: StoredLetter | undefined
    for await (const kept of this.letters(deviceId)) {
      if (collapse !== undefined && kept.collapse === collapse) {
        replaced = kept
        continue
      }
      box.letters++
      box.bytes += sizeOf(kept.body)
    }
    if (!fits(box)) throw new Failure('mailbox-full')
    return { box: withIt(box), ...(replaced && { replaced }) }
  }

  async #replace (deviceId: string, replaced: StoredLetter | undefined): Promise<Pick<PutResult, 'replaced'>> {
    if (!replaced || !await this.settle(deviceId, replaced.id, 'replaced')) return {}
    return { replaced: (await this.receipt(deviceId, replaced.id))! }
  }

  /** For somebody else who has put the letter, and may not have come as far as its entry. */
  async #enter (key: string, position: number): Promise<void> {
    const stored = await this.#letters.at(position)
    const entered = stored && await this.#entries.append(key, JSON.stringify(entryOf(decodeLetter(stored).head, position)), { after: 0 })
    // settled meanwhile: whoever did that found no entry to take away
    if (entered && !await this.#letters.at(position)) await this.#entries.erase(key, entered.seq)
  }

  /** A letter that was put so far that it is handed out, and has no entry yet. */
  async #unentered (deviceId: string, letterId: string): Promise<LetterEntry | undefined> {
    for await (const { id, position } of this.letters(deviceId)) {
      const stored = id === letterId && await this.#letters.at(position)
      if (stored) return entryOf(decodeLetter(stored).head, position)
    }
    return undefined
  }

  /** False: somebody else has ended it. One that tries again, after its answer was lost, has ended it. */
  async #end (key: string, done: ReceiptRecord): Promise<boolean> {
    if (await this.#receipts.append(key, JSON.stringify(done), { after: 0 })) return true
    const found = await this.#receipts.last(key)
    return found !== undefined && isSameEnd(parse<ReceiptRecord>(found), done)
  }

  /** Remembers when a letter expires; one that is gone although its entry is not was settled by a node that died over it. */
  async #remember (stored: StoredRecord): Promise<void> {
    const [deviceId, letterId] = stored.subject.split('.').map(textOf) as [string, string]
    const { expiresAt, at, position } = parse<LetterEntry>(stored)
    this.#reminders.add({ deviceId, letterId, expiresAt })
    const isLeftOver = at < this.#there(Date.now()) - UNFINISHED_MS && !await this.#letters.at(position)
    if (isLeftOver) await this.settle(deviceId, letterId, 'expired') // it has a receipt, which stays as it is
  }

  #headOf ({ body, expiresAt, ...letter }: Letter, box: MailboxLimits): LetterHeader {
    return { ...letter, expiresAt: this.#there(expiresAt), at: this.#there(Date.now()), size: sizeOf(body), isText: typeof body === 'string', box }
  }

  #keptOf (stored: StoredRecord): StoredLetter {
    const { kept } = decodeLetter(stored)
    return { ...kept, expiresAt: kept.expiresAt - this.#clock.ahead }
  }

  /** A time of this machine's clock, as NATS has it. */
  #there (time: number): number {
    return time + this.#clock.ahead
  }

  /** A receipt in the times of this machine's clock. */
  #here (receipt: Receipt): Receipt {
    const { ahead } = this.#clock
    return { ...receipt, at: receipt.at - ahead, expiresAt: receipt.expiresAt - ahead }
  }
}

function isSameEnd (one: ReceiptRecord, other: ReceiptRecord): boolean {
  return one.by === other.by && one.status === other.status
}
