import type { Batch } from './batch.ts'
import { nothing, type Journal } from './journal.ts'
import { decodeEntry, entryKey, fillIn, placeKey, positionKey, type Entry } from './schema.ts'

/** An entry that is to be written, and the one that it takes the place of. */
export interface Change {
  readonly deviceId: string
  readonly entry: Entry
  readonly before?: Entry | undefined
}

/** With the key of its entry. */
type KeyedEntry = Change & { readonly key: string }

/** The entries, as they are now or are about to be: a change counts as soon as it is asked for, and is promised once it is on disk. */
export class Entries {
  /** The highest position given so far. */
  position = 0
  readonly #journal: Journal
  readonly #keepReceipts: number
  /** Entries on their way to the disk, and when they are there. */
  readonly #underway = new Map<string, { entry: Entry, written: Promise<void> }>()
  /** Of letters that could not be kept. */
  readonly #unkept = new WeakSet<Entry>()

  constructor (journal: Journal, keepReceipts: number) {
    this.#journal = journal
    this.#keepReceipts = keepReceipts
  }

  read (deviceId: string, letterId: string): Entry | undefined {
    const key = entryKey(deviceId, letterId)
    const newest = this.#underway.get(key)?.entry
    if (newest) return newest
    const value = this.#journal.read(key)
    return value && decodeEntry(key, value).entry
  }

  /** Resolves once the newest change of an entry is on disk; nothing, if it is. */
  written (deviceId: string, letterId: string): Promise<void> | undefined {
    return this.#underway.get(entryKey(deviceId, letterId))?.written
  }

  /** False: the letter is not there, because its first write failed. */
  isKept (entry: Entry): boolean {
    return !this.#unkept.has(entry)
  }

  /** When a letter expires, or its receipt is forgotten. */
  dueAt ({ status, expiresAt, at }: Entry): number {
    return status === 'queued' ? expiresAt : at + this.#keepReceipts
  }

  /** Writes changes together, with whatever `more` adds. Where that fails, what was there before is written again. */
  write (changes: Change[], more: (batch: Batch) => void = nothing, records = changes.length): Promise<void> {
    const keyed = changes.map(({ deviceId, entry, before }): KeyedEntry => ({ key: entryKey(deviceId, entry.id), deviceId, entry, before }))
    const written = this.#journal.write(batch => {
      for (const { key, deviceId, entry } of keyed) this.#fillIn(batch, key, deviceId, entry)
      more(batch)
    }, batch => {
      for (const change of keyed) this.#takeBack(batch, change)
    }, records)
    for (const { key, entry } of keyed) this.#underway.set(key, { entry, written })
    written.then(() => this.#arrived(keyed), () => {
      for (const { entry, before } of keyed) if (!before) this.#unkept.add(entry)
      this.#arrived(keyed)
    })
    return written
  }

  #arrived (changes: KeyedEntry[]): void {
    for (const { key, entry } of changes) if (this.#underway.get(key)?.entry === entry) this.#underway.delete(key)
  }

  #takeBack (batch: Batch, { key, deviceId, entry, before }: KeyedEntry): void {
    batch.del(key)
    batch.del(placeKey(deviceId, entry.position))
    if (before && this.isKept(before)) this.#fillIn(batch, key, deviceId, before)
  }

  #fillIn (batch: Batch, key: string, deviceId: string, entry: Entry): void {
    fillIn(batch, key, deviceId, entry, this.dueAt(entry))
    if (entry.status === 'queued') batch.mark(positionKey, this.position)
  }
}
