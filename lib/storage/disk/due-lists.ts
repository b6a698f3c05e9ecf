import type { Journal } from './journal.ts'
import { decodeDue, dueList, dueUntil, type Entry } from './schema.ts'

/** Lists that are due, and their items. */
export interface DueLists {
  keys: string[]
  items: Array<{ list: string, deviceId: string, letterId: string }>
}

/** Items that are ended in one batch. */
const ITEMS_PER_GROUP = 250
/** Batches that are written concurrently. */
const GROUPS_AT_ONCE = 8

/** The lists up to a time, in groups of which each is ended in one batch; several groups at a time. */
export async function * dueLists (journal: Journal, now: number): AsyncGenerator<DueLists[]> {
  let groups: DueLists[] = []
  for await (const group of groupsOf(journal, now)) {
    groups.push(group)
    if (groups.length < GROUPS_AT_ONCE) continue
    yield groups
    groups = []
  }
  if (groups.length > 0) yield groups
}

async function * groupsOf (journal: Journal, now: number): AsyncGenerator<DueLists> {
  let group: DueLists = { keys: [], items: [] }
  for await (const [list, value] of journal.range(...dueUntil(now))) {
    group.keys.push(list)
    for (const [deviceId, letterId] of decodeDue(value)) group.items.push({ list, deviceId, letterId })
    if (group.items.length < ITEMS_PER_GROUP) continue
    yield group
    group = { keys: [], items: [] }
  }
  if (group.keys.length > 0) yield group
}

/** An ended letter is still in the list of its expiry; its receipt is in another list, unless both are due in the same slot. */
export function isListedElsewhere ({ status, expiresAt }: Entry, list: string, at: number): boolean {
  return status !== 'queued' && list.startsWith(dueList(expiresAt)) && !list.startsWith(dueList(at))
}
