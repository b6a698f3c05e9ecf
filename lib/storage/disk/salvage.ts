import { access, copyFile, mkdir, readdir, rename, rm } from 'node:fs/promises'
import { join } from 'node:path'
import { withChecksum, withoutChecksum } from './checksum.ts'
import { databaseIn, type Database } from './database.ts'
import { decodeEntry, encodePlace, placeKey, suspectKey, type Entry } from './schema.ts'

/** Reads the records of a database that may be damaged. */
export type Dump = (path: string, add: (key: string, record: Uint8Array) => Promise<void>) => Promise<void>

const DATABASE_FILE = /^(CURRENT|MANIFEST-.*|.*\.(ldb|log|dbtmp))$/
const RECORD_FILE = /\.(ldb|log)$/
const ENTRY_KEY = /^r!/
/** Places and lists of what is due, which can be derived from the entries. */
const DERIVED_KEY = /^[ld]!/

/** Whether an earlier process has begun to salvage the folder. */
export async function isSalvaging (path: string): Promise<boolean> {
  return await exists(join(path, 'torn')) || await exists(join(path, 'salvage'))
}

/**
 * Replaces the files of a database that LevelDB can neither repair nor merge. A copy of each becomes a database of its own, from which `dump` reads what it can, and
 * every record with a valid checksum is kept. Deletions are not kept, so a forgotten entry may come back. If the process ends meanwhile, the next one goes on.
 */
export async function salvage (path: string, dump: Dump): Promise<void> {
  const source = join(path, 'salvage')
  if (!await exists(source)) await takeOut(path, source)
  for (const name of await readdir(path)) if (DATABASE_FILE.test(name)) await rm(join(path, name))
  const db = databaseIn(path, true)
  await db.open()
  try {
    await fill(db, source, join(path, 'copy'), dump)
    await db.put(suspectKey, withChecksum(suspectKey, ''), { sync: true })
  } finally {
    await db.close()
  }
  await mkdir(join(path, 'lost'), { recursive: true, mode: 0o700 })
  await rename(source, join(path, 'lost', `salvage-${Date.now()}`))
}

async function fill (db: Database, source: string, copy: string, dump: Dump): Promise<void> {
  for (const name of (await readdir(source)).toSorted()) {
    await rm(copy, { recursive: true, force: true })
    await mkdir(copy, { mode: 0o700 })
    await copyFile(join(source, name), join(copy, name))
    await dump(copy, (key, record) => keep(db, key, record))
  }
  await rm(copy, { recursive: true, force: true })
  await addPlaces(db)
}

/** Moves the files with records away. The final name is given once all of them have been moved. */
async function takeOut (path: string, source: string): Promise<void> {
  const torn = join(path, 'torn')
  await mkdir(torn, { recursive: true, mode: 0o700 })
  for (const name of await readdir(path)) if (RECORD_FILE.test(name)) await rename(join(path, name), join(torn, name))
  await rename(torn, source)
}

async function keep (db: Database, key: string, record: Uint8Array): Promise<void> {
  const value = DERIVED_KEY.test(key) ? undefined : withoutChecksum(key, record)
  if (value && isNewer(key, value, await db.get(key))) await db.put(key, record)
}

/** A greater number is the newer one; so is an entry of a greater position, of a letter that has ended, or with more attempts. */
function isNewer (key: string, value: Uint8Array, record: Uint8Array | undefined): boolean {
  const other = record && withoutChecksum(key, record)
  if (!other) return true
  if (!ENTRY_KEY.test(key)) return Number(Buffer.from(value).toString()) > Number(Buffer.from(other).toString())
  const [entry, known] = [decodeEntry(key, value).entry, decodeEntry(key, other).entry]
  return (entry.position - known.position || Number(isEnded(entry)) - Number(isEnded(known)) || entry.attempts - known.attempts) > 0
}

function isEnded ({ status }: Entry): boolean {
  return status !== 'queued'
}

/** Writes the place of each waiting letter. */
async function addPlaces (db: Database): Promise<void> {
  for await (const [key, record] of db.iterator({ gte: 'r!', lt: 'r"' })) {
    const { deviceId, entry } = decodeEntry(key, withoutChecksum(key, record)!)
    if (isEnded(entry)) continue
    const place = placeKey(deviceId, entry.position)
    await db.put(place, withChecksum(place, encodePlace(entry)))
  }
}

async function exists (path: string): Promise<boolean> {
  return await access(path).then(() => true, () => false)
}
