import { sizeOf, type Ending, type Letter, type Receipt, type StoredLetter } from '../storage/mailbox.ts'

/** What is added to the receipt of a letter when it ends. */
export interface EndingRecord extends Pick<Receipt, 'at' | 'device'> {
  status: Ending
  /** The call that ended the letter; absent if another letter replaced it. */
  call?: string
}

const NEWLINE = '\n'

export function receiptOf ({ id, expiresAt, body, collapse, digest, awaitedBy }: Letter, at: number): Receipt {
  return {
    id, status: 'queued', at, expiresAt, size: sizeOf(body),
    ...(collapse !== undefined && { collapse }), ...(digest !== undefined && { digest }), ...(awaitedBy !== undefined && { awaitedBy })
  }
}

/** Three lines, then the raw body: the collapse key as JSON, empty if there is none; the receipt; what only the letter has. */
export function encodeLetter ({ body, collapse, context }: Letter, receipt: Receipt): string | Buffer {
  const isText = typeof body === 'string'
  const head = `${collapse === undefined ? '' : JSON.stringify(collapse)}\n${JSON.stringify(receipt)}\n${JSON.stringify({ isText, context })}\n`
  return isText ? head + body : Buffer.concat([Buffer.from(head), body])
}

export function decodeLetter (record: Buffer, position: number): StoredLetter {
  const [, receipt, rest, start] = splitLines(record)
  const { id, expiresAt, collapse, digest, awaitedBy }: Receipt = JSON.parse(receipt)
  const { isText, context } = JSON.parse(rest)
  // bytes are copied, because the record is a slice of the larger buffer that was received
  const body = isText ? record.toString('utf8', start) : Buffer.from(record.subarray(start))
  return { id, body, expiresAt, collapse, digest, awaitedBy, context, position }
}

/** The receipt of a waiting letter, or of an ended one, which has a second line. */
export function decodeReceipt (record: Buffer): { receipt: Receipt, call: string | undefined } {
  const [queued, ending = '{}'] = record.toString().split(NEWLINE) as [string, string?]
  const { call, ...receipt } = { ...JSON.parse(queued), ...JSON.parse(ending) }
  return { receipt, call }
}

/** The three lines of a letter, and where its body begins. */
function splitLines (record: Buffer): [collapse: string, receipt: string, rest: string, start: number] {
  const ends: number[] = []
  for (let line = 0; line < 3; line++) ends.push(record.indexOf(NEWLINE, (ends.at(-1) ?? -1) + 1))
  const [first, second, third] = ends as [number, number, number]
  return [record.toString('utf8', 0, first), record.toString('utf8', first + 1, second), record.toString('utf8', second + 1, third), third + 1]
}

/** Moves the times of a letter or a receipt from one clock to another. */
export function shiftTimes<T extends { expiresAt: number, at?: number }> (one: T, by: number): T {
  return { ...one, expiresAt: one.expiresAt + by, ...(one.at !== undefined && { at: one.at + by }) }
}
