import { chmod, mkdir, readdir } from 'node:fs/promises'
import { join } from 'node:path'
import { crc32 } from 'node:zlib'
import { ClassicLevel } from 'classic-level'
import { Failure } from '../errors.ts'

/** A change of one record; without a value the record goes. */
export interface Change {
  key: string
  value?: Uint8Array
}

/** A record that is not what was written. */
export interface Damage {
  key: string
  reason: string
}

interface Waiting {
  changes: Change[]
  resolve: () => void
  reject: (error: unknown) => void
}

const CHECKSUM = 4
const REOPEN_AFTER = 250

/**
 * Records in a folder, many writes to one synced batch. Each record has a checksum of its own over key and value: the
 * database below does not tell of every bit that has flipped.
 */
export class Journal {
  readonly #path: string
  readonly #damaged: (damage: Damage) => void
  #db: ClassicLevel<string, Uint8Array>
  #waiting: Waiting[] = []
  #writing: Promise<void> | undefined
  #brokenUntil = 0

  private constructor (path: string, db: ClassicLevel<string, Uint8Array>, damaged: (damage: Damage) => void) {
    this.#path = path
    this.#db = db
    this.#damaged = damaged
  }

  /** Mends what a crash left behind; rejects where another process has the folder. */
  static async open (path: string, damaged: (damage: Damage) => void): Promise<Journal> {
    await mkdir(path, { recursive: true, mode: 0o700 })
    await chmod(path, 0o700)
    return new Journal(path, await openDatabase(path, damaged), damaged)
  }

  /** The value of a record; undefined where there is none, or none that can be believed. */
  read (key: string): Uint8Array | undefined {
    try {
      const record = this.#db.getSync(key)
      return record && this.#believe(key, record)
    } catch (error) {
      const { code, message } = error as Error & { code?: string }
      if (code !== 'LEVEL_CORRUPTION') throw new Failure('store-full', { message: 'Letters cannot be read' })
      this.#damaged({ key, reason: message })
      return undefined
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
      this.#damaged({ key: gte, reason: String(error) })
    }
  }

  /** Resolves once the changes are on disk, all of them or, after a crash, none. */
  write (changes: Change[]): Promise<void> {
    return new Promise((resolve, reject) => {
      this.#waiting.push({ changes, resolve, reject })
      this.#writing ??= this.#writeAll()
    })
  }

  /** LevelDB makes its files readable by all; the folder is not, and neither are they after this. */
  async seal (): Promise<void> {
    for (const name of await readdir(this.#path)) await chmod(join(this.#path, name), 0o600).catch(() => {})
  }

  async close (): Promise<void> {
    await this.#writing
    await this.#db.close()
  }

  async #writeAll (): Promise<void> {
    while (this.#waiting.length > 0) {
      await undefined // all that is asked for in this turn goes together
      const together = this.#waiting
      this.#waiting = []
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
  async #write (changes: Change[]): Promise<void> {
    if (Date.now() < this.#brokenUntil) throw new Failure('store-full')
    try {
      if (this.#brokenUntil > 0) {
        await this.#db.close()
        this.#db = await openDatabase(this.#path, this.#damaged)
      }
      await this.#db.batch(changes.map(toOperation), { sync: true })
      this.#brokenUntil = 0
    } catch (error) {
      this.#brokenUntil = Date.now() + REOPEN_AFTER
      throw error
    }
  }

  #believe (key: string, record: Uint8Array): Uint8Array | undefined {
    const value = record.subarray(CHECKSUM)
    if (record.length >= CHECKSUM && new DataView(record.buffer, record.byteOffset).getUint32(0) === checksumOf(key, value)) return value
    this.#damaged({ key, reason: 'the checksum does not fit' })
    return undefined
  }
}

async function openDatabase (path: string, damaged: (damage: Damage) => void): Promise<ClassicLevel<string, Uint8Array>> {
  const db = new ClassicLevel<string, Uint8Array>(path, { keyEncoding: 'utf8', valueEncoding: 'view' })
  try {
    await db.open()
  } catch (error) {
    const { cause } = error as { cause: Error & { code?: string } }
    if (cause.code === 'LEVEL_LOCKED') throw new Error(`The folder "${path}" is in use by another process`, { cause: error })
    if (cause.code !== 'LEVEL_CORRUPTION') throw error
    damaged({ key: '', reason: cause.message })
    await ClassicLevel.repair(path)
    await db.open()
  }
  return db
}

function toOperation ({ key, value }: Change): { type: 'put', key: string, value: Uint8Array } | { type: 'del', key: string } {
  if (!value) return { type: 'del', key }
  const record = Buffer.allocUnsafe(CHECKSUM + value.length)
  record.writeUInt32BE(checksumOf(key, value))
  record.set(value, CHECKSUM)
  return { type: 'put', key, value: record }
}

/** Over the key too, so that a record in the place of another is found out. */
function checksumOf (key: string, value: Uint8Array): number {
  return crc32(value, crc32(key))
}
