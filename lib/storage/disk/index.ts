import type { Detail } from '../../protocol/errors.ts'
import { checkOptionNames } from '../option-names.ts'
import type { MailboxLimits, Ending, ExpiredLetter, StoredLetter, Letter, Mailbox, PutResult, Receipt } from '../mailbox.ts'
import { DeviceCounts } from './boxes.ts'
import { checkEntries, listAgain } from './check.ts'
import type { Damage } from './damage.ts'
import { dueLists, isListedElsewhere, type DueLists } from './due.ts'
import { Entries, type Change } from './entries.ts'
import { Journal, nothing } from './journal.ts'
import { LetterCache } from './letter-cache.ts'
import {
  decodePlace, dueItem, dueList, endedOf, entryKey, entryOf, formatKey, lostOf, placesBehind,
  positionKey, receiptOf, suspectKey, type Entry, type Place, type Waiting
} from './schema.ts'

export interface DiskMailboxOptions {
  /**
   * The folder that holds the letters; created if it does not exist. One process at a time may open it.
   * @default none: this option is required
   */
  path: string
  /**
   * Milliseconds for which the receipt of a letter is kept after the letter has ended.
   * @default 86_400_000
   */
  keepReceipts?: number
}

const FORMAT = 'fastify-devices letters 2'
const DAY_MS = 86_400_000
const TIDY_EVERY = 60_000
/** Letters of one device that are worth to be at hand. */
const FEW = 64
const AT_HAND = { letters: 1_000, bytes: 4_194_304 }

/** Keeps letters in a folder: what is promised is on disk, and survives a kill at any moment. Needs `classic-level`. */
export async function diskMailbox (options: DiskMailboxOptions): Promise<Mailbox> {
  checkOptionNames('diskMailbox()', options, { path: true, keepReceipts: true })
  const { path, keepReceipts = DAY_MS } = options
  if (typeof path !== 'string') throw new TypeError('diskMailbox() needs the option "path", a folder')
  const mailbox = new DiskMailbox()
  await mailbox.open(path, keepReceipts)
  return mailbox
}

class DiskMailbox implements Mailbox {
  readonly shared = false
  readonly #boxes = new DeviceCounts()
  readonly #recent = new LetterCache(AT_HAND)
  /** Of letters that are on their way to the disk, and were not taken out meanwhile. */
  readonly #putting = new Set<Entry>()
  /** What nobody was there to hear of yet, by its key. */
  readonly #damages = new Map<string, Damage>()
  /** Places that had no letter. */
  readonly #mended = new Set<string>()
  #report = (damage: Damage): void => { this.#damages.set(damage.key, damage) }
  #tell: (error: unknown) => void = nothing
  #journal!: Journal
  #entries!: Entries
  #isOpen = false
  /** A list was lost, so it is not known when something is due. */
  #isListLost = false
  #tidiedAt = 0

  async open (path: string, keepReceipts: number): Promise<void> {
    this.#journal = await Journal.open(path, { damaged: damage => this.#found(damage), troubled: error => this.#tell(error) })
    this.#entries = new Entries(this.#journal, keepReceipts)
    try {
      await this.#journal.mending(() => this.#load(path))
      await this.#journal.seal()
      this.#isOpen = true
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

  onTrouble (listener: (error: unknown) => void): void {
    this.#tell = listener
  }

  async put (deviceId: string, letter: Letter, caps: MailboxLimits): Promise<PutResult> {
    const first = letter.digest === undefined ? undefined : this.#entry(deviceId, letter.id)
    if (first) return await this.#again(deviceId, first)
    const replaced = this.#collapsible(deviceId, letter)
    const entry = entryOf(letter, ++this.#entries.position)
    this.#boxes.check(deviceId, entry.size, caps, replaced)
    if (replaced) this.#remove(deviceId, replaced)
    this.#boxes.add(deviceId, entry)
    this.#putting.add(entry)
    try {
      await this.#entries.write(replaced ? [{ deviceId, entry }, { deviceId, entry: endedOf(replaced, 'replaced'), before: replaced }] : [{ deviceId, entry }])
    } catch (error) {
      if (this.#putting.has(entry)) this.#remove(deviceId, entry)
      if (replaced) this.#putBack(deviceId, replaced)
      throw error
    }
    if (this.#putting.delete(entry)) this.#remember(deviceId, entry)
    const put = { receipt: receiptOf(entry), fresh: true }
    return replaced ? { ...put, replaced: receiptOf(replaced) } : put
  }

  async * letters (deviceId: string, after = 0): AsyncGenerator<StoredLetter> {
    if (!this.#boxes.has(deviceId)) return // most devices that come have none
    const atHand = this.#recent.behind(deviceId, after)
    for (const { id } of atHand ?? []) {
      const letter = this.#waiting(deviceId, id)
      if (letter) yield letter
    }
    if (atHand) return
    for await (const [key, value] of this.#journal.range(...placesBehind(deviceId, after))) {
      const place = decodePlace(key, value)
      const letter = this.#waiting(deviceId, place.id)
      if (letter?.position === place.position) yield letter
      else await this.#mend(key, place)
    }
  }

  async waiting (deviceId: string): Promise<number> {
    return this.#boxes.waiting(deviceId)
  }

  async settle (deviceId: string, letterId: string, ending: Ending, device?: Detail): Promise<boolean> {
    const entry = this.#waiting(deviceId, letterId)
    if (!entry) return false
    this.#remove(deviceId, entry)
    try {
      await this.#entries.write([{ deviceId, entry: endedOf(entry, ending, device), before: entry }])
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

  async addAttempt (deviceId: string, letterId: string): Promise<number> {
    await this.#entries.written(deviceId, letterId)
    const entry = this.#waiting(deviceId, letterId)
    if (!entry) return 0
    this.#recent.forget(deviceId) // what is at hand would not hear of it
    const struck = { ...entry, strikes: entry.strikes + 1 }
    await this.#entries.write([{ deviceId, entry: struck, before: entry }])
    return struck.strikes
  }

  /** Looks only at what is due: a letter that waits costs nothing. */
  async sweep (now: number): Promise<ExpiredLetter[]> {
    if (this.#isListLost) await this.#listAgain()
    let isIdle = true
    for await (const lists of dueLists(this.#journal, now)) {
      isIdle = false
      const expired = await this.#endAll(lists, now)
      if (expired.length > 0) return expired
    }
    const isTime = now - this.#tidiedAt > TIDY_EVERY
    if (isIdle || isTime) this.#journal.shrink()
    if (isTime) {
      this.#tidiedAt = now
      await this.#journal.seal()
    }
    return []
  }

  async close (): Promise<void> {
    await this.#journal.close()
  }

  async #endAll (lists: DueLists[], now: number): Promise<ExpiredLetter[]> {
    const ended = await Promise.allSettled(lists.map(group => this.#end(group, now)))
    const expired = ended.flatMap(group => group.status === 'fulfilled' ? group.value : [])
    const failed = ended.find(group => group.status === 'rejected')
    if (failed && expired.length === 0) throw failed.reason // else the next sweep meets it again, and these would not be told of
    return expired
  }

  /** Ends what is due of that which the lists name; they go in the same batch. */
  async #end ({ keys, items }: DueLists, now: number): Promise<ExpiredLetter[]> {
    await this.#journal.warm(items.map(({ deviceId, letterId }) => entryKey(deviceId, letterId)))
    const ends = new Map<string, Change & { before: Entry }>()
    const forgotten: string[] = []
    const later: Array<[list: string, item: string]> = []
    for (const { list, deviceId, letterId } of items) {
      const key = entryKey(deviceId, letterId)
      const entry = this.#entry(deviceId, letterId)
      if (!entry) continue
      const at = this.#entries.dueAt(entry)
      if (at > now) {
        if (!isListedElsewhere(entry, list, at)) later.push([dueList(at), dueItem(deviceId, letterId)])
      } else if (entry.status !== 'queued') {
        forgotten.push(key)
      } else {
        ends.set(key, { deviceId, entry: endedOf(entry, 'expired'), before: entry }) // a letter may be listed twice
      }
    }
    const changes = [...ends.values()]
    for (const { deviceId, before } of changes) this.#remove(deviceId, before)
    try {
      await this.#entries.write(changes, batch => {
        for (const key of [...forgotten, ...keys]) batch.del(key)
        for (const [list, item] of later) batch.list(list, item)
      }, items.length)
    } catch (error) {
      for (const { deviceId, before } of changes) this.#putBack(deviceId, before)
      throw error
    }
    return changes.map(({ deviceId, entry }) => ({ deviceId, receipt: receiptOf(entry) }))
  }

  async #listAgain (): Promise<void> {
    await listAgain({ journal: this.#journal, dueAt: entry => this.#entries.dueAt(entry) })
    this.#isListLost = false
  }

  /** As it is now, or is about to be, if it waits. */
  #waiting (deviceId: string, letterId: string): Waiting | undefined {
    const entry = this.#entry(deviceId, letterId)
    return entry?.status === 'queued' ? entry as Waiting : undefined
  }

  /** As it is now, or is about to be. */
  #entry (deviceId: string, letterId: string): Entry | undefined {
    return this.#recent.get(deviceId, letterId) ?? this.#entries.read(deviceId, letterId)
  }

  /** A second try is promised nothing before the first is on disk. */
  async #again (deviceId: string, first: Entry): Promise<PutResult> {
    await this.#entries.written(deviceId, first.id)
    return { receipt: receiptOf(first), fresh: false }
  }

  #collapsible (deviceId: string, { collapse }: Letter): Waiting | undefined {
    const id = collapse === undefined ? undefined : this.#boxes.collapsible(deviceId, collapse)
    return id === undefined ? undefined : this.#waiting(deviceId, id)
  }

  /** A device that lets many wait is away, or slow: it can do with the disk. */
  #remember (deviceId: string, letter: Waiting): void {
    const letters = this.#boxes.waiting(deviceId)
    if (letters > FEW) this.#recent.forget(deviceId)
    else this.#recent.add(deviceId, letter, letters === 1)
  }

  /** It could not be settled, and waits on, if it is there at all. */
  #putBack (deviceId: string, entry: Entry): void {
    if (!this.#entries.isKept(entry)) return
    this.#boxes.add(deviceId, entry)
    this.#recent.forget(deviceId)
  }

  #remove (deviceId: string, entry: Entry): void {
    this.#putting.delete(entry)
    this.#recent.remove(deviceId, entry.id)
    this.#boxes.remove(deviceId, entry)
  }

  async #checkFormat (path: string): Promise<void> {
    const found = this.#journal.read(formatKey)
    if (!found) return await this.#journal.write(batch => batch.put(formatKey, FORMAT))
    if (Buffer.from(found).toString() !== FORMAT) throw new Error(`The letters in "${path}" are of another format; this version reads "${FORMAT}"`)
  }

  /** Counts what waits by its places alone. Where something was found damaged, every entry is looked at first. */
  async #load (path: string): Promise<void> {
    this.#journal.checkBatches()
    await this.#checkFormat(path)
    await this.#count()
    if (this.#damages.size === 0 && !this.#journal.read(suspectKey)) return
    const parts = { journal: this.#journal, dueAt: (entry: Entry) => this.#entries.dueAt(entry), damaged: this.#report }
    const position = await checkEntries(parts)
    await this.#listAgain()
    await this.#count()
    this.#entries.position = Math.max(this.#entries.position, position)
    await this.#journal.write(batch => {
      batch.put(positionKey, String(this.#entries.position))
      batch.del(suspectKey)
    })
  }

  async #count (): Promise<void> {
    this.#boxes.clear()
    const found = this.#journal.read(positionKey)
    let position = found ? Number(Buffer.from(found).toString()) : 0
    let last: string | undefined
    for await (const page of this.#journal.pages('l!', 'l"')) {
      for (const [key, value] of page) {
        const place = decodePlace(key, value)
        position = Math.max(position, place.position)
        this.#boxes.add(place.deviceId, place)
        last = key
      }
    }
    // a damaged key that is out of order ends the places before their end
    if (this.#damages.size === 0 && last !== await this.#journal.lastKey('l!', 'l"')) this.#report({ key: 'l!', reason: 'the records are not in order' })
    this.#entries.position = position
  }

  /** Of a place that has no letter: it went since the places were read, or damage has torn the two apart. */
  async #mend (key: string, place: Place): Promise<void> {
    const { deviceId, id, position } = place
    if (this.#mended.has(key) || this.#entries.written(deviceId, id) || !this.#journal.read(key)) return
    this.#mended.add(key)
    this.#found({ key, reason: 'the letter of this place is missing' })
    this.#boxes.remove(deviceId, place)
    if (this.#entry(deviceId, id)) await this.#journal.write(batch => batch.del(key))
    else await this.#entries.write([{ deviceId, entry: lostOf(id, position) }])
  }

  /** What was found damaged while it is open is mended when it is opened the next time. */
  #found (damage: Damage): void {
    this.#report(damage)
    if (damage.key.startsWith('d!')) this.#isListLost = true
    if (this.#isOpen) this.#journal.write(batch => batch.put(suspectKey, '')).catch(nothing)
  }
}
