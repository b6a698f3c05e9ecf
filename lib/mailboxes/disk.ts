import { Failure, type Detail } from '../errors.ts'
import type { Caps, Ending, Expired, Kept, Letter, Mailbox, Put, Receipt } from '../mailbox.ts'
import type { Batch } from './batch.ts'
import type { Damage } from './damage.ts'
import { Journal, nothing } from './journal.ts'
import { Recent } from './recent.ts'
import { decodeDue, decodeEntry, decodePlace, dueItem, dueList, dueUntil, encodeEntry, entryKey, endedOf, entryOf, formatKey, lostOf, placeKey, placesBehind, receiptOf, type Entry, type Waiting } from './records.ts'

export interface DiskMailboxOptions {
  /** The folder; made if it is not there. One process at a time. */
  path: string
  /** Milliseconds for which the receipt of a letter that is done with is kept. */
  keepReceipts?: number
}

/** What waits for one device, as far as the caps ask. */
interface Box {
  letters: number
  bytes: number
  /** Letter ids by their collapse keys. */
  collapsible: Map<string, string> | undefined
}

const FORMAT = 'fastify-devices letters 1'
const DAY = 86_400_000
const SWEPT_AT_ONCE = 1_000
const LISTED_AT_ONCE = 1_000
const SEAL_EVERY = 60_000
const MENDS = 2
/** Letters of one device that are worth to be at hand. */
const FEW = 64
const AT_HAND = { letters: 1_000, bytes: 4_194_304 }

/** Keeps letters in a folder: what is promised is on disk, and survives a kill at any moment. Needs `classic-level`. */
export async function diskMailbox ({ path, keepReceipts = DAY }: DiskMailboxOptions): Promise<Mailbox> {
  if (typeof path !== 'string') throw new TypeError('diskMailbox() needs the option "path", a folder')
  const mailbox = new DiskMailbox(keepReceipts)
  await mailbox.open(path)
  return mailbox
}

class DiskMailbox implements Mailbox {
  readonly shared = false
  readonly #keepReceipts: number
  readonly #boxes = new Map<string, Box>()
  readonly #recent = new Recent(AT_HAND)
  /** Of letters that are on their way to the disk, and were not taken out meanwhile. */
  readonly #putting = new Set<Entry>()
  /** Of letters that could not be kept. */
  readonly #unkept = new WeakSet<Entry>()
  /** Entries on their way to the disk, and when they are there. */
  readonly #underway = new Map<string, { entry: Entry, written: Promise<void> }>()
  /** What nobody was there to hear of yet, by its key. */
  readonly #damages = new Map<string, Damage>()
  #report = (damage: Damage): void => { this.#damages.set(damage.key, damage) }
  #journal!: Journal
  #position = 0
  #sealedAt = 0

  constructor (keepReceipts: number) {
    this.#keepReceipts = keepReceipts
  }

  async open (path: string): Promise<void> {
    this.#journal = await Journal.open(path, damage => this.#report(damage))
    try {
      await this.#checkFormat(path)
      await this.#load()
      await this.#journal.seal()
    } catch (error) {
      await this.#journal.close()
      throw error
    }
  }

  onDamage (listener: (damage: Damage) => void): void {
    this.#report = listener
    for (const damage of this.#damages.values()) listener(damage)
    this.#damages.clear()
  }

  async put (deviceId: string, letter: Letter, caps: Caps): Promise<Put> {
    const first = letter.digest === undefined ? undefined : this.#entry(deviceId, letter.id)
    if (first) return await this.#again(deviceId, first)
    const replaced = this.#collapsible(deviceId, letter)
    const entry = entryOf(letter, ++this.#position)
    this.#checkCaps(deviceId, entry.size, caps, replaced)
    if (replaced) this.#remove(deviceId, replaced)
    this.#add(deviceId, entry)
    this.#putting.add(entry)
    try {
      await this.#save(deviceId, replaced ? [entry, endedOf(replaced, 'replaced')] : [entry], replaced)
    } catch (error) {
      this.#unkept.add(entry)
      if (this.#putting.has(entry)) this.#remove(deviceId, entry)
      if (replaced) this.#putBack(deviceId, replaced)
      throw error
    }
    if (this.#putting.delete(entry)) this.#remember(deviceId, entry)
    const put = { receipt: receiptOf(entry), fresh: true }
    return replaced ? { ...put, replaced: receiptOf(replaced) } : put
  }

  async * letters (deviceId: string, after = 0): AsyncGenerator<Kept> {
    if (!this.#boxes.has(deviceId)) return // most devices that come have none
    const atHand = this.#recent.behind(deviceId, after)
    for (const { id } of atHand ?? []) {
      const letter = this.#waiting(deviceId, id)
      if (letter) yield letter
    }
    if (atHand) return
    for await (const [key, value] of this.#journal.range(...placesBehind(deviceId, after))) {
      const { letterId, position } = decodePlace(key, value)
      const letter = this.#waiting(deviceId, letterId)
      if (letter?.position === position) yield letter // the range is as things were when it began
    }
  }

  async waiting (deviceId: string): Promise<number> {
    return this.#boxes.get(deviceId)?.letters ?? 0
  }

  async settle (deviceId: string, letterId: string, ending: Ending, device?: Detail): Promise<boolean> {
    const entry = this.#waiting(deviceId, letterId)
    if (!entry) return false
    this.#remove(deviceId, entry)
    try {
      await this.#save(deviceId, [endedOf(entry, ending, device)], entry)
    } catch (error) {
      this.#putBack(deviceId, entry)
      throw error
    }
    return true
  }

  async receipt (deviceId: string, letterId: string): Promise<Receipt | undefined> {
    const entry = this.#entry(deviceId, letterId)
    return entry && receiptOf(entry)
  }

  async strike (deviceId: string, letterId: string): Promise<number> {
    await this.#underway.get(entryKey(deviceId, letterId))?.written
    const entry = this.#waiting(deviceId, letterId)
    if (!entry) return 0
    this.#recent.forget(deviceId) // what is at hand would not hear of it
    const struck = { ...entry, strikes: entry.strikes + 1 }
    await this.#save(deviceId, [struck], entry)
    return struck.strikes
  }

  /** Looks only at what is due: a letter that waits costs nothing. */
  async sweep (now: number): Promise<Expired[]> {
    const expired: Expired[] = []
    try {
      await this.#sweepInto(expired, now)
    } catch (error) {
      if (expired.length === 0) throw error // the next sweep meets it again, and these would not be told of
    }
    if (now - this.#sealedAt > SEAL_EVERY) {
      this.#sealedAt = now
      await this.#journal.seal()
    }
    return expired
  }

  async close (): Promise<void> {
    await this.#journal.close()
  }

  async #sweepInto (expired: Expired[], now: number): Promise<void> {
    let looks = 0
    for await (const [key, value] of this.#journal.range(...dueUntil(now))) {
      const due = decodeDue(value)
      const found = await Promise.allSettled(due.map(async ([deviceId, letterId]) => await this.#look(key, deviceId, letterId, now)))
      for (const look of found) if (look.status === 'fulfilled' && look.value) expired.push(look.value)
      const failed = found.find(look => look.status === 'rejected')
      if (failed) throw failed.reason
      await this.#journal.write(batch => batch.del(key))
      looks += due.length
      if (looks >= SWEPT_AT_ONCE) break
    }
  }

  /** At what a list holds: it is done with there, unless it is due later. */
  async #look (list: string, deviceId: string, letterId: string, now: number): Promise<Expired | undefined> {
    const entry = this.#entry(deviceId, letterId)
    if (!entry) return
    const at = this.#dueAt(entry)
    const isWaiting = entry.status === 'queued'
    if (at > now) {
      // the list of its expiry still has a letter that is done with, and its receipt is in another, unless both are due in the same second
      const isElsewhere = !isWaiting && list.startsWith(dueList(entry.expiresAt)) && !list.startsWith(dueList(at))
      if (!isElsewhere) await this.#journal.write(batch => batch.list(dueList(at), dueItem(deviceId, letterId)))
    } else if (!isWaiting) {
      await this.#journal.write(batch => batch.del(entryKey(deviceId, letterId)))
    } else if (await this.settle(deviceId, letterId, 'expired')) {
      return { deviceId, receipt: receiptOf({ ...entry, status: 'expired', at: now }) }
    }
  }

  #dueAt ({ status, expiresAt, at }: Entry): number {
    return status === 'queued' ? expiresAt : at + this.#keepReceipts
  }

  /** As it is now, or is about to be, if it waits. */
  #waiting (deviceId: string, letterId: string): Waiting | undefined {
    const entry = this.#entry(deviceId, letterId)
    return entry?.status === 'queued' ? entry as Waiting : undefined
  }

  /** As it is now, or is about to be. */
  #entry (deviceId: string, letterId: string): Entry | undefined {
    const letter = this.#recent.get(deviceId, letterId)
    if (letter) return letter
    const key = entryKey(deviceId, letterId)
    const newest = this.#underway.get(key)?.entry
    if (newest) return newest
    const value = this.#journal.read(key)
    return value && decodeEntry(key, value).entry
  }

  /** A second try is promised nothing before the first is on disk. */
  async #again (deviceId: string, first: Entry): Promise<Put> {
    await this.#underway.get(entryKey(deviceId, first.id))?.written
    return { receipt: receiptOf(first), fresh: false }
  }

  /** `before` is what one of them is in the place of. */
  #save (deviceId: string, entries: Entry[], before?: Entry): Promise<void> {
    const saved = entries.map(entry => ({ key: entryKey(deviceId, entry.id), entry }))
    const written = this.#journal.write(batch => {
      for (const { key, entry } of saved) this.#write(batch, key, deviceId, entry)
    }, batch => {
      for (const { key, entry } of saved) {
        batch.del(key)
        batch.del(placeKey(deviceId, entry.position))
      }
      if (before && !this.#unkept.has(before)) this.#write(batch, entryKey(deviceId, before.id), deviceId, before)
    })
    for (const { key, entry } of saved) this.#underway.set(key, { entry, written })
    const done = () => {
      for (const { key, entry } of saved) if (this.#underway.get(key)?.entry === entry) this.#underway.delete(key)
    }
    written.then(done, done)
    return written
  }

  #write (batch: Batch, key: string, deviceId: string, entry: Entry): void {
    const place = placeKey(deviceId, entry.position)
    batch.put(key, encodeEntry(entry))
    // the letter goes, its receipt stays for a while
    if (entry.status === 'queued') batch.put(place, entry.id)
    else batch.del(place)
    batch.list(dueList(this.#dueAt(entry)), dueItem(deviceId, entry.id))
  }

  #collapsible (deviceId: string, { collapse }: Letter): Entry | undefined {
    const id = collapse === undefined ? undefined : this.#boxes.get(deviceId)?.collapsible?.get(collapse)
    return id === undefined ? undefined : this.#entry(deviceId, id)
  }

  #checkCaps (deviceId: string, size: number, caps: Caps, replaced: Entry | undefined): void {
    const { letters, bytes } = this.#boxes.get(deviceId) ?? { letters: 0, bytes: 0 }
    const freed = replaced ? { letters: 1, bytes: replaced.size } : { letters: 0, bytes: 0 }
    if (letters - freed.letters >= caps.letters || bytes - freed.bytes + size > caps.bytes) throw new Failure('mailbox-full')
  }

  #add (deviceId: string, { id, size, collapse }: Entry): void {
    let box = this.#boxes.get(deviceId)
    if (!box) this.#boxes.set(deviceId, box = { letters: 0, bytes: 0, collapsible: undefined })
    box.letters++
    box.bytes += size
    if (collapse !== undefined) (box.collapsible ??= new Map()).set(collapse, id)
  }

  /** A device that lets many wait is away, or slow: it can do with the disk. */
  #remember (deviceId: string, letter: Waiting): void {
    const { letters } = this.#boxes.get(deviceId)!
    if (letters > FEW) this.#recent.forget(deviceId)
    else this.#recent.add(deviceId, letter, letters === 1)
  }

  /** It could not be settled, and waits on, if it is there at all. */
  #putBack (deviceId: string, entry: Entry): void {
    if (this.#unkept.has(entry)) return
    this.#add(deviceId, entry)
    this.#recent.forget(deviceId)
  }

  #remove (deviceId: string, entry: Entry): void {
    const { id, size, collapse } = entry
    const box = this.#boxes.get(deviceId)!
    this.#putting.delete(entry)
    this.#recent.remove(deviceId, id)
    box.letters--
    box.bytes -= size
    if (collapse !== undefined && box.collapsible?.get(collapse) === id) box.collapsible.delete(collapse)
    if (box.letters === 0) this.#boxes.delete(deviceId)
  }

  async #checkFormat (path: string): Promise<void> {
    const found = this.#journal.read(formatKey)
    if (!found) return await this.#journal.write(batch => batch.put(formatKey, FORMAT))
    if (Buffer.from(found).toString() !== FORMAT) throw new Error(`The letters in "${path}" are of a newer format; this version reads "${FORMAT}"`)
  }

  /** What the database finds damaged while it is read is mended by the next write; then it is read again. */
  async #load (mends = MENDS): Promise<void> {
    try {
      await this.#loadOnce()
    } catch (error) {
      if (mends === 0) throw error
      await this.#journal.write(nothing)
      await this.#load(mends - 1)
    }
  }

  /**
   * Counts what waits, and mends what damage has torn apart. An entry and its place were written together: where one of them is missing, it was
   * lost, whether or not anything else tells.
   */
  async #loadOnce (): Promise<void> {
    this.#boxes.clear()
    const placed = new Set<number>()
    for await (const [key, value] of this.#journal.range('l!', 'l"')) {
      const { deviceId, position, letterId } = decodePlace(key, value)
      const entry = this.#entry(deviceId, letterId)
      if (!entry) await this.#mend(entryKey(deviceId, letterId), () => this.#save(deviceId, [lostOf(letterId, position)]))
      else if (entry.status === 'queued' && entry.position === position) placed.add(position)
      else await this.#mend(key, () => this.#journal.write(batch => batch.del(key)))
    }
    for await (const [key, value] of this.#journal.range('r!', 'r"')) {
      const { deviceId, entry } = decodeEntry(key, value)
      this.#position = Math.max(this.#position, entry.position)
      if (!this.#journal.read(key)) await this.#mend(key, () => this.#journal.write(batch => batch.put(key, value)))
      if (entry.status !== 'queued') continue
      this.#add(deviceId, entry)
      if (!placed.has(entry.position)) await this.#mend(placeKey(deviceId, entry.position), () => this.#save(deviceId, [entry]))
    }
    const lists = new Set(await this.#journal.keys('d!', 'd"'))
    for await (const [key] of this.#journal.range('d!', 'd"')) lists.add(key) // which looks at each
    if (this.#damages.size > 0) await this.#listAgain(lists)
  }

  /** Where something was lost, it may have been told when something is due. */
  async #listAgain (lists: Iterable<string>): Promise<void> {
    let items: Array<[list: string, item: string]> = []
    const write = () => this.#journal.write(batch => { for (const [list, item] of items) batch.list(list, item) })
    for await (const [key, value] of this.#journal.range('r!', 'r"')) {
      const { deviceId, entry } = decodeEntry(key, value)
      if (items.push([dueList(this.#dueAt(entry)), dueItem(deviceId, entry.id)]) < LISTED_AT_ONCE) continue
      await write()
      items = []
    }
    await write()
    await this.#journal.write(batch => { for (const list of lists) batch.del(list) })
  }

  async #mend (key: string, mend: () => Promise<unknown>): Promise<void> {
    this.#report({ key, reason: 'the record is missing, or should be' })
    await mend()
  }
}
