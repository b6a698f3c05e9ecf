import type { MailboxLimits, StoredLetter, Receipt } from '../storage/mailbox.ts'
import type { StoredRecord } from './stream-store.ts'
import { token } from './subjects.ts'

/** What is written with a letter. All times that are written are those of NATS. */
export interface LetterHeader extends Omit<Receipt, 'status'> {
  isText: boolean
  /** What waited for the device when it had been put, at most. */
  box: MailboxLimits
}

/** What is known of a letter that waits, by its id. */
export interface LetterEntry extends Receipt {
  position: number
  strikes: number
}

/** What is known of a letter that is done with, by its id. */
export interface ReceiptRecord extends Receipt {
  /** The mailbox, from its opening to its end, that settled it. */
  by: string
}

export function keyOf (deviceId: string, letterId: string): string {
  return `${token(deviceId)}.${token(letterId)}`
}

export function entryOf ({ isText, box, ...letter }: LetterHeader, position: number): LetterEntry {
  return { ...letter, status: 'queued', position, strikes: 0 }
}

export function receiptOf ({ id, at, expiresAt, size, collapse, digest, awaitedBy }: Omit<Receipt, 'status'>): Receipt {
  return {
    id, status: 'queued', at, expiresAt, size,
    ...(collapse !== undefined && { collapse }), ...(digest !== undefined && { digest }), ...(awaitedBy !== undefined && { awaitedBy })
  }
}

/** One line of JSON, then the body as it is. */
export function encodeLetter (head: LetterHeader, body: string | Uint8Array): Uint8Array {
  return Buffer.concat([Buffer.from(`${JSON.stringify(head)}\n`), Buffer.from(body as string)])
}

export function decodeLetter ({ seq, data }: StoredRecord): { head: LetterHeader, kept: StoredLetter } {
  const bytes = Buffer.from(data)
  const end = bytes.indexOf('\n')
  const head: LetterHeader = JSON.parse(bytes.toString('utf8', 0, end))
  const { isText, box, at, size, ...letter } = head
  const body = bytes.subarray(end + 1)
  return { head, kept: { ...letter, body: isText ? body.toString() : body, position: seq } }
}

export function parse<T> ({ data }: StoredRecord): T {
  return JSON.parse(Buffer.from(data).toString())
}
