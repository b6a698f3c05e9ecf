import { readFile } from 'node:fs/promises'
import { basename, join } from 'node:path'
import type { Damage } from './damage.ts'
import { databaseIn, isDamage, type Database } from './database.ts'
import { mend } from './mend.ts'
import { isSalvaging } from './salvage.ts'

export interface DatabaseOptions {
  /** Nothing was written yet. */
  isNew?: boolean
  /** LevelDB has met damage in its files. */
  isCorrupt?: boolean
  /** It has met damage soon after a repair. */
  isRepaired?: boolean
  /** The last processes ended soon after they were started. */
  isCheckDue?: boolean
  damaged: (damage: Damage) => void
}

/** Opens the database in a locked folder. Damage that LevelDB notices is mended and reported; so is what a damaged log has lost. */
export async function openDatabase (path: string, options: DatabaseOptions): Promise<Database> {
  const { isNew = false, isCorrupt = false, isRepaired = false, isCheckDue = false, damaged } = options
  if (isCorrupt || isCheckDue || await isSalvaging(path)) await mend(path, { isCorrupt, isRepaired, damaged })
  const db = databaseIn(path, isNew)
  try {
    await db.open()
  } catch (error) {
    const { cause } = error as { cause: Error }
    const { message } = cause
    if (!isDamage(cause) && (isNew || !/No such file/.test(message))) throw new Error(`The folder "${path}" cannot be opened: ${message}`, { cause: error })
    damaged({ key: path, reason: message })
    await mend(path, { isCorrupt: true, isRepaired, damaged })
    await db.open()
  }
  for (const loss of await lossesOf(path)) damaged(loss)
  return db
}

/** LevelDB skips the parts of its logs that it cannot read, and reports them only in a log file of its own. */
async function lossesOf (path: string): Promise<Damage[]> {
  const log = await readFile(join(path, 'LOG'), 'latin1')
  return [...log.matchAll(/(\S+): (dropping \d+ bytes; .*)$/gm)].map(([, file, reason]) => ({ key: basename(file!), reason: reason! }))
}
