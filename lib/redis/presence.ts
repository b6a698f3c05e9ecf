import type { ListPage, Presence } from '../cluster/backplane.ts'
import { mergedPage, pageOf } from '../cluster/presence-page.ts'
import { listScript, nodesScript } from './backplane-scripts.ts'
import type { Link } from './link.ts'
import type { OwnershipTable } from './ownership.ts'
import type { Requests } from './requests.ts'

/** Time for a node to answer, which a stuck one exceeds. */
const LIST_TIMEOUT_MS = 250
/** Devices that are read in one step. */
const MAX_PAGE = 1_000
const RECORD = /^(?<generation>\d+) \S+ \d+ \d+ (?<since>\S+) \d+ (?<node>.*)$/s

/** A character that follows all those of device ids. */
const BEYOND_IDS = '\u007F'

interface Page {
  devices: Presence[]
  /** The last id that was read, if there may be more. */
  last: string | undefined
}

/** Lists the connected devices of all nodes that are alive. */
export class PresenceList {
  readonly #link: Link
  readonly #owners: OwnershipTable
  readonly #requests: Requests
  readonly #self: string

  constructor (link: Link, owners: OwnershipTable, requests: Requests, self: string) {
    this.#link = link
    this.#owners = owners
    this.#requests = requests
    this.#self = self
  }

  async list ({ limit, after, ...filter }: ListPage): Promise<Presence[]> {
    const found: Presence[] = []
    while (found.length < limit) {
      const page = { limit: Math.min(limit - found.length, MAX_PAGE), after, ...filter }
      const { devices, last } = filter.topic === undefined ? await this.#fromRecords(page) : await this.#fromNodes(page)
      found.push(...devices)
      if (last === undefined) break
      after = last
    }
    return found
  }

  /** Those of this node. */
  local (page: ListPage): Presence[] {
    return pageOf(this.#owners.after(page.after ?? '', page.prefix), page)
  }

  async #fromRecords ({ limit, after = '', prefix = '' }: ListPage): Promise<Page> {
    const from = after < prefix ? `[${prefix}` : `(${after}`
    const to = prefix === '' ? '+' : `(${prefix}${BEYOND_IDS}`
    const [last, ...records] = (await this.#link.run(listScript, ['owners', 'index', 'nodes'], [from, to, limit]) as Buffer[]).map(String) as [string, ...string[]]
    const devices: Presence[] = []
    for (let at = 0; at < records.length; at += 2) devices.push(presenceOf(records[at]!, records[at + 1]!))
    return { devices, last: last === '' ? undefined : last }
  }

  /** Only the node of a device knows its topics. */
  async #fromNodes (page: ListPage): Promise<Page> {
    const nodes = (await this.#link.run(nodesScript, ['nodes'], []) as Buffer[]).map(String)
    const replies = await Promise.all(nodes.map(node => {
      return this.#requests.askNode(node, nonce => ({ type: 'list', from: this.#self, nonce, page }), LIST_TIMEOUT_MS)
    }))
    const devices = mergedPage(replies.map(reply => typeof reply === 'object' && 'page' in reply ? reply.page : []), page.limit)
    return { devices, last: devices.length < page.limit ? undefined : devices.at(-1)!.deviceId }
  }
}

function presenceOf (deviceId: string, record: string): Presence {
  const { generation, since, node } = RECORD.exec(record)!.groups as Record<'generation' | 'since' | 'node', string>
  return { deviceId, node, generation: Number(generation), since: Number(since) }
}
