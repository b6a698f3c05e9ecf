import { readFile } from 'node:fs/promises'
import { join } from 'node:path'
import { crc32c } from './crc32c.ts'
import { Varints } from './varints.ts'

const BLOCK = 32_768
const HEADER = 7
const FIRST = 2
const MIDDLE = 3

/** What an edit of the manifest tells, as far as it is told apart here. */
const tags = { comparator: 1, cursor: 5, deleted: 6, added: 7 }

/** The manifest of a LevelDB database, and the numbers of the tables that it names; others are left over, and LevelDB removes them. */
export async function readManifest (path: string): Promise<{ name: string, tables: Set<number> | undefined } | undefined> {
  try {
    const name = (await readFile(join(path, 'CURRENT'), 'latin1')).trim()
    const edits = editsIn(await readFile(join(path, name)))
    return { name, tables: edits && tablesOf(edits) }
  } catch { // there is no database yet, or LevelDB says what is wrong with it
    return undefined
  }
}

/** Undefined: some of it is damaged, or missing. */
function editsIn (bytes: Buffer): Buffer[] | undefined {
  const edits: Buffer[] = []
  let parts: Buffer[] = []
  for (let at = 0; at < bytes.length;) {
    if (BLOCK - at % BLOCK < HEADER) {
      at += BLOCK - at % BLOCK
      continue
    }
    if (at + HEADER > bytes.length) return undefined
    const end = at + HEADER + bytes.readUInt16LE(at + 4)
    const kind = bytes[at + 6]!
    if (end > bytes.length || bytes.readUInt32LE(at) !== crc32c(bytes.subarray(at + 6, end))) return undefined
    parts.push(bytes.subarray(at + HEADER, end))
    if (kind !== FIRST && kind !== MIDDLE) {
      edits.push(Buffer.concat(parts))
      parts = []
    }
    at = end
  }
  return parts.length === 0 ? edits : undefined
}

function tablesOf (edits: Buffer[]): Set<number> {
  const tables = new Set<number>()
  for (const edit of edits) {
    const reader = new Varints(edit)
    while (reader.at < edit.length) {
      const tag = reader.next()
      if (tag === tags.comparator) {
        reader.skip()
        continue
      }
      reader.next() // a level, or a number that is of no concern
      if (tag === tags.cursor) reader.skip()
      if (tag === tags.deleted) tables.delete(reader.next())
      if (tag !== tags.added) continue
      tables.add(reader.next())
      reader.next() // its size
      reader.skip() // its first key
      reader.skip() // and its last
    }
  }
  return tables
}
