import type { Detail } from '../../protocol/errors.ts'
import type { Health } from '../../protocol/health.ts'
import { checkOptionNames } from '../../protocol/option-names.ts'
import type { MailboxLimits, Ending, ExpiredLetter, StoredLetter, Letter, Mailbox, PutResult, Receipt } from '../mailbox.ts'
import { DeviceCounts } from './device-counts.ts'
import { checkEntries, relist } from './consistency-check.ts'
import type { Damage } from './damage.ts'
import { dueLists, isListedElsewhere, type DueLists } from './due-lists.ts'
import { Entries, type Change } from './entries.ts'
import { Journal, noChange } from './journal.ts'
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
const TIDY_INTERVAL_MS = 60_000
/** A device with more waiting letters is away or slow, so its letters are not cached. */
const MAX_CACHED_PER_DEVICE = 64
const CACHE_LIMITS = { letters: 1_000, bytes: 4_194_304 }

/** Keeps letters in a folder: an acknowledged letter is on disk and survives a kill at any moment. Needs `classic-level`. */
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
  readonly #counts = new DeviceCounts()
  readonly size = async (): Promise<number> => this.#counts.size
  readonly #cache = new LetterCache(CACHE_LIMITS)
  /** Letters that are being written and have not ended meanwhile. */
  readonly #uncommitted = new Set<Entry>()
  /** Damage found before `onDamage` had a listener, by key. */
  readonly #unreportedDamages = new Map<string, Damage>()
  /** Keys of places whose letter was missing. */
  readonly #mendedPlaces = new Set<string>()
  #report = (damage: Damage): void => { this.#unreportedDamages.set(damage.key, damage) }
  #reportTrouble: (error: unknown) => void = noChange
  #journal!: Journal
  #entries!: Entries
  #isOpen = false
  /** A damaged list of due letters: all entries must be listed again. */
  #isListLost = false
  #tidiedAt = 0

  async open (path: string, keepReceipts: number): Promise<void> {
    this.#journal = await Journal.open(path, { damaged: damage => this.#noteDamage(damage), troubled: error => this.#reportTrouble(error) })
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
    for (const damage of this.#unreportedDamages.values()) listener(damage)
    this.#unreportedDamages.clear()
  }

  onTrouble (listener: (error: unknown) => void): void {
    this.#reportTrouble = listener
  }

  async put (deviceId: string, letter: Letter, limits: MailboxLimits): Promise<PutResult> {
    const first = letter.digest === undefined ? undefined : this.#entry(deviceId, letter.id)
    if (first) return await this.#knownLetter(deviceId, first)
    const replaced = this.#collapsible(deviceId, letter)
    const entry = entryOf(letter, ++this.#entries.position)
    this.#counts.check(deviceId, entry.size, limits, replaced)
    if (replaced) this.#remove(deviceId, replaced)
    this.#counts.add(deviceId, entry)
    this.#uncommitted.add(entry)
    try {
      await this.#entries.write(replaced ? [{ deviceId, entry }, { deviceId, entry: endedOf(replaced, 'replaced'), before: replaced }] : [{ deviceId, entry }])
    } catch (error) {
      if (this.#uncommitted.has(entry)) this.#remove(deviceId, entry)
      if (replaced) this.#restore(deviceId, replaced)
      throw error
    }
    if (this.#uncommitted.delete(entry)) this.#cacheLetter(deviceId, entry)
    const put = { receipt: receiptOf(entry), fresh: true }
    return replaced ? { ...put, replaced: receiptOf(replaced) } : put
  }

  async * letters (deviceId: string, after = 0): AsyncGenerator<StoredLetter> {
    if (!this.#counts.has(deviceId)) return // most devices have none
    const cached = this.#cache.behind(deviceId, after)
    for (const { id } of cached ?? []) {
      const letter = this.#waiting(deviceId, id)
      if (letter) yield letter
    }
    if (cached) return
    for await (const [key, value] of this.#journal.range(...placesBehind(deviceId, after))) {
      const place = decodePlace(key, value)
      const letter = this.#waiting(deviceId, place.id)
      if (letter?.position === place.position) yield letter
      else await this.#mendPlace(key, place)
    }
  }

  async waiting (deviceId: string): Promise<number> {
    return this.#counts.waiting(deviceId)
  }

  async settle (deviceId: string, letterId: string, ending: Ending, device?: Detail): Promise<boolean> {
    const entry = this.#waiting(deviceId, letterId)
    if (!entry) return false
    this.#remove(deviceId, entry)
    try {
      await this.#entries.write([{ deviceId, entry: endedOf(entry, ending, device), before: entry }])
    } catch (error) {
      this.#restore(deviceId, entry)
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
    this.#cache.forget(deviceId) // a cached letter would not be updated
    const attempted = { ...entry, attempts: entry.attempts + 1 }
    await this.#entries.write([{ deviceId, entry: attempted, before: entry }])
    return attempted.attempts
  }

  /** Reads only the lists that are due: a letter that waits costs nothing. */
  async sweep (now: number): Promise<ExpiredLetter[]> {
    if (this.#isListLost) await this.#relist()
    let isIdle = true
    for await (const lists of dueLists(this.#journal, now)) {
      isIdle = false
      const expired = await this.#endAll(lists, now)
      if (expired.length > 0) return expired
    }
    const isTime = now - this.#tidiedAt > TIDY_INTERVAL_MS
    if (isIdle || isTime) this.#journal.shrink()
    if (isTime) {
      this.#tidiedAt = now
      await this.#journal.seal()
    }
    return []
  }

  async health (): Promise<Health> {
    return this.#journal.health()
  }

  async close (): Promise<void> {
    await this.#journal.close()
  }

  async #endAll (lists: DueLists[], now: number): Promise<ExpiredLetter[]> {
    const ended = await Promise.allSettled(lists.map(group => this.#end(group, now)))
    const expired = ended.flatMap(group => group.status === 'fulfilled' ? group.value : [])
    const failed = ended.find(group => group.status === 'rejected')
    if (failed && expired.length === 0) throw failed.reason // with some expired, return them: the next sweep meets the error again
    return expired
  }

  /** Ends what is due among the listed items, and deletes their lists in the same batch. */
  async #end ({ keys, items }: DueLists, now: number): Promise<ExpiredLetter[]> {
    await this.#journal.warm(items.map(({ deviceId, letterId }) => entryKey(deviceId, letterId)))
    const ends = new Map<string, Change & { before: Entry }>()
    const forgotten: string[] = []
    const relisted: Array<[list: string, item: string]> = []
    for (const { list, deviceId, letterId } of items) {
      const key = entryKey(deviceId, letterId)
      const entry = this.#entry(deviceId, letterId)
      if (!entry) continue
      const at = this.#entries.dueAt(entry)
      if (at > now) {
        if (!isListedElsewhere(entry, list, at)) relisted.push([dueList(at), dueItem(deviceId, letterId)])
      } else if (entry.status !== 'queued') {
        forgotten.push(key)
      } else {
        ends.set(key, { deviceId, entry: endedOf(entry, 'expired'), before: entry }) // keyed: a letter may be listed twice
      }
    }
    const changes = [...ends.values()]
    for (const { deviceId, before } of changes) this.#remove(deviceId, before)
    try {
      await this.#entries.write(changes, batch => {
        for (const key of [...forgotten, ...keys]) batch.del(key)
        for (const [list, item] of relisted) batch.list(list, item)
      }, items.length)
    } catch (error) {
      for (const { deviceId, before } of changes) this.#restore(deviceId, before)
      throw error
    }
    return changes.map(({ deviceId, entry }) => ({ deviceId, receipt: receiptOf(entry) }))
  }

  async #relist (): Promise<void> {
    await relist({ journal: this.#journal, dueAt: entry => this.#entries.dueAt(entry) })
    this.#isListLost = false
  }

  /** The entry with pending changes applied, if the letter waits. */
  #waiting (deviceId: string, letterId: string): Waiting | undefined {
    const entry = this.#entry(deviceId, letterId)
    return entry?.status === 'queued' ? entry as Waiting : undefined
  }

  /** The entry with pending changes applied. */
  #entry (deviceId: string, letterId: string): Entry | undefined {
    return this.#cache.get(deviceId, letterId) ?? this.#entries.read(deviceId, letterId)
  }

  /** A repeated `put` is acknowledged only after the first is on disk. */
  async #knownLetter (deviceId: string, first: Entry): Promise<PutResult> {
    await this.#entries.written(deviceId, first.id)
    return { receipt: receiptOf(first), fresh: false }
  }

  #collapsible (deviceId: string, { collapse }: Letter): Waiting | undefined {
    const id = collapse === undefined ? undefined : this.#counts.collapsible(deviceId, collapse)
    return id === undefined ? undefined : this.#waiting(deviceId, id)
  }

  #cacheLetter (deviceId: string, letter: Waiting): void {
    const letters = this.#counts.waiting(deviceId)
    if (letters > MAX_CACHED_PER_DEVICE) this.#cache.forget(deviceId)
    else this.#cache.add(deviceId, letter, letters === 1)
  }

  /** The write that was to end it failed: it waits again, unless its own write failed as well. */
  #restore (deviceId: string, entry: Entry): void {
    if (!this.#entries.isKept(entry)) return
    this.#counts.add(deviceId, entry)
    this.#cache.forget(deviceId)
  }

  #remove (deviceId: string, entry: Entry): void {
    this.#uncommitted.delete(entry)
    this.#cache.remove(deviceId, entry.id)
    this.#counts.remove(deviceId, entry)
  }

  async #checkFormat (path: string): Promise<void> {
    const found = this.#journal.read(formatKey)
    if (!found) return await this.#journal.write(batch => batch.put(formatKey, FORMAT))
    if (Buffer.from(found).toString() !== FORMAT) throw new Error(`The letters in "${path}" are of another format; this version reads "${FORMAT}"`)
  }

  /** Counts waiting letters by their places alone. After damage, every entry is compared with its place first. */
  async #load (path: string): Promise<void> {
    this.#journal.checkBatches()
    await this.#checkFormat(path)
    await this.#count()
    if (this.#unreportedDamages.size === 0 && !this.#journal.read(suspectKey)) return
    const options = { journal: this.#journal, dueAt: (entry: Entry) => this.#entries.dueAt(entry), damaged: this.#report }
    const position = await checkEntries(options)
    await this.#relist()
    await this.#count()
    this.#entries.position = Math.max(this.#entries.position, position)
    await this.#journal.write(batch => {
      batch.put(positionKey, String(this.#entries.position))
      batch.del(suspectKey)
    })
  }

  async #count (): Promise<void> {
    this.#counts.clear()
    const found = this.#journal.read(positionKey)
    let position = found ? Number(Buffer.from(found).toString()) : 0
    let last: string | undefined
    for await (const page of this.#journal.pages('l!', 'l"')) {
      for (const [key, value] of page) {
        const place = decodePlace(key, value)
        position = Math.max(position, place.position)
        this.#counts.add(place.deviceId, place)
        last = key
      }
    }
    // LevelDB stops at a damaged key that sorts behind all places
    if (this.#unreportedDamages.size === 0 && last !== await this.#journal.lastKey('l!', 'l"')) this.#report({ key: 'l!', reason: 'the records are not in order' })
    this.#entries.position = position
  }

  /** Mends a place without a letter, unless the letter has ended since the place was read. */
  async #mendPlace (key: string, place: Place): Promise<void> {
    const { deviceId, id, position } = place
    if (this.#mendedPlaces.has(key) || this.#entries.written(deviceId, id) || !this.#journal.read(key)) return
    this.#mendedPlaces.add(key)
    this.#noteDamage({ key, reason: 'the letter of this place is missing' })
    this.#counts.remove(deviceId, place)
    if (this.#entry(deviceId, id)) await this.#journal.write(batch => batch.del(key))
    else await this.#entries.write([{ deviceId, entry: lostOf(id, position) }])
  }

  /** Marks the database, so that the next start compares all entries with their places. */
  #noteDamage (damage: Damage): void {
    this.#report(damage)
    if (damage.key.startsWith('d!')) this.#isListLost = true
    if (this.#isOpen) this.#journal.write(batch => batch.put(suspectKey, '')).catch(noChange)
  }
}
