import type { RequestContext } from '../protocol/request-context.ts'
import type { MailboxLimits, StoredLetter, Receipt } from '../storage/mailbox.ts'
import type { StoredRecord } from './stream-store.ts'
import { token } from './subjects.ts'

/** The header stored with a letter. All stored times are times of the clock of NATS. */
export interface LetterHeader extends Omit<Receipt, 'status'> {
  isText: boolean
  /** The request that caused it. */
  context?: RequestContext | undefined
  /** Upper bound of the letters waiting for the device, this one included. */
  box: MailboxLimits
  /** Letters that NATS did not find by their subject waited when this one, or one before it, was put. */
  isAfterHidden?: true
}

/** A letter as stored. Its times are those of the clock of NATS. */
export interface StoredLetterRecord {
  header: LetterHeader
  letter: StoredLetter
}

/** The state of a waiting letter, stored under its id. */
export interface LetterEntry extends Receipt {
  position: number
  /** Delivery attempts that ended with the connection. */
  attempts: number
}

/** The receipt of a settled letter, stored under its id. */
export interface ReceiptRecord extends Receipt {
  /** Id of the mailbox instance that settled it. */
  by: string
}

export function keyOf (deviceId: string, letterId: string): string {
  return `${token(deviceId)}.${token(letterId)}`
}

export function entryOf ({ isText, box, isAfterHidden, context, ...letter }: LetterHeader, position: number): LetterEntry {
  return { ...letter, status: 'queued', position, attempts: 0 }
}

export function receiptOf ({ id, at, expiresAt, size, collapse, digest, awaitedBy }: Omit<Receipt, 'status'>): Receipt {
  return {
    id, status: 'queued', at, expiresAt, size,
    ...(collapse !== undefined && { collapse }), ...(digest !== undefined && { digest }), ...(awaitedBy !== undefined && { awaitedBy })
  }
}

/** One line of JSON, then the raw body. */
export function encodeLetter (header: LetterHeader, body: string | Uint8Array): Uint8Array {
  return Buffer.concat([Buffer.from(`${JSON.stringify(header)}\n`), Buffer.from(body as string)])
}

export function decodeLetter ({ seq, data }: StoredRecord): StoredLetterRecord {
  const bytes = Buffer.from(data)
  const end = bytes.indexOf('\n')
  const header: LetterHeader = JSON.parse(bytes.toString('utf8', 0, end))
  const { isText, box, isAfterHidden, at, size, ...letter } = header
  const body = bytes.subarray(end + 1)
  return { header, letter: { ...letter, body: isText ? body.toString() : body, position: seq } }
}

export function parse<T> ({ data }: StoredRecord): T {
  return JSON.parse(Buffer.from(data).toString())
}
