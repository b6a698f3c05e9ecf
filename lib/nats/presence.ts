import { isListed, type ListPage, type Presence } from '../cluster/backplane.ts'
import { mergedPage, pageOf } from '../cluster/presence-page.ts'
import type { Link } from './link.ts'
import type { Membership } from './membership.ts'
import { ownerRecordOf, presenceOf } from './owner-record.ts'
import type { OwnershipTable } from './ownership.ts'
import type { StreamStore, StoredRecord } from './stream-store.ts'
import { recordSubject, textOf } from './subjects.ts'
import { decode, encode } from '../cluster/encoding.ts'

/** Time for a node to answer, which a stuck one exceeds. */
const LIST_TIMEOUT_MS = 250
/** Devices that fit into one message between nodes. */
const MAX_PAGE = 1_000

/** Lists the connected devices of all nodes that are alive. */
export class PresenceList {
  readonly #nodes: Membership
  readonly #records: StreamStore
  readonly #owners: OwnershipTable

  constructor (link: Link, nodes: Membership, records: StreamStore, owners: OwnershipTable) {
    this.#nodes = nodes
    this.#records = records
    this.#owners = owners
    link.subscribe(listSubject(nodes.self), message => link.reply(message, encode(this.#localPage(decode(message.data)))))
  }

  async list ({ limit, after, ...filter }: ListPage): Promise<Presence[]> {
    const found: Presence[] = []
    while (found.length < limit) {
      const size = Math.min(limit - found.length, MAX_PAGE)
      const page = await this.#page({ limit: size, after: found.at(-1)?.deviceId ?? after, ...filter })
      found.push(...page)
      if (page.length < size) break
    }
    return found
  }

  /**
   * Asks each node for its own devices, which it has in order and with their topics. Reads the bucket if a node does not answer: that has all devices,
   * but must be read as a whole.
   */
  async #page (page: ListPage): Promise<Presence[]> {
    const request = encode(page)
    const answers = await Promise.all((await this.#nodes.everyone()).map(node => this.#ask(node, request)))
    if (page.topic === undefined && answers.includes(undefined)) return await this.#pageFromRecords(page)
    return mergedPage(answers.map(answer => answer ?? []), page.limit)
  }

  async #pageFromRecords ({ limit, after = '', prefix = '' }: ListPage): Promise<Presence[]> {
    const ids = (await recordedIds(this.#records)).filter(id => id > after && id.startsWith(prefix) && isListed(id))
    const found: Presence[] = []
    while (found.length < limit && ids.length > 0) {
      for (const stored of await ownerRecords(this.#records, ids.splice(0, limit - found.length))) {
        if (this.#nodes.alive(ownerRecordOf(stored).home)) found.push(presenceOf(stored))
      }
    }
    return found
  }

  async #ask (node: string, request: Uint8Array): Promise<Presence[] | undefined> {
    const answer = await this.#nodes.ask(node, listSubject(node), request, LIST_TIMEOUT_MS)
    return answer && decode(answer.data)
  }

  #localPage (page: ListPage): Presence[] {
    return pageOf(this.#owners.after(page.after ?? '', page.prefix), page)
  }
}

const listSubject = (node: string): string => `node.${node}.list`

/** The ids that have a record, sorted. */
export async function recordedIds (records: StreamStore): Promise<string[]> {
  const subjects = Object.keys(await records.subjects('*'))
  return subjects.map(subject => textOf(subject.split('.').at(-1)!)).toSorted()
}

/** The records of these ids, without those erased meanwhile. */
export async function ownerRecords (records: StreamStore, ids: string[]): Promise<StoredRecord[]> {
  const found = await Promise.all(ids.map(id => records.last(recordSubject(id))))
  return found.filter(stored => stored !== undefined)
}
