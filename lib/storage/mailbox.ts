import type { Detail } from '../protocol/errors.ts'

/** A message kept for a device until it has acknowledged it or it expires. */
export interface Letter {
  readonly id: string
  /** JSON text, or bytes. */
  readonly body: string | Uint8Array
  /** Milliseconds since 1970. */
  readonly expiresAt: number
  /** Replaces a waiting letter of the same key. */
  readonly collapse?: string | undefined
  /** Tells whether a letter that comes again under the same id is the same one. Without it, the id is new. */
  readonly digest?: string | undefined
  /** The node where somebody waits for the acknowledgement. */
  readonly awaitedBy?: string | undefined
}

/** A letter in its place: positions grow, and never come again. */
export interface StoredLetter extends Letter {
  readonly position: number
}

/** What becomes of a letter. */
export type Ending = 'delivered' | 'expired' | 'cancelled' | 'replaced' | 'refused' | 'dead-lettered' | 'damaged'

export interface Receipt {
  readonly id: string
  readonly status: 'queued' | Ending
  /** Milliseconds since 1970: when it came to be so. */
  readonly at: number
  readonly expiresAt: number
  readonly size: number
  readonly collapse?: string | undefined
  readonly digest?: string | undefined
  readonly awaitedBy?: string | undefined
  /** What the device said when it refused. */
  readonly device?: Detail
}

/** What may wait for one device. */
export interface MailboxLimits {
  letters: number
  bytes: number
}

export interface PutResult {
  receipt: Receipt
  /** False: the id was known, and the receipt is that of the first. */
  fresh: boolean
  /** Of the letter that the new one took the place of. */
  replaced?: Receipt
}

export interface ExpiredLetter {
  deviceId: string
  receipt: Receipt
}

/** Keeps letters. Rejects with the failures `mailbox-full` and `store-full`. */
export interface Mailbox {
  /** Whether all nodes see the same letters. */
  readonly shared: boolean
  /** Resolves once it is durable. */
  put (deviceId: string, letter: Letter, caps: MailboxLimits): Promise<PutResult>
  /** In the order of `put`, from behind a position. */
  letters (deviceId: string, after?: number): AsyncIterable<StoredLetter>
  waiting (deviceId: string): Promise<number>
  /** The letter is done with. False: it did not wait any more. */
  settle (deviceId: string, letterId: string, ending: Ending, device?: Detail): Promise<boolean>
  receipt (deviceId: string, letterId: string): Promise<Receipt | undefined>
  /** One more connection ended without an acknowledgement; how many there were. */
  addAttempt (deviceId: string, letterId: string): Promise<number>
  /**
   * Takes out what has expired, some at a time, and tells one caller what it was. It is asked again until nothing is left, and stops early
   * once the signal is aborted.
   */
  sweep (now: number, signal?: AbortSignal): Promise<ExpiredLetter[]>
  /** Tells of what was found damaged, also before somebody listened. */
  onDamage? (listener: (damage: { key: string, reason: string }) => void): void
  /** Tells what went wrong where nobody waits. */
  onTrouble? (listener: (error: unknown) => void): void
  close? (): Promise<void>
}

export function sizeOf (body: string | Uint8Array): number {
  return typeof body === 'string' ? Buffer.byteLength(body) : body.length
}
