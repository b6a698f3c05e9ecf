import type { PresenceChange } from '../cluster/backplane.ts'
import { ownerRecords, recordedIds } from './presence.ts'
import type { Link } from './link.ts'
import type { Membership } from './membership.ts'
import { hasClaim, ownerRecordOf, type OwnerRecord } from './owner-record.ts'
import type { OwnershipTable } from './ownership.ts'
import type { StreamStore } from './stream-store.ts'
import { recordSubject } from './subjects.ts'
import { decode, encode } from './encoding.ts'

/** Records are read in batches: at once after a node has died, and slowly all the time. */
const RECORDS_PER_STEP = 64
const STEP_INTERVAL_MS = 1_000
const ROUND_INTERVAL_MS = 2_000
const RETRY_INTERVAL_MS = 500

/**
 * Compares all records with the nodes that hold them, on the node that leads. What a dead node left is erased; what a living one has
 * recorded is shown to it, and it erases what it does not hold.
 */
export class RecordAudit {
  readonly #link: Link
  readonly #nodes: Membership
  readonly #records: StreamStore
  readonly #tell: (change: PresenceChange) => void
  #timer: NodeJS.Timeout | undefined
  /** Those of this round that are still to be read. */
  #ids: string[] = []
  /** A node has died, and its records are not all erased yet. */
  #isUrgent = false
  #isReading = false
  #isClosed = false
  #hasFailed = false

  constructor (link: Link, nodes: Membership, records: StreamStore, owners: OwnershipTable, tell: (change: PresenceChange) => void) {
    this.#link = link
    this.#nodes = nodes
    this.#records = records
    this.#tell = tell
    link.subscribe(auditSubject(nodes.self), message => { void this.#guarded(() => owners.disown(decode(message.data))) })
    nodes.onDeath(() => this.#hurry())
    this.#schedule(ROUND_INTERVAL_MS)
  }

  close (): void {
    this.#isClosed = true
    clearTimeout(this.#timer)
  }

  #hurry (): void {
    this.#isUrgent = true
    this.#ids = []
    if (!this.#isReading) this.#schedule(0)
  }

  #schedule (milliseconds: number): void {
    clearTimeout(this.#timer)
    if (!this.#isClosed) this.#timer = setTimeout(() => void this.#step(), milliseconds).unref()
  }

  async #step (): Promise<void> {
    this.#isReading = true
    const isDone = this.#link.up && this.#nodes.leads && await this.#guarded(() => this.#next())
    this.#isReading = false
    if (isDone && this.#ids.length === 0) this.#isUrgent = false
    if (this.#isUrgent) this.#schedule(isDone ? 0 : RETRY_INTERVAL_MS)
    else this.#schedule(this.#ids.length === 0 ? ROUND_INTERVAL_MS : STEP_INTERVAL_MS)
  }

  async #next (): Promise<void> {
    if (this.#ids.length === 0) this.#ids = await recordedIds(this.#records)
    const found = (await ownerRecords(this.#records, this.#ids.splice(0, RECORDS_PER_STEP))).map(ownerRecordOf)
    const homes = byHome(found)
    for (const [home, records] of homes) {
      if (this.#nodes.alive(home)) this.#link.publish(auditSubject(home), encode(records))
      else await this.#clear(home, records)
    }
  }

  /** Each on its own: one that fails holds up no other, and has its turn again in the next round. */
  async #clear (home: string, records: OwnerRecord[]): Promise<void> {
    const outcomes = await Promise.allSettled(records.map(held => this.#erase(held)))
    if (this.#nodes.alive(home)) this.#nodes.warn(home) // it came back meanwhile
    const failed = outcomes.find(({ status }) => status === 'rejected')
    if (failed) throw (failed as PromiseRejectedResult).reason
  }

  /** The node that erases a record also publishes the change. */
  async #erase (held: OwnerRecord): Promise<void> {
    const { deviceId, node, generation, since } = held
    const erased = await this.#records.erase(recordSubject(deviceId), generation, found => hasClaim(found, held))
    if (erased) this.#tell({ kind: 'disconnected', presence: { deviceId, node, generation, since } })
  }

  /** Resolves with whether it succeeded. Repeated failures are reported once. */
  async #guarded (work: () => Promise<void>): Promise<boolean> {
    try {
      await work()
      this.#hasFailed = false
      return true
    } catch (error) {
      if (!this.#hasFailed) this.#link.trouble(error)
      this.#hasFailed = true
      return false
    }
  }
}

/** The records of each node. */
function byHome (records: OwnerRecord[]): Map<string, OwnerRecord[]> {
  const homes = new Map<string, OwnerRecord[]>()
  for (const held of records) homes.set(held.home, [...homes.get(held.home) ?? [], held])
  return homes
}

const auditSubject = (node: string): string => `node.${node}.audit`
