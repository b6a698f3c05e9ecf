import { spawn } from 'node:child_process'
import { once } from 'node:events'
import { readdir, stat, statfs } from 'node:fs/promises'
import { createRequire } from 'node:module'
import { join } from 'node:path'
import { createInterface } from 'node:readline'
import { text } from 'node:stream/consumers'
import type { Damage } from './damage.ts'
import { isSalvaging, salvage } from './salvage.ts'

export interface MendOptions {
  /** LevelDB has met damage. */
  isCorrupt: boolean
  /** LevelDB has met damage again, soon after it has repaired its files: some damage it passes over when it repairs. */
  isRepaired: boolean
  damaged: (damage: Damage) => void
}

/** What LevelDB is to do in a process of its own. `dump` writes each record as a line. */
type Step = 'repair' | 'merge' | 'dump' | 'dumpBackwards'

/** Ends with its parent, so that two processes never work on one folder. */
const SCRIPT = `
const [, module, path, ...steps] = process.argv
const { ClassicLevel } = require(module)
process.stdin.resume().on('end', () => process.exit(1))
async function opened (work) {
  const db = new ClassicLevel(path, { createIfMissing: false, compression: false, valueEncoding: 'buffer' })
  try { await db.open() } catch { return } // the parent meets the same error
  await work(db)
  await db.close()
}
async function dump (db, reverse) {
  try {
    for await (const [key, record] of db.iterator({ reverse, highWaterMarkBytes: 1 })) process.stdout.write(JSON.stringify([key, record.toString('base64')]) + '\\n')
  } catch {} // no more can be read
}
const run = {
  repair: () => ClassicLevel.repair(path),
  merge: () => opened(db => db.compactRange('!', '\\uffff')),
  dump: () => opened(db => dump(db, false)),
  dumpBackwards: () => opened(db => dump(db, true))
}
const work = async () => { for (const step of steps) await run[step]() }
work().then(() => process.stdout.write('', () => process.exit(0)), error => process.stderr.write(error.message, () => process.exit(1)))`

const FAILED = 1

/**
 * Has LevelDB repair its files where it has met damage, and merge them. LevelDB checks no checksums while it merges, and ends its process over keys that
 * are not in order; so it does both in a process of its own. Files over which LevelDB ends that process are replaced by new ones with their readable records.
 */
export async function mend (path: string, { isCorrupt, isRepaired, damaged }: MendOptions): Promise<void> {
  if (!isRepaired && !await isSalvaging(path)) {
    if (isCorrupt) await checkRoom(path)
    if (await runApart(path, isCorrupt ? ['repair', 'merge'] : ['merge'])) return
  }
  damaged({ key: path, reason: 'LevelDB cannot repair its files: their records are written to new ones' })
  await checkRoom(path)
  await salvage(path, dump)
}

/** Reads backwards first: forwards, LevelDB passes over all keys behind one that is out of order and greater. */
async function dump (path: string, add: (key: string, record: Uint8Array) => Promise<void>): Promise<void> {
  const addLine = async (line: string) => {
    const record = recordOf(line)
    if (record) await add(...record)
  }
  if (!await runApart(path, ['repair', 'dumpBackwards'], addLine)) await runApart(path, ['dump'], addLine)
}

/** Undefined if the process ended before it had written the line. */
export function recordOf (line: string): [key: string, record: Uint8Array] | undefined {
  if (!line.endsWith(']')) return undefined
  const [key, record] = JSON.parse(line) as [string, string]
  return [key, Buffer.from(record, 'base64')]
}

/** False: LevelDB has ended the process. */
async function runApart (path: string, steps: Step[], addLine?: (line: string) => Promise<void>): Promise<boolean> {
  const module = createRequire(import.meta.url).resolve('classic-level')
  const child = spawn(process.execPath, ['-e', SCRIPT, module, path, ...steps], { stdio: 'pipe' })
  const exited = once(child, 'exit') as Promise<[number | null]>
  const output = text(child.stderr)
  for await (const line of createInterface(child.stdout)) await addLine!(line)
  const [code] = await exited
  if (code === FAILED) throw new Error(`The folder "${path}" is damaged and cannot be mended: ${await output}`)
  return code === 0
}

/** Mending writes the files anew; without enough room for that they would be lost. */
async function checkRoom (path: string): Promise<void> {
  const { bavail, bsize } = await statfs(path)
  let size = 0
  for (const name of await readdir(path)) size += (await stat(join(path, name))).size
  if (bavail * bsize < size) throw new Error(`The folder "${path}" is damaged, and the disk is too full to mend it: ${size} bytes are needed`)
}
