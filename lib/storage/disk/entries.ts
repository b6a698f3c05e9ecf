import type { Batch } from './batch.ts'
import { noChange, type Journal } from './journal.ts'
import { decodeEntry, entryKey, fillIn, placeKey, positionKey, type Entry } from './schema.ts'

/** An entry to be written, and the one that it replaces. */
export interface Change {
  readonly deviceId: string
  readonly entry: Entry
  readonly before?: Entry | undefined
}

/** A change with the key of its entry. */
type KeyedEntry = Change & { readonly key: string }

/** The entries with pending changes applied: a change is visible at once, and acknowledged once it is on disk. */
export class Entries {
  /** The highest position so far. */
  position = 0
  readonly #journal: Journal
  readonly #keepReceipts: number
  /** Entries that are being written. */
  readonly #pending = new Map<string, { entry: Entry, written: Promise<void> }>()
  /** Entries of letters whose first write failed. */
  readonly #failed = new WeakSet<Entry>()

  constructor (journal: Journal, keepReceipts: number) {
    this.#journal = journal
    this.#keepReceipts = keepReceipts
  }

  read (deviceId: string, letterId: string): Entry | undefined {
    const key = entryKey(deviceId, letterId)
    const newest = this.#pending.get(key)?.entry
    if (newest) return newest
    const value = this.#journal.read(key)
    return value && decodeEntry(key, value).entry
  }

  /** Resolves once the newest change of an entry is on disk; undefined if none is pending. */
  written (deviceId: string, letterId: string): Promise<void> | undefined {
    return this.#pending.get(entryKey(deviceId, letterId))?.written
  }

  /** False: the letter does not exist, because its first write failed. */
  isKept (entry: Entry): boolean {
    return !this.#failed.has(entry)
  }

  /** When the letter expires, or its receipt is deleted. */
  dueAt ({ status, expiresAt, at }: Entry): number {
    return status === 'queued' ? expiresAt : at + this.#keepReceipts
  }

  /** Writes changes and what `addMore` adds in one batch. If that fails, the previous entries are restored. */
  write (changes: Change[], addMore: (batch: Batch) => void = noChange, records = changes.length): Promise<void> {
    const keyed = changes.map(({ deviceId, entry, before }): KeyedEntry => ({ key: entryKey(deviceId, entry.id), deviceId, entry, before }))
    const written = this.#journal.write(batch => {
      for (const { key, deviceId, entry } of keyed) this.#add(batch, key, deviceId, entry)
      addMore(batch)
    }, batch => {
      for (const change of keyed) this.#undo(batch, change)
    }, records)
    for (const { key, entry } of keyed) this.#pending.set(key, { entry, written })
    written.then(() => this.#settled(keyed), () => {
      for (const { entry, before } of keyed) if (!before) this.#failed.add(entry)
      this.#settled(keyed)
    })
    return written
  }

  #settled (changes: KeyedEntry[]): void {
    for (const { key, entry } of changes) if (this.#pending.get(key)?.entry === entry) this.#pending.delete(key)
  }

  #undo (batch: Batch, { key, deviceId, entry, before }: KeyedEntry): void {
    batch.del(key)
    batch.del(placeKey(deviceId, entry.position))
    if (before && this.isKept(before)) this.#add(batch, key, deviceId, before)
  }

  #add (batch: Batch, key: string, deviceId: string, entry: Entry): void {
    fillIn(batch, key, deviceId, entry, this.dueAt(entry))
    if (entry.status === 'queued') batch.mark(positionKey, this.position)
  }
}
