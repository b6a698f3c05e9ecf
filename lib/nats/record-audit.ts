import type { PresenceChange } from '../cluster/backplane.ts'
import { ownerRecords, recordedIds } from './presence.ts'
import type { Link } from './link.ts'
import type { Membership } from './membership.ts'
import { hasClaim, ownerRecordOf, type OwnerRecord } from './owner-record.ts'
import type { OwnershipTable } from './ownership.ts'
import type { StreamStore } from './stream-store.ts'
import { recordSubject } from './subjects.ts'
import { decode, encode } from '../cluster/encoding.ts'

/** Records are read in batches: back to back after a node has died, slowly at all other times. */
const RECORDS_PER_STEP = 64
const STEP_INTERVAL_MS = 1_000
const PASS_INTERVAL_MS = 2_000
const RETRY_DELAY_MS = 500

/**
 * Compares all owner records with their nodes, on the leading node. Erases those of dead nodes; sends those of live nodes to them, and each
 * erases those of its records that belong to none of its connections.
 */
export class RecordAudit {
  readonly #link: Link
  readonly #nodes: Membership
  readonly #records: StreamStore
  readonly #publishChange: (change: PresenceChange) => void
  #timer: NodeJS.Timeout | undefined
  /** The ids still to read in this pass. */
  #ids: string[] = []
  /** A node has died, and some of its records may not be erased yet. */
  #isUrgent = false
  #isReading = false
  #isClosed = false
  #hasFailed = false

  constructor (link: Link, nodes: Membership, records: StreamStore, owners: OwnershipTable, publishChange: (change: PresenceChange) => void) {
    this.#link = link
    this.#nodes = nodes
    this.#records = records
    this.#publishChange = publishChange
    link.subscribe(auditSubject(nodes.self), message => { void this.#succeeds(() => owners.disown(decode(message.data))) })
    nodes.onDeath(() => this.#expedite())
    this.#schedule(PASS_INTERVAL_MS)
  }

  close (): void {
    this.#isClosed = true
    clearTimeout(this.#timer)
  }

  #expedite (): void {
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
    const isDone = this.#link.up && this.#nodes.leads && await this.#succeeds(() => this.#next())
    this.#isReading = false
    if (isDone && this.#ids.length === 0) this.#isUrgent = false
    if (this.#isUrgent) this.#schedule(isDone ? 0 : RETRY_DELAY_MS)
    else this.#schedule(this.#ids.length === 0 ? PASS_INTERVAL_MS : STEP_INTERVAL_MS)
  }

  async #next (): Promise<void> {
    if (this.#ids.length === 0) this.#ids = await recordedIds(this.#records)
    const found = (await ownerRecords(this.#records, this.#ids.splice(0, RECORDS_PER_STEP))).map(ownerRecordOf)
    const homes = byHome(found)
    for (const [home, records] of homes) {
      if (this.#nodes.alive(home)) this.#link.publish(auditSubject(home), encode(records))
      else await this.#eraseAll(home, records)
    }
  }

  /** One failure does not stop the others; the record is read again in the next pass. */
  async #eraseAll (home: string, records: OwnerRecord[]): Promise<void> {
    const outcomes = await Promise.allSettled(records.map(record => this.#erase(record)))
    if (this.#nodes.alive(home)) this.#nodes.warn(home) // the node is back
    const failed = outcomes.find(({ status }) => status === 'rejected')
    if (failed) throw (failed as PromiseRejectedResult).reason
  }

  /** The node that erases a record also publishes the change. */
  async #erase (record: OwnerRecord): Promise<void> {
    const { deviceId, node, generation, since } = record
    const erased = await this.#records.erase(recordSubject(deviceId), generation, found => hasClaim(found, record))
    if (erased) this.#publishChange({ kind: 'disconnected', presence: { deviceId, node, generation, since } })
  }

  /** Resolves with whether it succeeded. Repeated failures are reported once. */
  async #succeeds (work: () => Promise<void>): Promise<boolean> {
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
  for (const record of records) homes.set(record.home, [...homes.get(record.home) ?? [], record])
  return homes
}

const auditSubject = (node: string): string => `node.${node}.audit`
