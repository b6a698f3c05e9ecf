import { setImmediate as turn } from 'node:timers/promises'
import { Failure } from '../../protocol/errors.ts'
import { Batch, BATCH } from './batch.ts'
import { withoutChecksum } from './checksum.ts'
import type { Damage } from './damage.ts'
import { BEGIN, END, isDamage, type Database } from './database.ts'
import { BATCHES_FILE, Folder } from './folder.ts'
import { openDatabase } from './open-database.ts'

type Fill = (batch: Batch) => void

interface Waiting {
  fill: Fill
  undo: Fill
  records: number
  resolve: () => void
  reject: (error: unknown) => void
}

/** What a journal tells of. */
export interface JournalListeners {
  damaged (damage: Damage): void
  /** What went wrong where nobody waits. */
  troubled (error: Error): void
}

const MAX_MENDS = 3
/** Damage that is met so soon after a repair is damage that the repair has passed over. */
const REPAIR_PROVES_ITSELF_MS = 60_000
const REOPEN_AFTER = 250
/** A batch takes no more writes once it has so many records: a larger one would hold up the event loop. */
const TOGETHER = 500
/** So many records are removed before it is worth to write the files anew, and so large is one of them, about. */
const LEAST_REMOVED = 10_000
const RECORD_BYTES = 256
const PAGE = 1_000
const PAGE_BYTES = 1_048_576

/**
 * Records in a folder, many writes to one synced batch. Each record has a checksum of its own: the database below does not
 * tell of every bit that has flipped. The batches are counted, so that none is lost without a word.
 */
export class Journal {
  readonly #folder: Folder
  readonly #listeners: JournalListeners
  #db: Database
  #batch: number
  readonly #waiting: Waiting[] = []
  #writing: Promise<void> | undefined
  #compacting: Promise<void> | undefined
  /** Records that were removed since the files were written anew. */
  #removed = 0
  /** On the clock that does not jump. */
  #brokenUntil = 0
  /** What takes back a batch that failed, and may be on the disk all the same. */
  #undo: Fill[] = []
  /** What failed may be read as if it had not, until it is taken back. */
  #isHaunted = false
  #corrupt = false
  #repairedAt = -Infinity
  /** The folder was removed or replaced. */
  #isAway = false
  #closed = false
  /** Damaged records stay where they are, and are told of once. */
  readonly #quarantined = new Set<string>()

  private constructor (folder: Folder, db: Database, listeners: JournalListeners) {
    this.#folder = folder
    this.#db = db
    this.#batch = folder.batches.count ?? 0
    this.#listeners = listeners
  }

  /** Mends what a crash left behind; rejects if another process has the folder. */
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
      await this.write(nothing)
      await this.mending(work, attempts - 1)
    }
  }

  /** Compares the newest batch with what was promised. */
  checkBatches (): void {
    const found = this.read(BATCH)
    this.#batch = found ? Number(Buffer.from(found).toString()) : 0
    const { count } = this.#folder.batches
    // after the very first batch the tally may not have been written yet
    if (count === undefined || (count === 0 && this.#batch > 1)) this.#listeners.damaged({ key: BATCHES_FILE, reason: 'it cannot be told whether the newest writes are here' })
    else if (count > this.#batch) this.#listeners.damaged({ key: BATCHES_FILE, reason: `the newest ${count - this.#batch} of ${count} batches are missing` })
    this.#batch = Math.max(this.#batch, count ?? 0)
  }

  /** The value of a record; undefined where there is none, or none that can be believed. */
  read (key: string): Uint8Array | undefined {
    this.#checkHaunted()
    try {
      const record = this.#db.getSync(key)
      return record && this.#believe(key, record)
    } catch (error) {
      throw this.#unreadable(key, error)
    }
  }

  /** The records of keys from `gte` up to `lt`, in their order; what cannot be believed is reported and left out. */
  async * range (gte: string, lt: string): AsyncGenerator<[key: string, value: Uint8Array]> {
    this.#checkHaunted()
    try {
      for await (const [key, record] of this.#db.iterator({ gte, lt })) {
        const value = this.#believe(key, record)
        if (value) yield [key, value]
      }
    } catch (error) {
      throw this.#unreadable(gte, error)
    }
  }

  /** The same, many at a time: it costs half as much to read them all, and holds more in memory. */
  async * pages (gte: string, lt: string): AsyncGenerator<Array<[key: string, value: Uint8Array]>> {
    this.#checkHaunted()
    try {
      const iterator = this.#db.iterator({ gte, lt, highWaterMarkBytes: PAGE_BYTES })
      try {
        for (let page = await iterator.nextv(PAGE); page.length > 0; page = await iterator.nextv(PAGE)) yield this.#believed(page)
      } finally {
        await iterator.close()
      }
    } catch (error) {
      throw this.#unreadable(gte, error)
    }
  }

  /** The keys from `gte` up to `lt`, those of damaged records too. */
  async keys (gte: string, lt: string): Promise<string[]> {
    return await this.#db.keys({ gte, lt }).all()
  }

  /** The last key before `lt`, found from behind. */
  async lastKey (gte: string, lt: string): Promise<string | undefined> {
    const [key] = await this.#db.keys({ gte, lt, reverse: true, limit: 1 }).all()
    return key
  }

  /** Reads records into the caches, on a thread of its own: to read them one by one after that does not wait for the disk. */
  async warm (keys: string[]): Promise<void> {
    this.#checkHaunted()
    try {
      await this.#db.hasMany(keys)
    } catch (error) {
      throw this.#unreadable(keys[0]!, error)
    }
  }

  /**
   * Resolves once what was filled in is on disk, all of it or, after a crash, nothing. Where it rejects, `undo` is written before anything else
   * is: a write that failed may have come to the disk.
   */
  write (fill: Fill, undo: Fill = nothing, records = 1): Promise<void> {
    return new Promise((resolve, reject) => {
      this.#waiting.push({ fill, undo, records, resolve, reject })
      this.#writing ??= this.#writeAll()
    })
  }

  async seal (): Promise<void> {
    await this.#folder.seal()
  }

  /** Begins to write the files anew where much of them has been removed: LevelDB does so only as long as there is more to write. */
  shrink (): void {
    this.#compacting ??= this.#compact().catch(nothing).finally(() => { this.#compacting = undefined }) // whoever writes next hears of it
  }

  async close (): Promise<void> {
    await this.#writing
    this.#closed = true
    await this.#compacting
    await this.#db.close()
    await this.#folder.close()
  }

  async #writeAll (): Promise<void> {
    while (this.#waiting.length > 0) {
      await turn() // all that is asked for in this turn goes together
      const together = this.#waiting.splice(0, this.#together())
      try {
        await this.#write(together)
        for (const { resolve } of together) resolve()
      } catch {
        // with what was asked for meanwhile, which may build on it
        for (const { reject } of [...together, ...this.#waiting.splice(0)]) reject(new Failure('store-full', { message: 'Letters cannot be written' }))
      }
    }
    this.#writing = undefined
  }

  /** How many of the writes that wait go into the next batch. */
  #together (): number {
    let records = 0
    const end = this.#waiting.findIndex(waiting => (records += waiting.records) >= TOGETHER)
    return end === -1 ? this.#waiting.length : end + 1
  }

  /** After a write that failed, LevelDB refuses all others until it is opened anew; that is tried now and then. */
  async #write (together: Waiting[]): Promise<void> {
    if (this.#closed || performance.now() < this.#brokenUntil) throw new Failure('store-full')
    try {
      this.#checkPlace()
      if (this.#brokenUntil > 0 || this.#corrupt) await this.#reopen()
      if (this.#undo.length > 0) await this.#writeBatch(this.#undo)
      this.#isHaunted = false
      this.#undo = together.map(({ undo }) => undo).toReversed()
      await this.#writeBatch(together.map(({ fill }) => fill))
      this.#undo = []
      this.#brokenUntil = 0
    } catch (error) {
      this.#noteCorruption(this.#folder.path, error)
      this.#brokenUntil = performance.now() + REOPEN_AFTER
      throw error
    }
  }

  async #writeBatch (fills: Fill[]): Promise<void> {
    const batch = new Batch(this.#db, ++this.#batch)
    for (const fill of fills) fill(batch)
    await batch.write()
    this.#removed += batch.removed
    this.#folder.batches.record(this.#batch)
    this.#checkPlace()
  }

  /** The files of a folder that is gone can be written, and nobody will ever read them. */
  #checkPlace (): void {
    const isAway = !this.#folder.isInPlace
    const wasAway = this.#isAway
    this.#isAway = isAway
    if (!isAway) return
    const error = new Error(`The folder "${this.#folder.path}" was removed or replaced: letters are refused until it is back`)
    if (!wasAway) this.#listeners.troubled(error)
    throw error
  }

  async #compact (): Promise<void> {
    if (this.#removed < LEAST_REMOVED || !this.#folder.isInPlace) return
    const size = await this.#db.approximateSize(BEGIN, END)
    if (this.#removed * RECORD_BYTES < size / 2) return
    this.#removed = 0
    await this.#db.compactRange(END, END) // what is in memory becomes a table
    // tables are merged only with those that they overlap, and these two overlap all
    await this.write(batch => {
      batch.del(BEGIN)
      batch.del(END)
    })
    await this.#db.compactRange(BEGIN, END)
  }

  async #reopen (): Promise<void> {
    this.#isHaunted = this.#undo.length > 0
    await this.#db.close()
    const isRepaired = this.#corrupt && performance.now() - this.#repairedAt < REPAIR_PROVES_ITSELF_MS
    this.#db = await openDatabase(this.#folder.path, { isCorrupt: this.#corrupt, isRepaired, damaged: this.#listeners.damaged })
    if (this.#corrupt) this.#repairedAt = performance.now()
    this.#corrupt = false
  }

  #checkHaunted (): void {
    if (this.#isHaunted) throw unreadable()
  }

  /** The next write mends what is damaged, and opens what is not open; until then, whoever reads must come again. */
  #unreadable (key: string, error: unknown): Failure {
    this.#noteCorruption(key, error)
    this.write(nothing).catch(() => {})
    return unreadable()
  }

  #noteCorruption (key: string, error: unknown): void {
    if (!isDamage(error)) return
    this.#listeners.damaged({ key, reason: (error as Error).message })
    this.#corrupt = true
  }

  #believed (page: Array<[key: string, record: Uint8Array]>): Array<[key: string, value: Uint8Array]> {
    const believed: Array<[key: string, value: Uint8Array]> = []
    for (const [key, record] of page) {
      const value = this.#believe(key, record)
      if (value) believed.push([key, value])
    }
    return believed
  }

  #believe (key: string, record: Uint8Array): Uint8Array | undefined {
    const value = withoutChecksum(key, record)
    if (!value && !this.#quarantined.has(key)) {
      this.#quarantined.add(key)
      this.#listeners.damaged({ key, reason: 'the checksum does not fit' })
    }
    return value
  }
}

function unreadable (): Failure {
  return new Failure('store-full', { message: 'Letters cannot be read' })
}

/** For a write that only mends. */
export function nothing (): void {}
