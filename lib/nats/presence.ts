import { isListed, type ListPage, type Presence } from '../cluster/backplane.ts'
import type { Link } from './link.ts'
import type { Membership } from './membership.ts'
import { ownerRecordOf, presenceOf } from './owner-record.ts'
import type { OwnershipTable } from './ownership.ts'
import type { StreamStore, StoredRecord } from './stream-store.ts'
import { recordSubject, textOf } from './subjects.ts'
import { decode, encode } from './encoding.ts'

/** How long a node that is stuck is waited for. */
const LIST_TIMEOUT_MS = 250
/** Devices that one message between nodes has room for. */
const MAX_PAGE = 1_000

/** Who is connected, on all nodes: as those say that live. */
export class PresenceList {
  readonly #nodes: Membership
  readonly #records: StreamStore
  readonly #owners: OwnershipTable

  constructor (link: Link, nodes: Membership, records: StreamStore, owners: OwnershipTable) {
    this.#nodes = nodes
    this.#records = records
    this.#owners = owners
    link.subscribe(listSubject(nodes.self), message => link.reply(message, encode(this.#here(decode(message.data)))))
  }

  async list ({ limit, after, topic }: ListPage): Promise<Presence[]> {
    const found: Presence[] = []
    while (found.length < limit) {
      const size = Math.min(limit - found.length, MAX_PAGE)
      const page = await this.#page({ limit: size, after: found.at(-1)?.deviceId ?? after, topic })
      found.push(...page)
      if (page.length < size) break
    }
    return found
  }

  /** Each node knows its own devices in order, and what they listen to. The bucket knows all of them, but has to be read as a whole. */
  async #page (page: ListPage): Promise<Presence[]> {
    const question = encode(page)
    const answers = await Promise.all((await this.#nodes.everyone()).map(node => this.#ask(node, question)))
    if (page.topic === undefined && answers.includes(undefined)) return await this.#recorded(page)
    const found = new Map<string, Presence>()
    for (const presence of answers.flatMap(answer => answer ?? [])) {
      // a node that is about to lose a device may list it still
      const other = found.get(presence.deviceId)
      if (!other || other.generation < presence.generation) found.set(presence.deviceId, presence)
    }
    return [...found.values()].toSorted((one, other) => one.deviceId < other.deviceId ? -1 : 1).slice(0, page.limit)
  }

  async #recorded ({ limit, after = '' }: ListPage): Promise<Presence[]> {
    const ids = (await recordedIds(this.#records)).filter(id => id > after && isListed(id))
    const found: Presence[] = []
    while (found.length < limit && ids.length > 0) {
      for (const stored of await ownerRecords(this.#records, ids.splice(0, limit - found.length))) {
        if (this.#nodes.alive(ownerRecordOf(stored).home)) found.push(presenceOf(stored))
      }
    }
    return found
  }

  async #ask (node: string, question: Uint8Array): Promise<Presence[] | undefined> {
    const answer = await this.#nodes.ask(node, listSubject(node), question, LIST_TIMEOUT_MS)
    return answer && decode(answer.data)
  }

  #here ({ limit, after = '', topic }: ListPage): Presence[] {
    const page: Presence[] = []
    for (const { presence, owner } of this.#owners.after(after)) {
      if (page.length === limit) break
      if (isListed(presence.deviceId) && (topic === undefined || owner.listensTo(topic))) page.push(presence)
    }
    return page
  }
}

const listSubject = (node: string): string => `node.${node}.list`

/** The ids that there are records of, in their order. */
export async function recordedIds (records: StreamStore): Promise<string[]> {
  const subjects = Object.keys(await records.subjects('*'))
  return subjects.map(subject => textOf(subject.split('.').at(-1)!)).toSorted()
}

/** The records of these ids, where there still are any. */
export async function ownerRecords (records: StreamStore, ids: string[]): Promise<StoredRecord[]> {
  const found = await Promise.all(ids.map(id => records.last(recordSubject(id))))
  return found.filter(stored => stored !== undefined)
}
