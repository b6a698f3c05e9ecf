import { chmod, mkdir, readdir } from 'node:fs/promises'
import { join } from 'node:path'
import { setImmediate as turn } from 'node:timers/promises'
import { crc32 } from 'node:zlib'
import { Failure } from '../errors.ts'
import { sizeOf } from '../mailbox.ts'
import type { Damage } from './damage.ts'
import { CORRUPT, openDatabase, type Database } from './database.ts'
import { lockFolder } from './lock.ts'
import { Tally } from './tally.ts'

/** A change of one record; without a value the record goes. */
export interface Change {
  key: string
  value?: string | Uint8Array
}

/** An item of a list: all that one batch has for a list becomes one record, its items a line each. */
export interface Item {
  list: string
  item: string
}

interface Waiting {
  changes: Array<Change | Item>
  resolve: () => void
  reject: (error: unknown) => void
}

interface Parts {
  path: string
  db: Database
  tally: Tally
  damaged: (damage: Damage) => void
  release: () => Promise<void>
}

const CHECKSUM = 4
const REOPEN_AFTER = 250
/** Writes in one batch at most: a larger one would hold up the event loop. */
const TOGETHER = 500
const BATCH = 'batch'
const TALLY = 'batches'

/**
 * Records in a folder, many writes to one synced batch. Each record has a checksum of its own over key and value: the
 * database below does not tell of every bit that has flipped. The batches are counted, so that none is lost without a word.
 */
export class Journal {
  readonly #path: string
  readonly #damaged: (damage: Damage) => void
  readonly #tally: Tally
  readonly #release: () => Promise<void>
  #db: Database
  #batch = 0
  readonly #waiting: Waiting[] = []
  #writing: Promise<void> | undefined
  #brokenUntil = 0
  #corrupt = false
  #closed = false
  /** Damaged records stay where they are, and are told of once. */
  readonly #quarantined = new Set<string>()

  private constructor ({ path, db, tally, damaged, release }: Parts) {
    this.#path = path
    this.#db = db
    this.#tally = tally
    this.#damaged = damaged
    this.#release = release
    this.#count()
  }

  /** Mends what a crash left behind; rejects where another process has the folder. */
  static async open (path: string, damaged: (damage: Damage) => void): Promise<Journal> {
    await mkdir(path, { recursive: true, mode: 0o700 })
    await chmod(path, 0o700)
    const lock = await lockFolder(path)
    const tally = new Tally(join(path, TALLY))
    const release = async () => {
      tally.close()
      await lock.release()
    }
    try {
      const db = await openDatabase(path, { isNew: tally.count === 0, damaged })
      return new Journal({ path, db, tally, damaged, release })
    } catch (error) {
      await release()
      throw error
    }
  }

  /** The value of a record; undefined where there is none, or none that can be believed. */
  read (key: string): Uint8Array | undefined {
    try {
      const record = this.#db.getSync(key)
      return record && this.#believe(key, record)
    } catch (error) {
      throw this.#unreadable(key, error)
    }
  }

  /** The records of keys from `gte` up to `lt`, in their order; what cannot be believed is reported and left out. */
  async * range (gte: string, lt: string): AsyncGenerator<[key: string, value: Uint8Array]> {
    try {
      for await (const [key, record] of this.#db.iterator({ gte, lt })) {
        const value = this.#believe(key, record)
        if (value) yield [key, value]
      }
    } catch (error) {
      throw this.#unreadable(gte, error)
    }
  }

  /** Resolves once the changes are on disk, all of them or, after a crash, none. */
  write (changes: Array<Change | Item>): Promise<void> {
    return new Promise((resolve, reject) => {
      this.#waiting.push({ changes, resolve, reject })
      this.#writing ??= this.#writeAll()
    })
  }

  /** LevelDB makes its files readable by all; the folder is not, and neither are they after this. */
  async seal (): Promise<void> {
    for (const entry of await readdir(this.#path, { withFileTypes: true })) {
      await chmod(join(this.#path, entry.name), entry.isDirectory() ? 0o700 : 0o600).catch(() => {})
    }
  }

  async close (): Promise<void> {
    await this.#writing
    this.#closed = true
    await this.#db.close()
    await this.#release()
  }

  /** Compares the newest batch with what was promised. */
  #count (): void {
    const found = this.read(BATCH)
    this.#batch = found ? Number(Buffer.from(found).toString()) : 0
    const { count } = this.#tally
    // after the very first batch the tally may not have been written yet
    if (count === undefined || (count === 0 && this.#batch > 1)) this.#damaged({ key: TALLY, reason: 'it cannot be told whether the newest writes are here' })
    else if (count > this.#batch) this.#damaged({ key: TALLY, reason: `the newest ${count - this.#batch} of ${count} batches are missing` })
    this.#batch = Math.max(this.#batch, count ?? 0)
  }

  async #writeAll (): Promise<void> {
    while (this.#waiting.length > 0) {
      await turn() // all that is asked for in this turn goes together
      const together = this.#waiting.splice(0, TOGETHER)
      try {
        await this.#write(together.flatMap(({ changes }) => changes))
        for (const { resolve } of together) resolve()
      } catch {
        for (const { reject } of together) reject(new Failure('store-full', { message: 'Letters cannot be written' }))
      }
    }
    this.#writing = undefined
  }

  /** After a write that failed, LevelDB refuses all others until it is opened anew; that is tried now and then. */
  async #write (changes: Array<Change | Item>): Promise<void> {
    if (this.#closed || Date.now() < this.#brokenUntil) throw new Failure('store-full')
    try {
      if (this.#brokenUntil > 0 || this.#corrupt) await this.#reopen()
      await this.#writeBatch(this.#batch + 1, changes)
      this.#tally.record(++this.#batch)
      this.#brokenUntil = 0
    } catch (error) {
      this.#corrupt ||= (error as { code?: string }).code === CORRUPT
      this.#brokenUntil = Date.now() + REOPEN_AFTER
      throw error
    }
  }

  /** Change by change: as one list they cost more than twice as much. */
  async #writeBatch (number: number, changes: Array<Change | Item>): Promise<void> {
    const batch = this.#db.batch()
    const put = (key: string, value: string | Uint8Array) => batch.put(key, recordOf(key, value))
    const lists = new Map<string, string[]>()
    for (const change of changes) {
      if ('list' in change) append(lists, change)
      else if (change.value !== undefined) put(change.key, change.value)
      else batch.del(change.key)
    }
    for (const [list, items] of lists) put(`${list}!${number}`, items.join('\n'))
    put(BATCH, String(number))
    await batch.write({ sync: true })
  }

  async #reopen (): Promise<void> {
    await this.#db.close()
    this.#db = await openDatabase(this.#path, { isCorrupt: this.#corrupt, damaged: this.#damaged })
    this.#corrupt = false
  }

  /** The next write mends what is damaged, and opens what is not open; until then, whoever reads must come again. */
  #unreadable (key: string, error: unknown): Failure {
    const { code, message } = error as Error & { code?: string }
    if (code === CORRUPT) {
      this.#damaged({ key, reason: message })
      this.#corrupt = true
    }
    this.write([]).catch(() => {})
    return new Failure('store-full', { message: 'Letters cannot be read' })
  }

  #believe (key: string, record: Uint8Array): Uint8Array | undefined {
    const value = record.subarray(CHECKSUM)
    if (record.length >= CHECKSUM && new DataView(record.buffer, record.byteOffset).getUint32(0) === checksumOf(key, value)) return value
    if (!this.#quarantined.has(key)) this.#damaged({ key, reason: 'the checksum does not fit' })
    this.#quarantined.add(key)
    return undefined
  }
}

function append (lists: Map<string, string[]>, { list, item }: Item): void {
  const items = lists.get(list)
  if (items) items.push(item)
  else lists.set(list, [item])
}

function recordOf (key: string, value: string | Uint8Array): Uint8Array {
  const record = Buffer.allocUnsafe(CHECKSUM + sizeOf(value))
  if (typeof value === 'string') record.write(value, CHECKSUM)
  else record.set(value, CHECKSUM)
  record.writeUInt32BE(checksumOf(key, record.subarray(CHECKSUM)))
  return record
}

/** Over the key too, so that a record in the place of another is found out. */
function checksumOf (key: string, value: Uint8Array): number {
  return crc32(value, crc32(key))
}
