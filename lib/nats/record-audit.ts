import type { Change } from '../cluster/backplane.ts'
import { heldRecords, recordedIds } from './presence.ts'
import type { Link } from './link.ts'
import type { Nodes } from './membership.ts'
import { heldOf, isOf, recordOf, type Held, type Owners } from './ownership.ts'
import type { Records } from './stream-store.ts'
import { decode, encode } from './encoding.ts'

/** Records are read in batches: at once after a node has died, and slowly all the time. */
const BATCH = 64
const SLOWLY_MS = 1_000
const ROUND_MS = 2_000
const RETRY_MS = 500

/**
 * Compares all records with the nodes that hold them, on the node that leads. What a dead node left is erased; what a living one has
 * recorded is shown to it, and it erases what it does not hold.
 */
export class Audit {
  readonly #link: Link
  readonly #nodes: Nodes
  readonly #records: Records
  readonly #tell: (change: Change) => void
  #timer: NodeJS.Timeout | undefined
  /** Those of this round that are still to be read. */
  #ids: string[] = []
  /** A node has died, and its records are not all erased yet. */
  #isUrgent = false
  #isReading = false
  #isClosed = false
  #hasFailed = false

  constructor (link: Link, nodes: Nodes, records: Records, owners: Owners, tell: (change: Change) => void) {
    this.#link = link
    this.#nodes = nodes
    this.#records = records
    this.#tell = tell
    link.subscribe(auditOf(nodes.self), message => { void this.#guarded(() => owners.disown(decode(message.data))) })
    nodes.onDeath(() => this.#hurry())
    this.#schedule(ROUND_MS)
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
    if (this.#isUrgent) this.#schedule(isDone ? 0 : RETRY_MS)
    else this.#schedule(this.#ids.length === 0 ? ROUND_MS : SLOWLY_MS)
  }

  async #next (): Promise<void> {
    if (this.#ids.length === 0) this.#ids = await recordedIds(this.#records)
    const found = (await heldRecords(this.#records, this.#ids.splice(0, BATCH))).map(heldOf)
    const homes = byHome(found)
    for (const [home, records] of homes) {
      if (this.#nodes.alive(home)) this.#link.publish(auditOf(home), encode(records))
      else await this.#clear(home, records)
    }
  }

  /** Each on its own: one that fails holds up no other, and has its turn again in the next round. */
  async #clear (home: string, records: Held[]): Promise<void> {
    const outcomes = await Promise.allSettled(records.map(held => this.#erase(held)))
    if (this.#nodes.alive(home)) this.#nodes.warn(home) // it came back meanwhile
    const failed = outcomes.find(({ status }) => status === 'rejected')
    if (failed) throw (failed as PromiseRejectedResult).reason
  }

  /** The node that erases a record also publishes the change. */
  async #erase (held: Held): Promise<void> {
    const { deviceId, node, generation, since } = held
    const erased = await this.#records.erase(recordOf(deviceId), generation, found => isOf(found, held))
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
function byHome (records: Held[]): Map<string, Held[]> {
  const homes = new Map<string, Held[]>()
  for (const held of records) homes.set(held.home, [...homes.get(held.home) ?? [], held])
  return homes
}

const auditOf = (node: string): string => `node.${node}.audit`
