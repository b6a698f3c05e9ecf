import { randomBytes } from 'node:crypto'
import type { Owner } from '../cluster/backplane.ts'
import { ownerRecordOf, type OwnerRecord } from './owner-record.ts'
import type { StoredRecord } from './stream-store.ts'

/** A connection of this node that owns a device, or is about to. */
export class OwnedDevice {
  readonly deviceId: string
  readonly owner: Owner
  readonly claim = randomBytes(9).toString('base64url')
  generation = 0
  /** Whether its record is in the bucket. Once written, the generation is the position of the record. */
  record: 'none' | 'unknown' | 'written' = 'none'
  /** `new` replaces every older owner; `provisional` came while the bucket was unreachable. */
  state: 'new' | 'provisional' | 'owned' | 'lost' = 'new'
  /** The epoch in which it was last compared with its record, see `OwnershipTable.#epoch`. */
  verifiedEpoch = -1
  /** Number of demands to compare it with its record. One that comes during a comparison needs another comparison. */
  invalidations = 0
  /** The comparison that is under way. */
  comparison: Promise<boolean> | undefined

  constructor (deviceId: string, owner: Owner) {
    this.deviceId = deviceId
    this.owner = owner
  }
}

/** The content of its record; the device and the generation are the subject and the position. */
export function contentOf ({ owner, claim }: OwnedDevice, home: string, older: StoredRecord | undefined): Omit<OwnerRecord, 'generation' | 'deviceId'> {
  const { node, since } = owner.presence
  return { node, since, home, claim, after: older?.seq ?? 0 }
}

/** Whether the newer connection of this record came without knowing of this one: nobody has asked its device whether it is alive. */
export function isUnaware ({ state, generation }: OwnedDevice, found: StoredRecord | undefined): boolean {
  return state === 'provisional' || (state === 'owned' && ownerRecordOf(found!).after < generation)
}

/** Whether the connection may replace this record. A new one replaces every record, a provisional one only those of connections that are older. */
export function mayReplace ({ state, owner, generation }: OwnedDevice, found: StoredRecord | undefined): boolean {
  const { since } = owner.presence
  const other = found && ownerRecordOf(found)
  switch (state) {
    case 'new': return true
    case 'provisional': return !other || other.since <= since
    // no record: another node took this one for dead and erased it. `after`: the other connection had not seen the record of this one.
    // `generation`: NATS went back to an earlier state
    case 'owned': return !other || (other.after < generation && other.since < since) || (other.generation < generation && other.since <= since)
    case 'lost': return false
  }
}
