import type { Detail } from '../protocol/errors.ts'
import type { Health } from '../protocol/health.ts'
import type { RequestContext } from '../protocol/request-context.ts'

/** A message kept for a device until it has acknowledged it or it expires. */
export interface Letter {
  readonly id: string
  /** JSON text, or bytes. */
  readonly body: string | Uint8Array
  /** Milliseconds since 1970. */
  readonly expiresAt: number
  /** Collapse key: the letter replaces a waiting one with the same key. */
  readonly collapse?: string | undefined
  /** Digest of the content, to recognise a repeated letter with a caller's id. Absent if the id was generated. */
  readonly digest?: string | undefined
  /** The node on which a caller waits for the acknowledgement. */
  readonly awaitedBy?: string | undefined
  /** The request that caused it. */
  readonly context?: RequestContext | undefined
}

/** A letter with its position; positions grow and are never reused. */
export interface StoredLetter extends Letter {
  readonly position: number
}

/** How a letter ended. */
export type Ending = 'delivered' | 'expired' | 'cancelled' | 'replaced' | 'refused' | 'dead-lettered' | 'damaged'

export interface Receipt {
  readonly id: string
  readonly status: 'queued' | Ending
  /** When the status was reached, in milliseconds since 1970. */
  readonly at: number
  readonly expiresAt: number
  readonly size: number
  readonly collapse?: string | undefined
  readonly digest?: string | undefined
  readonly awaitedBy?: string | undefined
  /** The error with which the device refused. */
  readonly device?: Detail
}

/** Limits for the waiting letters of one device. */
export interface MailboxLimits {
  letters: number
  bytes: number
}

export interface PutResult {
  receipt: Receipt
  /** False: a letter with this id exists, and the receipt is that letter's. */
  fresh: boolean
  /** Receipt of the letter that was replaced. */
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
  put (deviceId: string, letter: Letter, limits: MailboxLimits): Promise<PutResult>
  /** The letters behind a position, in the order of `put`. */
  letters (deviceId: string, after?: number): AsyncIterable<StoredLetter>
  waiting (deviceId: string): Promise<number>
  /** The number of letters that wait, over all devices; a mailbox without it does not count them. Called by each scrape of the metrics, so it must be cheap. */
  size? (): Promise<number>
  /** Ends a letter. False: it no longer waited. */
  settle (deviceId: string, letterId: string, ending: Ending, device?: Detail): Promise<boolean>
  receipt (deviceId: string, letterId: string): Promise<Receipt | undefined>
  /** Counts an attempt to deliver that ended without an acknowledgement; resolves with the number of attempts. */
  addAttempt (deviceId: string, letterId: string): Promise<number>
  /**
   * Ends some of the expired letters and returns them to one caller only. Callers repeat it until nothing is left. It stops early
   * once the signal is aborted.
   */
  sweep (now: number, signal?: AbortSignal): Promise<ExpiredLetter[]>
  /** Reports damage, including what was found before the listener was set. */
  onDamage? (listener: (damage: { key: string, reason: string }) => void): void
  /** Reports errors that no caller waits for. */
  onTrouble? (listener: (error: unknown) => void): void
  /** Whether letters can be written and read now; a mailbox without it always can. Called by readiness probes, so it must be cheap. */
  health? (): Promise<Health>
  close? (): Promise<void>
}

export function sizeOf (body: string | Uint8Array): number {
  return typeof body === 'string' ? Buffer.byteLength(body) : body.length
}
