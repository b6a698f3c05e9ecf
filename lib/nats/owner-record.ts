import type { Presence } from '../cluster/backplane.ts'
import type { StoredRecord } from './stream-store.ts'
import { textOf } from './subjects.ts'

/** The owner of a device, as stored in the bucket. */
export interface OwnerRecord extends Presence {
  /** The node; it has a new id after each start. */
  home: string
  /** The connection. */
  claim: string
  /** The generation of the record that it replaced; 0: there was none. NATS may accept two records after the same one, and may write one of them late. */
  after: number
}

export function ownerRecordOf ({ subject, seq, data }: StoredRecord): OwnerRecord {
  const content = JSON.parse(Buffer.from(data).toString())
  return { deviceId: textOf(subject.split('.').at(-1)!), generation: seq, ...content }
}

export function presenceOf (stored: StoredRecord): Presence {
  const { deviceId, node, generation, since } = ownerRecordOf(stored)
  return { deviceId, node, generation, since }
}

/** Whether the record is that of this very connection. */
export function hasClaim (stored: StoredRecord | undefined, { claim }: Pick<OwnerRecord, 'claim'>): boolean {
  return stored !== undefined && ownerRecordOf(stored).claim === claim
}
