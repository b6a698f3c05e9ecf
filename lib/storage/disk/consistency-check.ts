import type { Damage } from './damage.ts'
import type { Journal } from './journal.ts'
import { decodeEntry, decodePlace, dueItem, dueList, entryKey, fillIn, lostOf, placeKey, type Entry } from './schema.ts'

export interface CheckOptions {
  journal: Journal
  dueAt: (entry: Entry) => number
  damaged: (damage: Damage) => void
}

const ITEMS_PER_WRITE = 1_000

/**
 * Compares every entry with its place, and mends differences. Both are written in one batch, so if one of them is missing it was lost to damage.
 * Resolves with the highest position.
 */
export async function checkEntries ({ journal, dueAt, damaged }: CheckOptions): Promise<number> {
  const save = (deviceId: string, entry: Entry) => journal.write(batch => fillIn(batch, entryKey(deviceId, entry.id), deviceId, entry, dueAt(entry)))
  const mend = async (key: string, mended: () => Promise<void>) => {
    damaged({ key, reason: 'the record is missing or left over' })
    await mended()
  }
  const placed = new Set<number>()
  for await (const [key, value] of journal.range('l!', 'l"')) {
    const { deviceId, position, id } = decodePlace(key, value)
    const found = journal.read(entryKey(deviceId, id))
    const entry = found && decodeEntry(entryKey(deviceId, id), found).entry
    if (!entry) await mend(entryKey(deviceId, id), () => save(deviceId, lostOf(id, position)))
    else if (entry.status === 'queued' && entry.position === position) placed.add(position)
    else await mend(key, () => journal.write(batch => batch.del(key)))
  }
  let highest = 0
  for await (const [key, value] of journal.range('r!', 'r"')) {
    const { deviceId, entry } = decodeEntry(key, value)
    highest = Math.max(highest, entry.position)
    if (!journal.read(key)) await mend(key, () => journal.write(batch => batch.put(key, value)))
    if (entry.status === 'queued' && !placed.has(entry.position)) await mend(placeKey(deviceId, entry.position), () => save(deviceId, entry))
  }
  return highest
}

/** Replaces all lists of what is due with new ones, because a list was lost. */
export async function relist ({ journal, dueAt }: Omit<CheckOptions, 'damaged'>): Promise<void> {
  const lists = await journal.keys('d!', 'd"')
  let items: Array<[list: string, item: string]> = []
  const write = () => journal.write(batch => { for (const [list, item] of items) batch.list(list, item) })
  for await (const [key, value] of journal.range('r!', 'r"')) {
    const { deviceId, entry } = decodeEntry(key, value)
    if (items.push([dueList(dueAt(entry)), dueItem(deviceId, entry.id)]) < ITEMS_PER_WRITE) continue
    await write()
    items = []
  }
  await write()
  await journal.write(batch => { for (const list of lists) batch.del(list) })
}
