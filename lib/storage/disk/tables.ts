import { mkdir, open, readdir, readFile, rename } from 'node:fs/promises'
import { join } from 'node:path'
import { crc32c } from './crc32c.ts'
import type { Damage } from './damage.ts'
import { readManifest } from './manifest.ts'
import { Varints, varintsOf } from './varints.ts'

/** Where a block is in its table. */
interface Handle {
  offset: number
  size: number
}

interface Indexed {
  handle: Handle
  /** The last key of the block, and its handle. */
  entry: Buffer
}

const FOOTER = 48
const RESTART_EVERY = 16
const MAGIC = 0xdb4775248b80fb57n
const TRAILER = 5
const PLAIN = 0
const LOST = 'lost'

/**
 * Looks at every block of the tables of a database that is closed, and takes the damaged ones out: LevelDB itself does not check them where it
 * merges tables, and ends the process over what it then finds. True: something was damaged, and the database must be repaired.
 */
export async function mendTables (path: string, damaged: (damage: Damage) => void): Promise<boolean> {
  const manifest = await readManifest(path)
  let mended = false
  if (manifest && !manifest.tables) {
    damaged({ key: manifest.name, reason: 'some of it is damaged or missing' })
    mended = true
  }
  for (const name of (await readdir(path)).filter(name => name.endsWith('.ldb'))) {
    if (manifest?.tables?.has(Number.parseInt(name, 10)) === false) continue // left over from what was cut short
    const reason = await mendTable(path, name)
    if (!reason) continue
    damaged({ key: name, reason })
    mended = true
  }
  return mended
}

/** What was wrong with a table. */
async function mendTable (path: string, name: string): Promise<string | undefined> {
  const bytes = await readFile(join(path, name))
  const table = new Table(bytes)
  if (table.isSound()) return undefined
  const blocks = table.soundBlocks()
  if (blocks.length > 0) {
    await replace(join(path, name), table.rebuilt(blocks))
    return 'some of the table cannot be read'
  }
  await mkdir(join(path, LOST), { recursive: true, mode: 0o700 })
  await rename(join(path, name), join(path, LOST, name))
  return 'the table cannot be read'
}

/** The file is there in full, or as it was. */
async function replace (path: string, bytes: Buffer): Promise<void> {
  const draft = `${path}.mended`
  const file = await open(draft, 'w', 0o600)
  await file.writeFile(bytes)
  await file.sync()
  await file.close()
  await rename(draft, path)
}

/** One table of LevelDB: blocks of records, a filter, an index of the blocks, and a footer that tells where these are. */
class Table {
  readonly #bytes: Buffer

  constructor (bytes: Buffer) {
    this.#bytes = bytes
  }

  isSound (): boolean {
    const footer = this.#footer()
    if (!footer || !this.#isSound(footer.filters) || !this.#isSound(footer.index)) return false
    if (!this.#isPlain(footer.index)) return true // as a repair leaves it, to be written anew
    return [...entriesOf(this.#at(footer.index)), ...entriesOf(this.#at(footer.filters))].every(({ handle }) => this.#isSound(handle))
  }

  /** The blocks that can be read, each with its entry for an index; without an index, those up to the first that cannot. */
  soundBlocks (): Indexed[] {
    const footer = this.#footer()
    if (footer && this.#isSound(footer.index)) return entriesOf(this.#at(footer.index)).filter(({ handle }) => this.#isSound(handle))
    const blocks: Indexed[] = []
    for (let offset = 0; offset < this.#bytes.length;) {
      const { end, last } = recordsFrom(this.#bytes, offset)
      const handle = { offset, size: end - offset }
      if (!this.#isSound(handle)) break
      blocks.push({ handle, entry: entryOf(last, handle) })
      offset = end + TRAILER
    }
    return blocks
  }

  /** The same without a filter, and with these blocks only. */
  rebuilt (blocks: Indexed[]): Buffer {
    const filters = blockOf([])
    const index = blockOf(blocks.map(({ entry }) => entry))
    const offset = this.#bytes.length
    const footer = Buffer.alloc(FOOTER)
    footer.set([...varintsOf(offset, filters.length - TRAILER), ...varintsOf(offset + filters.length, index.length - TRAILER)])
    footer.writeBigUInt64LE(MAGIC, FOOTER - 8)
    return Buffer.concat([this.#bytes, filters, index, footer])
  }

  #isSound ({ offset, size }: Handle): boolean {
    const end = offset + size
    return end + TRAILER <= this.#bytes.length && this.#bytes.readUInt32LE(end + 1) === crc32c(this.#bytes.subarray(offset, end + 1))
  }

  #isPlain ({ offset, size }: Handle): boolean {
    return this.#bytes[offset + size] === PLAIN
  }

  #at ({ offset, size }: Handle): Buffer {
    return this.#bytes.subarray(offset, offset + size)
  }

  #footer (): { filters: Handle, index: Handle } | undefined {
    const start = this.#bytes.length - FOOTER
    if (start < 0 || this.#bytes.readBigUInt64LE(start + FOOTER - 8) !== MAGIC) return undefined
    const reader = new Varints(this.#bytes, start)
    return { filters: handleOf(reader), index: handleOf(reader) }
  }
}

/** The entries of a block whose keys are whole, and whose values are handles: those of the index and of the filters are. */
function entriesOf (block: Buffer): Indexed[] {
  const end = block.length - 4 - 4 * block.readUInt32LE(block.length - 4)
  const entries = []
  for (let start = 0; start < end;) {
    const reader = new Varints(block, start)
    reader.next() // what the key shares with the one before: nothing
    const keyLength = reader.next()
    const valueLength = reader.next()
    const next = reader.at + keyLength + valueLength
    entries.push({ handle: handleOf(new Varints(block, reader.at + keyLength)), entry: block.subarray(start, next) })
    start = next
  }
  return entries
}

function handleOf (reader: Varints): Handle {
  return { offset: reader.next(), size: reader.next() }
}

/** An entry for an index, all of its key in it. */
function entryOf (key: Buffer, { offset, size }: Handle): Buffer {
  const handle = varintsOf(offset, size)
  return Buffer.concat([Buffer.from(varintsOf(0, key.length, handle.length)), key, Buffer.from(handle)])
}

/** Where a block that begins here ends, and its last key: no record adds nothing to the key before, and so that is where the records end. */
function recordsFrom (bytes: Buffer, offset: number): { end: number, last: Buffer } {
  const reader = new Varints(bytes, offset)
  let last = Buffer.alloc(0)
  let [start, records, own] = [offset, -1, 0]
  do {
    start = reader.at
    const shared = reader.next()
    own = reader.next()
    const length = reader.next()
    if (own > 0) last = Buffer.concat([last.subarray(0, shared), bytes.subarray(reader.at, reader.at + own)])
    reader.at += own + length
    records++
  } while (own > 0)
  return { end: start + 4 * (Math.ceil(records / RESTART_EVERY) + 1), last }
}

/** A block with its trailer, each entry a point from which it can be read. */
function blockOf (entries: Buffer[]): Buffer {
  const size = entries.reduce((sum, { length }) => sum + length, 0)
  const restarts = Math.max(entries.length, 1)
  const block = Buffer.alloc(size + 4 * (restarts + 1) + TRAILER)
  let at = 0
  for (const [number, entry] of entries.entries()) {
    block.writeUInt32LE(at, size + 4 * number)
    block.set(entry, at)
    at += entry.length
  }
  const end = block.length - TRAILER
  block.writeUInt32LE(restarts, end - 4)
  block[end] = PLAIN
  block.writeUInt32LE(crc32c(block.subarray(0, end + 1)), end + 1)
  return block
}
