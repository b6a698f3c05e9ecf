import { randomBytes } from 'node:crypto'
import type { JetStreamManager } from '@nats-io/jetstream'
import { Failure, type Detail } from '../protocol/errors.ts'
import { sizeOf, type MailboxLimits, type Ending, type ExpiredLetter, type StoredLetter, type Letter, type Mailbox, type PutResult, type Receipt } from '../storage/mailbox.ts'
import { ServerClock } from './server-clock.ts'
import { FirstLetters, type FirstLetter } from './first-letters.ts'
import { decodeLetter, encodeLetter, entryOf, keyOf, parse, receiptOf, type ReceiptRecord, type LetterEntry, type LetterHeader } from './letter-format.ts'
import { LetterReader } from './letter-reader.ts'
import { healthOver } from './health.ts'
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

/** The mailbox has room for a letter. */
interface MailboxRoom extends Pick<LetterHeader, 'box' | 'isAfterHidden'> {
  /** The last letter of the same collapse key. */
  replaced: StoredLetter | undefined
}

const DAY_MS = 86_400_000
const NANOSECONDS_PER_MS = 1_000_000
/** Longer than any letter may wait, so NATS removes only records that no node has cleaned up. */
const MAX_AGE_NS = 32 * DAY_MS * NANOSECONDS_PER_MS
const DUPLICATE_WINDOW_NS = 120_000 * NANOSECONDS_PER_MS
const MAX_PER_SWEEP = 1_000
const CONCURRENCY = 64
/** Delay after which a node ends an expired letter that another node has put: at least this, at most twice as much. */
const TAKEOVER_DELAY_MS = 1_000
/** Settling a letter takes less than this: an entry this old whose letter is gone is left over. */
const MAX_SETTLE_MS = 10_000

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
  readonly health: Required<Mailbox>['health']
  readonly size = async (): Promise<number> => (await this.#letters.span()).count
  /** One subject per device; the position of a letter is its sequence number. */
  readonly #letters: StreamStore
  /** By device and letter: the entry of each waiting letter. */
  readonly #entries: StreamStore
  /** By device and letter: the receipt of each settled letter, until it is `keepReceipts` old. */
  readonly #receipts: StreamStore
  readonly #reader: LetterReader
  readonly #clock: ServerClock
  readonly #expiries: ExpiryIndex
  /** Reads some entries with each sweep, because letters put by a node that is gone expire too. */
  readonly #scan: StreamScan
  readonly #instance = randomBytes(9).toString('base64url')
  readonly #settling = new Map<string, Promise<boolean>>()
  readonly #firstLetters = new FirstLetters()
  /** Another one on each node, and always the same on one: what is read again is noted once. */
  readonly #takeoverDelay = TAKEOVER_DELAY_MS * (1 + Math.random())

  constructor (link: Link, keepReceipts: number, maxBytes: number) {
    // not longer than receipts: a letter that NATS takes for a duplicate must have a receipt
    const duplicateWindow = Math.min(keepReceipts, DUPLICATE_WINDOW_NS)
    this.#letters = StreamStore.stream(link, 'letters', { max_age: MAX_AGE_NS, max_bytes: maxBytes, duplicate_window: duplicateWindow })
    this.#entries = StreamStore.bucket(link, 'entries', { max_age: MAX_AGE_NS })
    this.#receipts = StreamStore.bucket(link, 'receipts', { max_age: keepReceipts, duplicate_window: duplicateWindow })
    this.#reader = new LetterReader(this.#letters, this.#entries)
    this.#clock = new ServerClock(this.#receipts)
    this.#expiries = new ExpiryIndex(() => this.#toServerTime(Date.now()))
    this.#scan = new StreamScan(this.#entries)
    this.health = () => healthOver(link, this.#entries) // each sweep reads entries
    link.onChange(() => this.#clock.invalidate())
  }

  async prepare (manager: JetStreamManager): Promise<void> {
    await Promise.all([this.#letters, this.#entries, this.#receipts].map(records => records.prepare(manager)))
  }

  async put (deviceId: string, letter: Letter, limits: MailboxLimits): Promise<PutResult> {
    await this.#clock.refresh()
    const first = this.#firstLetters.acquire(deviceId)
    try {
      return await this.#put(deviceId, letter, limits, first)
    } finally {
      this.#firstLetters.release(deviceId)
    }
  }

  async #put (deviceId: string, letter: Letter, limits: MailboxLimits, first: FirstLetter): Promise<PutResult> {
    const key = keyOf(deviceId, letter.id)
    for (;;) {
      const { version } = first
      const [known, last] = await Promise.all([this.receipt(deviceId, letter.id), this.#letters.last(token(deviceId))])
      if (known) return { receipt: known, fresh: false }
      const { replaced, ...room } = await this.#roomFor(deviceId, letter, limits, last)
      const header = this.#headerOf(letter, room)
      const append = () => this.#letters.append(token(deviceId), encodeLetter(header, letter.body), {
        after: last?.seq,
        id: `${deviceId} ${letter.id}`
      })
      const appended = await (last ? append() : first.once(version, append))
      if (!appended) continue // another letter was put or settled meanwhile
      if (!appended.fresh) {
        await this.#addMissingEntry(key, appended.seq)
        continue
      }
      await this.#entries.append(key, JSON.stringify(entryOf(header, appended.seq)))
      this.#expiries.add({ deviceId, letterId: letter.id, expiresAt: header.expiresAt })
      const older = last ? replaced : await this.#lastCollapsible(deviceId, letter, appended.seq)
      return { receipt: this.#toLocal(receiptOf(header)), fresh: true, ...await this.#replace(deviceId, older) }
    }
  }

  async * letters (deviceId: string, after = 0): AsyncGenerator<StoredLetter> {
    await this.#clock.refresh()
    for await (const { letter } of this.#reader.after(deviceId, after)) yield { ...letter, expiresAt: letter.expiresAt - this.#clock.ahead }
  }

  waiting (deviceId: string): Promise<number> {
    return this.#reader.count(deviceId)
  }

  async settle (deviceId: string, letterId: string, ending: Ending, device?: Detail): Promise<boolean> {
    const key = keyOf(deviceId, letterId)
    // sequential per letter: of two callers with the same ending, one gets `true`
    const other = this.#settling.get(key)
    if (other) return !await other.catch(() => false) && await this.settle(deviceId, letterId, ending, device)
    const settling = this.#settle(deviceId, letterId, ending, device).finally(() => this.#settling.delete(key))
    this.#settling.set(key, settling)
    return await settling
  }

  /** The receipt is written first: if this breaks off, the outcome stands, and the next call to settle the letter completes it. */
  async #settle (deviceId: string, letterId: string, ending: Ending, device?: Detail): Promise<boolean> {
    const key = keyOf(deviceId, letterId)
    const found = await this.#entries.last(key)
    const entry = found ? parse<LetterEntry>(found) : await this.#findWithoutEntry(deviceId, letterId)
    if (!entry) return false
    const erase = () => this.#letters.erase(token(deviceId), entry.position, stored => decodeLetter(stored).header.id === letterId)
    const record: ReceiptRecord = { ...receiptOf(entry), status: ending, at: this.#toServerTime(Date.now()), ...(device && { device }), by: this.#instance }
    const isOurs = await this.#writeReceipt(key, record).catch(async error => {
      if (error.reason !== 'store-full') throw error
      await erase() // makes room for the receipt
      return await this.#writeReceipt(key, record)
    })
    await erase()
    if (found) await this.#entries.remove(found)
    this.#expiries.remove({ deviceId, letterId, expiresAt: entry.expiresAt })
    return isOurs
  }

  async receipt (deviceId: string, letterId: string): Promise<Receipt | undefined> {
    const key = keyOf(deviceId, letterId)
    // read concurrently: a receipt is written before its entry is erased, so one of them is found
    const [entry, found] = await Promise.all([this.#entries.last(key), this.#receipts.last(key)])
    if (!found) return entry && this.#toLocal(receiptOf(parse<LetterEntry>(entry)))
    const { by, ...receipt } = parse<ReceiptRecord>(found)
    return this.#toLocal(receipt)
  }

  async addAttempt (deviceId: string, letterId: string): Promise<number> {
    const key = keyOf(deviceId, letterId)
    for (;;) {
      const found = await this.#entries.last(key)
      if (!found) return 0
      const entry = parse<LetterEntry>(found)
      const attempts = entry.attempts + 1
      if (await this.#entries.append(key, JSON.stringify({ ...entry, attempts }), { after: found.seq })) return attempts
    }
  }

  /** All nodes sweep; each expired letter is reported by the one that settled it. */
  async sweep (now: number, signal?: AbortSignal): Promise<ExpiredLetter[]> {
    await this.#clock.refresh()
    await this.#scan.step(stored => this.#visit(stored), signal)
    const due = this.#expiries.until(this.#toServerTime(now)).slice(0, MAX_PER_SWEEP).values()
    const expired: ExpiredLetter[] = []
    const settleDue = async () => {
      for (const expiry of due) {
        if (signal?.aborted) return
        const { deviceId, letterId } = expiry
        if (await this.settle(deviceId, letterId, 'expired')) expired.push({ deviceId, receipt: (await this.receipt(deviceId, letterId))! })
        this.#expiries.remove(expiry)
      }
    }
    const outcomes = await Promise.allSettled(Array.from({ length: CONCURRENCY }, settleDue))
    const failed = outcomes.find(({ status }) => status === 'rejected')
    // expired letters are reported even after a failure; the rest is tried again with the next sweep
    if (failed && expired.length === 0) throw (failed as PromiseRejectedResult).reason
    return expired
  }

  /** Rejects with `mailbox-full`. */
  async #roomFor (deviceId: string, letter: Letter, limits: MailboxLimits, last: StoredRecord | undefined): Promise<MailboxRoom> {
    const size = sizeOf(letter.body)
    const fits = ({ letters, bytes }: MailboxLimits) => letters < limits.letters && bytes + size <= limits.bytes
    const including = ({ letters, bytes }: MailboxLimits) => ({ letters: letters + 1, bytes: bytes + size })
    // up to NATS 2.9 a subject seems to have no last record once that has been erased, although it has others
    const count = last ? undefined : await this.waiting(deviceId)
    const before = last && decodeLetter(last).header
    const isAfterHidden = (before ? before.isAfterHidden : count) ? { isAfterHidden: true as const } : {}
    let replaced: StoredLetter | undefined
    if (letter.collapse === undefined) {
      // the header of the last letter has an upper bound, because letters may have been settled since
      const bound = before?.box ?? { letters: 0, bytes: 0 }
      if (!count && fits(bound)) return { box: including(bound), replaced, ...isAfterHidden }
      if ((count ?? await this.waiting(deviceId)) >= limits.letters) throw new Failure('mailbox-full')
    }
    const box = { letters: 0, bytes: 0 }
    for await (const waiting of this.letters(deviceId)) {
      if (isCollapsible(waiting, letter)) {
        replaced = waiting
        continue
      }
      box.letters++
      box.bytes += sizeOf(waiting.body)
    }
    if (!fits(box)) throw new Failure('mailbox-full')
    return { box: including(box), replaced, ...isAfterHidden }
  }

  /**
   * For a letter that was put into an empty mailbox. Other nodes may have put letters of the same collapse key at the same moment: each replaces only the
   * one before it, so that no two nodes settle the same letter.
   */
  async #lastCollapsible (deviceId: string, letter: Letter, before: number): Promise<StoredLetter | undefined> {
    let found: StoredLetter | undefined
    if (letter.collapse === undefined) return found
    for await (const waiting of this.letters(deviceId)) {
      if (waiting.position < before && isCollapsible(waiting, letter)) found = waiting
    }
    return found
  }

  async #replace (deviceId: string, replaced: StoredLetter | undefined): Promise<Pick<PutResult, 'replaced'>> {
    if (!replaced || !await this.settle(deviceId, replaced.id, 'replaced')) return {}
    return { replaced: (await this.receipt(deviceId, replaced.id))! }
  }

  /** Writes the entry of a letter that another caller has put, in case that caller failed before it wrote the entry. */
  async #addMissingEntry (key: string, position: number): Promise<void> {
    const [stored, entry] = await Promise.all([this.#letters.at(position), this.#entries.last(key)])
    if (!stored || entry) return
    const appended = await this.#entries.append(key, JSON.stringify(entryOf(decodeLetter(stored).header, position)))
    // settled meanwhile, when there was no entry to erase
    if (appended && !await this.#letters.at(position)) await this.#entries.erase(key, appended.seq)
  }

  /** Finds a letter whose put failed, or has not got as far as its entry, although the letter can already be delivered. */
  async #findWithoutEntry (deviceId: string, letterId: string): Promise<LetterEntry | undefined> {
    for await (const { id, position } of this.letters(deviceId)) {
      const stored = id === letterId && await this.#letters.at(position)
      if (stored) return entryOf(decodeLetter(stored).header, position)
    }
    return undefined
  }

  /** False: the letter was settled before. A retry after a lost answer finds its own receipt, and counts as the first. */
  async #writeReceipt (key: string, record: ReceiptRecord): Promise<boolean> {
    const earlier = await this.#receipts.last(key)
    if (!earlier && await this.#receipts.append(key, JSON.stringify(record), { after: 0 })) return true
    const found = earlier ?? await this.#receipts.last(key)
    return found !== undefined && isSameEnding(parse<ReceiptRecord>(found), record)
  }

  /** Adds a letter to the expiry index, or settles it: where the letter is gone but not its entry, a node died while it settled the letter. */
  async #visit (stored: StoredRecord): Promise<void> {
    const [deviceId, letterId] = stored.subject.split('.').map(textOf) as [string, string]
    const { expiresAt, at, position } = parse<LetterEntry>(stored)
    // later than the node that put it, and not at the same moment as other nodes: NATS would have to refuse one of two receipts
    const isKnown = this.#expiries.has({ deviceId, letterId, expiresAt })
    if (!isKnown) this.#expiries.add({ deviceId, letterId, expiresAt: expiresAt + this.#takeoverDelay })
    const isLeftOver = at < this.#toServerTime(Date.now()) - MAX_SETTLE_MS && !await this.#letters.at(position)
    if (isLeftOver) await this.settle(deviceId, letterId, 'expired') // a receipt that exists stays
  }

  #headerOf ({ body, expiresAt, ...letter }: Letter, room: Omit<MailboxRoom, 'replaced'>): LetterHeader {
    return { ...letter, expiresAt: this.#toServerTime(expiresAt), at: this.#toServerTime(Date.now()), size: sizeOf(body), isText: typeof body === 'string', ...room }
  }

  /** Converts a time of the clock of this machine into one of NATS. */
  #toServerTime (time: number): number {
    return time + this.#clock.ahead
  }

  /** Converts the times of a receipt into those of the clock of this machine. */
  #toLocal (receipt: Receipt): Receipt {
    const { ahead } = this.#clock
    return { ...receipt, at: receipt.at - ahead, expiresAt: receipt.expiresAt - ahead }
  }
}

/** A letter whose put broke off and was repeated may wait twice. It does not replace itself. */
function isCollapsible (waiting: StoredLetter, { id, collapse }: Letter): boolean {
  return collapse !== undefined && waiting.collapse === collapse && waiting.id !== id
}

function isSameEnding (one: ReceiptRecord, other: ReceiptRecord): boolean {
  return one.by === other.by && one.status === other.status
}
