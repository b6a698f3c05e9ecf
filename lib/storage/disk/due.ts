import type { Journal } from './journal.ts'
import { decodeDue, dueList, dueUntil, type Entry } from './schema.ts'

/** Lists whose time has come, and what they name. */
export interface DueLists {
  keys: string[]
  items: Array<{ list: string, deviceId: string, letterId: string }>
}

/** Items that are ended in one write. */
const TOGETHER = 250
/** Writes that go side by side. */
const SIDE_BY_SIDE = 8

/** The lists up to a time, in groups whose items are ended together, and some of these groups at a time. */
export async function * dueLists (journal: Journal, now: number): AsyncGenerator<DueLists[]> {
  let groups: DueLists[] = []
  for await (const group of groupsOf(journal, now)) {
    groups.push(group)
    if (groups.length < SIDE_BY_SIDE) continue
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
    if (group.items.length < TOGETHER) continue
    yield group
    group = { keys: [], items: [] }
  }
  if (group.keys.length > 0) yield group
}

/** The list of its expiry still has a letter that is done with; its receipt is in another, unless both are due in the same slot. */
export function isListedElsewhere ({ status, expiresAt }: Entry, list: string, at: number): boolean {
  return status !== 'queued' && list.startsWith(dueList(expiresAt)) && !list.startsWith(dueList(at))
}
