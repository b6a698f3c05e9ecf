import { setImmediate as turn } from 'node:timers/promises'
import { Failure } from '../../protocol/errors.ts'
import type { Health } from '../../protocol/health.ts'
import { Batch, BATCH_KEY } from './batch.ts'
import { withoutChecksum } from './checksum.ts'
import type { Damage } from './damage.ts'
import { Compactor } from './compactor.ts'
import { isDamage, isDiskFull, type Database } from './database.ts'
import { BATCHES_FILE, Folder } from './folder.ts'
import { openDatabase } from './open-database.ts'

type Fill = (batch: Batch) => void

interface PendingWrite {
  fill: Fill
  undo: Fill
  records: number
  resolve: () => void
  reject: (error: unknown) => void
}

export interface JournalListeners {
  damaged (damage: Damage): void
  /** An error that no caller waits for. */
  troubled (error: Error): void
}

const MAX_MENDS = 3
/** If LevelDB meets damage so soon after a repair, the repair has not found it. */
const REPAIR_PROBATION_MS = 60_000
const REOPEN_DELAY_MS = 250
/** A batch takes no further write once it has so many records: a larger one would block the event loop. */
const MAX_BATCH_RECORDS = 500
const FOLDER_REMOVED = 'folder removed'
const PAGE_RECORDS = 1_000
const PAGE_BYTES = 1_048_576

/**
 * Checksummed records in a folder; concurrent writes share one synced batch. LevelDB cannot be asked to verify its own checksums, so each record has one. Batches are
 * counted, so that missing ones are noticed.
 */
export class Journal {
  readonly #folder: Folder
  readonly #listeners: JournalListeners
  readonly #compactor = new Compactor()
  #db: Database
  #batch: number
  readonly #pending: PendingWrite[] = []
  #writing: Promise<void> | undefined
  /** When a failed write may be followed by another, on the monotonic clock. */
  #retryAt = 0
  /** Why the last write failed. */
  #failure = ''
  /** Reverts the batch that failed: it may be on disk nevertheless. */
  #undo: Fill[] = []
  /** A failed batch may be visible to reads until it is reverted. */
  #isUndoPending = false
  #isCorrupt = false
  #repairedAt = -Infinity
  /** The folder was removed or replaced. */
  #isGone = false
  #isClosed = false
  /** Damaged records stay in the database; each is reported once. */
  readonly #reportedKeys = new Set<string>()

  private constructor (folder: Folder, db: Database, listeners: JournalListeners) {
    this.#folder = folder
    this.#db = db
    this.#batch = folder.batches.count ?? 0
    this.#listeners = listeners
  }

  /** Mends what a crash has left; rejects if another process has the folder. */
  static async open (path: string, listeners: JournalListeners): Promise<Journal> {
    const folder = await Folder.open(path)
    const { batches, starts } = folder
    try {
      const db = await openDatabase(path, { isNew: batches.count === 0, isCheckDue: starts.isCheckDue, damaged: listeners.damaged })
      return new Journal(folder, db, listeners)
    } catch (error) {
      await folder.close()
      throw error
    }
  }

  /** Repeats work that has met damage: the next write mends it. */
  async mending (work: () => Promise<void>, attempts = MAX_MENDS): Promise<void> {
    try {
      await work()
    } catch (error) {
      if (attempts === 0 || !(error instanceof Failure)) throw error
      await this.write(noChange)
      await this.mending(work, attempts - 1)
    }
  }

  /** Reports batches that were acknowledged and are missing. */
  checkBatches (): void {
    const found = this.read(BATCH_KEY)
    this.#batch = found ? Number(Buffer.from(found).toString()) : 0
    const { count } = this.#folder.batches
    // the counter may not have been written after the very first batch
    if (count === undefined || (count === 0 && this.#batch > 1)) this.#listeners.damaged({ key: BATCHES_FILE, reason: 'the counter is damaged: the newest writes may be missing' })
    else if (count > this.#batch) this.#listeners.damaged({ key: BATCHES_FILE, reason: `the newest ${count - this.#batch} of ${count} batches are missing` })
    this.#batch = Math.max(this.#batch, count ?? 0)
  }

  /** The value of a record; undefined if it does not exist or is damaged. */
  read (key: string): Uint8Array | undefined {
    this.#checkReadable()
    try {
      const record = this.#db.getSync(key)
      return record && this.#verify(key, record)
    } catch (error) {
      throw this.#unreadable(key, error)
    }
  }

  /** The records with keys from `gte` up to `lt`, in order. Damaged ones are reported and left out. */
  async * range (gte: string, lt: string): AsyncGenerator<[key: string, value: Uint8Array]> {
    this.#checkReadable()
    try {
      for await (const [key, record] of this.#db.iterator({ gte, lt })) {
        const value = this.#verify(key, record)
        if (value) yield [key, value]
      }
    } catch (error) {
      throw this.#unreadable(gte, error)
    }
  }

  /** The same in pages: half the CPU time, more memory. */
  async * pages (gte: string, lt: string): AsyncGenerator<Array<[key: string, value: Uint8Array]>> {
    this.#checkReadable()
    try {
      const iterator = this.#db.iterator({ gte, lt, highWaterMarkBytes: PAGE_BYTES })
      try {
        for (let page = await iterator.nextv(PAGE_RECORDS); page.length > 0; page = await iterator.nextv(PAGE_RECORDS)) yield this.#verifyAll(page)
      } finally {
        await iterator.close()
      }
    } catch (error) {
      throw this.#unreadable(gte, error)
    }
  }

  /** The keys from `gte` up to `lt`, including those of damaged records. */
  async keys (gte: string, lt: string): Promise<string[]> {
    return await this.#db.keys({ gte, lt }).all()
  }

  /** The last key before `lt`, found by a search from the end. */
  async lastKey (gte: string, lt: string): Promise<string | undefined> {
    const [key] = await this.#db.keys({ gte, lt, reverse: true, limit: 1 }).all()
    return key
  }

  /** Reads records into the caches on another thread, so that `read` of each does not block on the disk. */
  async warm (keys: string[]): Promise<void> {
    this.#checkReadable()
    try {
      await this.#db.hasMany(keys)
    } catch (error) {
      throw this.#unreadable(keys[0]!, error)
    }
  }

  /**
   * Resolves once all that `fill` adds is on disk; after a crash all or none of it is there. If it rejects, `undo` is written before any other
   * write: a failed write may have reached the disk.
   */
  write (fill: Fill, undo: Fill = noChange, records = 1): Promise<void> {
    return new Promise((resolve, reject) => {
      this.#pending.push({ fill, undo, records, resolve, reject })
      this.#writing ??= this.#writeAll()
    })
  }

  /** Whether records can be written. After a failure it starts the next try: there may be no other write while a readiness probe keeps requests away. */
  health (): Health {
    if (!this.#folder.isInPlace) return { ok: false, reason: FOLDER_REMOVED }
    if (this.#retryAt === 0 && !this.#isCorrupt) return { ok: true }
    if (!this.#writing && performance.now() >= this.#retryAt) this.write(noChange).catch(noChange)
    return { ok: false, reason: this.#isCorrupt ? 'damaged files are being mended' : this.#failure }
  }

  async seal (): Promise<void> {
    await this.#folder.seal()
  }

  /** Starts to shrink files with many deletions. */
  shrink (): void {
    if (this.#folder.isInPlace) this.#compactor.start({ db: this.#db, write: fill => this.write(fill) })
  }

  async close (): Promise<void> {
    await this.#writing
    this.#isClosed = true
    await this.#compactor.running
    await this.#db.close()
    await this.#folder.close()
  }

  async #writeAll (): Promise<void> {
    while (this.#pending.length > 0) {
      await turn() // writes of the same turn share a batch
      const writes = this.#pending.splice(0, this.#nextBatchLength())
      try {
        await this.#write(writes)
        for (const { resolve } of writes) resolve()
      } catch {
        // pending writes may build on the failed ones, so they fail too
        for (const { reject } of [...writes, ...this.#pending.splice(0)]) reject(new Failure('store-full', { message: 'Letters cannot be written' }))
      }
    }
    this.#writing = undefined
  }

  /** How many of the pending writes go into the next batch. */
  #nextBatchLength (): number {
    let records = 0
    const end = this.#pending.findIndex(write => (records += write.records) >= MAX_BATCH_RECORDS)
    return end === -1 ? this.#pending.length : end + 1
  }

  /** After a failed write LevelDB refuses all others until it is reopened, which is tried at intervals. */
  async #write (writes: PendingWrite[]): Promise<void> {
    if (this.#isClosed || performance.now() < this.#retryAt) throw new Failure('store-full')
    try {
      this.#checkFolder()
      if (this.#retryAt > 0 || this.#isCorrupt) await this.#reopen()
      if (this.#undo.length > 0) await this.#writeBatch(this.#undo)
      this.#isUndoPending = false
      this.#undo = writes.map(({ undo }) => undo).toReversed()
      await this.#writeBatch(writes.map(({ fill }) => fill))
      this.#undo = []
      this.#retryAt = 0
    } catch (error) {
      this.#noteCorruption(this.#folder.path, error)
      this.#failure = this.#isGone ? FOLDER_REMOVED : isDiskFull(error) ? 'disk full' : 'the last write failed'
      this.#retryAt = performance.now() + REOPEN_DELAY_MS
      throw error
    }
  }

  async #writeBatch (fills: Fill[]): Promise<void> {
    const batch = new Batch(this.#db, ++this.#batch)
    for (const fill of fills) fill(batch)
    await batch.write()
    this.#compactor.countRemoved(batch.removed)
    this.#folder.batches.record(this.#batch)
    this.#checkFolder()
  }

  /** Files of a removed folder can still be written, but never read again. */
  #checkFolder (): void {
    const isGone = !this.#folder.isInPlace
    const wasGone = this.#isGone
    this.#isGone = isGone
    if (!isGone) return
    const error = new Error(`The folder "${this.#folder.path}" was removed or replaced: letters are refused until it is back`)
    if (!wasGone) this.#listeners.troubled(error)
    throw error
  }

  async #reopen (): Promise<void> {
    this.#isUndoPending = this.#undo.length > 0
    await this.#db.close()
    const isRepaired = this.#isCorrupt && performance.now() - this.#repairedAt < REPAIR_PROBATION_MS
    this.#db = await openDatabase(this.#folder.path, { isCorrupt: this.#isCorrupt, isRepaired, damaged: this.#listeners.damaged })
    if (this.#isCorrupt) this.#repairedAt = performance.now()
    this.#isCorrupt = false
  }

  #checkReadable (): void {
    if (this.#isUndoPending) throw unreadable()
  }

  /** The next write mends damage and reopens the database. Until then reads fail, and callers retry. */
  #unreadable (key: string, error: unknown): Failure {
    this.#noteCorruption(key, error)
    this.write(noChange).catch(() => {})
    return unreadable()
  }

  #noteCorruption (key: string, error: unknown): void {
    if (!isDamage(error)) return
    this.#listeners.damaged({ key, reason: (error as Error).message })
    this.#isCorrupt = true
  }

  #verifyAll (page: Array<[key: string, record: Uint8Array]>): Array<[key: string, value: Uint8Array]> {
    const verified: Array<[key: string, value: Uint8Array]> = []
    for (const [key, record] of page) {
      const value = this.#verify(key, record)
      if (value) verified.push([key, value])
    }
    return verified
  }

  #verify (key: string, record: Uint8Array): Uint8Array | undefined {
    const value = withoutChecksum(key, record)
    if (!value && !this.#reportedKeys.has(key)) {
      this.#reportedKeys.add(key)
      this.#listeners.damaged({ key, reason: 'the checksum does not fit' })
    }
    return value
  }
}

function unreadable (): Failure {
  return new Failure('store-full', { message: 'Letters cannot be read' })
}

/** For a write that only reopens or mends the database. */
export function noChange (): void {}
