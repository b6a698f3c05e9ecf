import { readdir, readFile, stat, statfs } from 'node:fs/promises'
import { basename, join } from 'node:path'
import { ClassicLevel } from 'classic-level'
import type { Damage } from './damage.ts'
import { mendTables } from './tables.ts'

export type Database = ClassicLevel<string, Uint8Array>

export interface DatabaseOptions {
  /** Nothing was written yet. */
  isNew?: boolean
  /** Something was found that cannot be read. */
  isCorrupt?: boolean
  damaged: (damage: Damage) => void
}

const WRITE_BUFFER = 16_777_216
export const CORRUPT = 'LEVEL_CORRUPTION'
/** Before and behind all keys. */
export const BEGIN = '!'
export const END = '\uffff'

/** Opens the database in a folder that is locked. Damage is mended first, and told; so is what a damaged log has lost. */
export async function openDatabase (path: string, { isNew = false, isCorrupt = false, damaged }: DatabaseOptions): Promise<Database> {
  let mending = await mendTables(path, damaged) || isCorrupt
  if (mending) await repair(path)
  // what is compressed could not be looked at block by block
  const db: Database = new ClassicLevel(path, { keyEncoding: 'utf8', valueEncoding: 'view', createIfMissing: isNew, compression: false, writeBufferSize: WRITE_BUFFER })
  try {
    await db.open()
  } catch (error) {
    const { code, message } = (error as { cause: Error & { code: string } }).cause
    const isTorn = code === CORRUPT || (!isNew && /No such file/.test(message))
    if (!isTorn) throw new Error(`The folder "${path}" cannot be opened: ${message}`, { cause: error })
    damaged({ key: path, reason: message })
    await repair(path)
    await db.open()
    mending = true
  }
  for (const loss of await lossesOf(path)) damaged(loss)
  if (mending) await db.compactRange(BEGIN, END) // a repair compresses what it writes
  return db
}

/** What the database is made of is written anew; without the room for that it would be lost. */
async function repair (path: string): Promise<void> {
  const { bavail, bsize } = await statfs(path)
  let size = 0
  for (const name of await readdir(path)) size += (await stat(join(path, name))).size
  if (bavail * bsize < size) throw new Error(`The folder "${path}" is damaged, and the disk is too full to mend it: ${size} bytes are needed`)
  await ClassicLevel.repair(path)
}

/** The database passes over what it cannot read of its logs, and says so in its own log only. */
async function lossesOf (path: string): Promise<Damage[]> {
  const log = await readFile(join(path, 'LOG'), 'latin1')
  return [...log.matchAll(/(\S+): (dropping \d+ bytes; .*)$/gm)].map(([, file, reason]) => ({ key: basename(file!), reason: reason! }))
}
