import { Failure, type Detail } from '../errors.ts'
import { sizeOf, type Caps, type Ending, type Expired, type Kept, type Letter, type Mailbox, type Put, type Receipt } from '../mailbox.ts'
import { Link, type LinkOptions } from '../nats/link.ts'
import { Records, type Stored } from '../nats/records.ts'
import { textOf, token } from '../nats/subjects.ts'
import { Reminders } from './reminders.ts'

export interface JetStreamMailboxOptions extends LinkOptions {
  /** Milliseconds for which the receipt of a letter that is done with is kept. */
  keepReceipts?: number
  /** Bytes of all letters together. */
  maxBytes?: number
}

/** What is written with a letter. */
interface Head extends Omit<Receipt, 'status'> {
  isText: boolean
  /** What waited for the device when it had been put, at most. */
  box: Caps
}

/** What is known of a letter that waits, by its id. */
interface Entry extends Receipt {
  position: number
  strikes: number
}

/** A letter of which a put found that it may be kept. */
interface Room {
  box: Caps
  replaced?: Kept
}

const DAY = 86_400_000
const NANOSECONDS = 1_000_000
/** No letter may wait for so long; what is this old was forgotten. */
const FORGOTTEN = 32 * DAY * NANOSECONDS
const WINDOW = 120_000 * NANOSECONDS
const SWEPT_AT_ONCE = 1_000
/** Entries that are looked at with each sweep: what a node has put that is no more expires, too. */
const LOOKED_AT = 100

/** Keeps letters in JetStream, for all nodes. Needs `@nats-io/transport-node` and `@nats-io/jetstream`. */
export async function jetstreamMailbox ({ keepReceipts = DAY, maxBytes = -1, ...options }: JetStreamMailboxOptions = {}): Promise<Mailbox> {
  const link = new Link(options)
  const mailbox = new JetStreamMailbox(link, keepReceipts * NANOSECONDS, maxBytes)
  await mailbox.open()
  return mailbox
}

class JetStreamMailbox implements Mailbox {
  readonly shared = true
  readonly #link: Link
  /** A subject for each device; the place of a letter is its position. */
  readonly #letters: Records
  /** By device and letter: the entry of each letter that waits. */
  readonly #entries: Records
  /** By device and letter: the receipt of each that is done with, for a while. */
  readonly #receipts: Records
  readonly #reminders = new Reminders()
  /** How far the look at the entries has come. */
  #lookedAt = 0

  constructor (link: Link, keepReceipts: number, maxBytes: number) {
    this.#link = link
    this.#letters = Records.stream(link, 'letters', { max_age: FORGOTTEN, max_bytes: maxBytes, duplicate_window: WINDOW })
    this.#entries = Records.bucket(link, 'entries', { max_age: FORGOTTEN })
    this.#receipts = Records.bucket(link, 'receipts', { max_age: keepReceipts, duplicate_window: Math.min(keepReceipts, WINDOW) })
  }

  async open (): Promise<void> {
    const all = [this.#letters, this.#entries, this.#receipts]
    await this.#link.open(manager => Promise.all(all.map(records => records.prepare(manager))))
  }

  onTrouble (listener: (error: unknown) => void): void {
    this.#link.onTrouble(listener)
  }

  async put (deviceId: string, letter: Letter, caps: Caps): Promise<Put> {
    const key = keyOf(deviceId, letter.id)
    for (;;) {
      const [known, last] = await Promise.all([this.receipt(deviceId, letter.id), this.#letters.last(token(deviceId))])
      if (known) return { receipt: known, fresh: false }
      const { box, replaced } = await this.#roomFor(deviceId, letter, caps, last)
      const head = headOf(letter, box)
      const appended = await this.#letters.append(token(deviceId), encodeLetter(head, letter.body), { after: last?.seq ?? 0, id: `${deviceId} ${letter.id}` })
      if (!appended) continue // another letter was put, or settled
      if (!appended.fresh) {
        await this.#enter(key, appended.seq)
        continue
      }
      await this.#entries.append(key, JSON.stringify(entryOf(head, appended.seq)), { after: 0 })
      this.#reminders.add({ deviceId, letterId: letter.id, expiresAt: letter.expiresAt })
      return { receipt: receiptOf(head), fresh: true, ...await this.#replace(deviceId, replaced) }
    }
  }

  async * letters (deviceId: string, after = 0): AsyncGenerator<Kept> {
    // so many and no more: to find that there is no other costs more than to find one
    const waiting = await this.waiting(deviceId)
    let from = after + 1
    for (let left = waiting; left > 0; left--) {
      const stored = await this.#letters.next(token(deviceId), from)
      if (!stored) break
      yield decodeLetter(stored).kept
      from = stored.seq + 1
    }
    if (waiting > 0 && from === after + 1) yield * this.#hidden(deviceId, after)
  }

  /** Up to NATS 2.9, of three letters the one in the middle is not found once the others are erased; its entry is. */
  async * #hidden (deviceId: string, after: number): AsyncGenerator<Kept> {
    const subjects = Object.keys(await this.#entries.subjects(`${token(deviceId)}.*`))
    const entries = await Promise.all(subjects.map(subject => this.#entries.last(subject.split('.').slice(-2).join('.'))))
    const positions = entries.filter(entry => entry !== undefined).map(entry => parse<Entry>(entry).position)
    for (const position of positions.filter(position => position > after).toSorted((one, other) => one - other)) {
      const stored = await this.#letters.at(position)
      if (stored) yield decodeLetter(stored).kept
    }
  }

  async waiting (deviceId: string): Promise<number> {
    const [count = 0] = Object.values(await this.#letters.subjects(token(deviceId)))
    return count
  }

  async settle (deviceId: string, letterId: string, ending: Ending, device?: Detail): Promise<boolean> {
    const key = keyOf(deviceId, letterId)
    const found = await this.#entries.last(key)
    const entry = found ? parse<Entry>(found) : await this.#unentered(deviceId, letterId)
    if (!entry || !await this.#letters.erase("",entry.position)) return false
    const receipt: Receipt = { ...receiptOf(entry), status: ending, at: Date.now(), ...(device && { device }) }
    await this.#receipts.append(key, JSON.stringify(receipt))
    if (found) await this.#entries.erase("",found.seq)
    this.#reminders.remove({ deviceId, letterId, expiresAt: entry.expiresAt })
    return true
  }

  async receipt (deviceId: string, letterId: string): Promise<Receipt | undefined> {
    const key = keyOf(deviceId, letterId)
    // the receipt of a letter that is done with is written before its entry goes
    const [entry, receipt] = await Promise.all([this.#entries.last(key), this.#receipts.last(key)])
    if (receipt) return parse<Receipt>(receipt)
    return entry && receiptOf(parse<Entry>(entry))
  }

  async strike (deviceId: string, letterId: string): Promise<number> {
    const key = keyOf(deviceId, letterId)
    for (;;) {
      const found = await this.#entries.last(key)
      if (!found) return 0
      const entry = parse<Entry>(found)
      const struck = { ...entry, strikes: entry.strikes + 1 }
      if (await this.#entries.append(key, JSON.stringify(struck), { after: found.seq })) return struck.strikes
    }
  }

  /** Every node sweeps; who erases a letter is the one who tells of it. */
  async sweep (now: number): Promise<Expired[]> {
    await this.#look()
    const expired: Expired[] = []
    for (const reminder of this.#reminders.until(now).slice(0, SWEPT_AT_ONCE)) {
      const { deviceId, letterId } = reminder
      if (await this.settle(deviceId, letterId, 'expired')) expired.push({ deviceId, receipt: (await this.receipt(deviceId, letterId))! })
      else await this.#forget(deviceId, letterId)
      this.#reminders.remove(reminder)
    }
    return expired
  }

  async close (): Promise<void> {
    await this.#link.close()
  }

  /** Rejects when there is none. */
  async #roomFor (deviceId: string, letter: Letter, caps: Caps, last: Stored | undefined): Promise<Room> {
    const size = sizeOf(letter.body)
    const fits = ({ letters, bytes }: Caps) => letters < caps.letters && bytes + size <= caps.bytes
    const withIt = ({ letters, bytes }: Caps) => ({ letters: letters + 1, bytes: bytes + size })
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
    let replaced: Kept | undefined
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

  async #replace (deviceId: string, replaced: Kept | undefined): Promise<Pick<Put, 'replaced'>> {
    if (!replaced || !await this.settle(deviceId, replaced.id, 'replaced')) return {}
    return { replaced: (await this.receipt(deviceId, replaced.id))! }
  }

  /** For somebody else who has put the letter, and may not have come as far as its entry. */
  async #enter (key: string, position: number): Promise<void> {
    const stored = await this.#letters.at(position)
    if (stored) await this.#entries.append(key, JSON.stringify(entryOf(decodeLetter(stored).head, position)), { after: 0 })
  }

  /** A letter that was put so far that it is handed out, and has no entry yet. */
  async #unentered (deviceId: string, letterId: string): Promise<Entry | undefined> {
    for await (const { id, position } of this.letters(deviceId)) {
      const stored = id === letterId && await this.#letters.at(position)
      if (stored) return entryOf(decodeLetter(stored).head, position)
    }
    return undefined
  }

  /** The entry of a letter that is done with: who settled it did not come as far. */
  async #forget (deviceId: string, letterId: string): Promise<void> {
    const found = await this.#entries.last(keyOf(deviceId, letterId))
    if (found) await this.#entries.erase("",found.seq)
  }

  /** Goes through the entries, some at a time, and remembers when they expire. */
  async #look (): Promise<void> {
    for (let looked = 0; looked < LOOKED_AT; looked++) {
      const stored = await this.#entries.next('>', this.#lookedAt + 1)
      this.#lookedAt = stored?.seq ?? 0
      if (!stored) return
      const [deviceId, letterId] = stored.subject.split('.').slice(-2).map(textOf) as [string, string]
      this.#reminders.add({ deviceId, letterId, expiresAt: parse<Entry>(stored).expiresAt })
    }
  }
}

function keyOf (deviceId: string, letterId: string): string {
  return `${token(deviceId)}.${token(letterId)}`
}

function headOf ({ body, ...letter }: Letter, box: Caps): Head {
  return { ...letter, at: Date.now(), size: sizeOf(body), isText: typeof body === 'string', box }
}

function entryOf ({ isText, box, ...letter }: Head, position: number): Entry {
  return { ...letter, status: 'queued', position, strikes: 0 }
}

function receiptOf ({ id, at, expiresAt, size, collapse, digest, awaitedBy }: Omit<Receipt, 'status'>): Receipt {
  return {
    id, status: 'queued', at, expiresAt, size,
    ...(collapse !== undefined && { collapse }), ...(digest !== undefined && { digest }), ...(awaitedBy !== undefined && { awaitedBy })
  }
}

/** One line of JSON, then the body as it is. */
function encodeLetter (head: Head, body: string | Uint8Array): Uint8Array {
  return Buffer.concat([Buffer.from(`${JSON.stringify(head)}\n`), Buffer.from(body as string)])
}

function decodeLetter ({ seq, data }: Stored): { head: Head, kept: Kept } {
  const bytes = Buffer.from(data)
  const end = bytes.indexOf('\n')
  const head: Head = JSON.parse(bytes.toString('utf8', 0, end))
  const { isText, box, at, size, ...letter } = head
  const body = bytes.subarray(end + 1)
  return { head, kept: { ...letter, body: isText ? body.toString() : body, position: seq } }
}

function parse<T> ({ data }: Stored): T {
  return JSON.parse(Buffer.from(data).toString())
}
