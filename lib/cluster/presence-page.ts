import { isListed, type ListPage, type Owner, type Presence } from './backplane.ts'

/** A page of the devices of one node, which come in the order of ids. */
export function pageOf (devices: Iterable<{ presence: Presence, owner: Owner }>, { limit, topic }: ListPage): Presence[] {
  const page: Presence[] = []
  for (const { presence, owner } of devices) {
    if (page.length === limit) break
    if (isListed(presence.deviceId) && (topic === undefined || owner.listensTo(topic))) page.push(presence)
  }
  return page
}

/** One page from those of several nodes. A node may still list a device that another has taken over. */
export function mergedPage (pages: Presence[][], limit: number): Presence[] {
  const found = new Map<string, Presence>()
  for (const presence of pages.flat()) {
    const other = found.get(presence.deviceId)
    if (!other || other.generation < presence.generation) found.set(presence.deviceId, presence)
  }
  return [...found.values()].toSorted((one, other) => one.deviceId < other.deviceId ? -1 : 1).slice(0, limit)
}
