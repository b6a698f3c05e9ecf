import { spawn } from 'node:child_process'
import { once } from 'node:events'
import { readdir, readFile, stat, statfs } from 'node:fs/promises'
import { createRequire } from 'node:module'
import { join } from 'node:path'
import { text } from 'node:stream/consumers'
import type { Damage } from './damage.ts'
import { isSalvaging, salvage } from './salvage.ts'

export interface MendOptions {
  /** LevelDB has met damage; if not, its last process ended while it merged files. */
  isCorrupt: boolean
  damaged: (damage: Damage) => void
}

/** What LevelDB is to do in a process of its own. */
type Step = 'repair' | 'merge'

/** Ends with its parent, so that two processes never work on one folder. */
const SCRIPT = `
const [, module, path, ...steps] = process.argv
const { ClassicLevel } = require(module)
process.stdin.resume().on('end', () => process.exit(1))
const run = {
  repair: () => ClassicLevel.repair(path),
  async merge () {
    const db = new ClassicLevel(path, { createIfMissing: false, compression: false })
    try { await db.open() } catch { return } // the parent meets the same error
    await db.compactRange('!', '\\uffff')
    await db.close()
  }
}
const work = async () => { for (const step of steps) await run[step]() }
work().then(() => process.exit(0), error => {
  process.stderr.write(error.message, () => process.exit(1))
})`

const FAILED = 1

/** Whether the last process ended while LevelDB merged files, or while they were mended: it may do so again. */
export async function isMendNeeded (path: string): Promise<boolean> {
  if (await isSalvaging(path)) return true
  const log = await readFile(join(path, 'LOG'), 'latin1').catch(() => '')
  return log.lastIndexOf('Compacting ') > log.lastIndexOf('compacted to: ')
}

/**
 * Has LevelDB repair its files where it has met damage, and merge them. LevelDB checks no checksums while it merges, and ends its process over keys that
 * are not in order; so it does both in a process of its own. Files over which LevelDB ends that process are replaced by new ones with their readable records.
 */
export async function mend (path: string, { isCorrupt, damaged }: MendOptions): Promise<void> {
  if (!await isSalvaging(path)) {
    if (isCorrupt) await checkRoom(path)
    if (await runApart(path, isCorrupt ? ['repair', 'merge'] : ['merge'])) return
  }
  damaged({ key: path, reason: 'LevelDB ends the process over its files: their records are written to new ones' })
  await checkRoom(path)
  await salvage(path, copy => runApart(copy, ['repair']))
}

/** False: LevelDB has ended the process. */
async function runApart (path: string, steps: Step[]): Promise<boolean> {
  const module = createRequire(import.meta.url).resolve('classic-level')
  const child = spawn(process.execPath, ['-e', SCRIPT, module, path, ...steps], { stdio: ['pipe', 'ignore', 'pipe'] })
  const [[code], output] = await Promise.all([once(child, 'exit') as Promise<[number | null]>, text(child.stderr)])
  if (code === FAILED) throw new Error(`The folder "${path}" is damaged and cannot be mended: ${output}`)
  return code === 0
}

/** Mending writes the files anew; without enough room for that they would be lost. */
async function checkRoom (path: string): Promise<void> {
  const { bavail, bsize } = await statfs(path)
  let size = 0
  for (const name of await readdir(path)) size += (await stat(join(path, name))).size
  if (bavail * bsize < size) throw new Error(`The folder "${path}" is damaged, and the disk is too full to mend it: ${size} bytes are needed`)
}
