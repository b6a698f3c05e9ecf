import { Failure, type Detail, type Reason } from './errors.ts'

/** What a call and its answer have in common. */
export type Id = string | number

export interface Call { kind: 'call', id: Id, method: string, params?: unknown }
export interface Notice { kind: 'notice', method: string, params?: unknown }
export interface Result { kind: 'result', id: Id, result: unknown }
export interface Failed { kind: 'failure', id: Id | null, reason: Reason, detail?: Detail | undefined }

/** Text that was no message. With the reason `answer-invalid` it was meant as an answer to `id`. */
export interface Invalid { kind: 'invalid', id: Id | null, reason: 'unreadable' | 'malformed' | 'answer-invalid' }

/** What flows between two peers. */
export type Message = Call | Notice | Result | Failed | Invalid

/** A wire protocol: frames to messages and back. Pure, keeps no state. */
export interface Codec {
  readonly subprotocol: string
  /** How many calls may be on the wire at a time, in each direction. */
  readonly concurrency: number
  /** Never throws: what cannot be read is a message of kind `invalid`. */
  decode (frame: string | Uint8Array): Message | Message[]
  /** A string leaves as a text frame, bytes as a binary frame. */
  encode (message: Message | Message[]): string | Uint8Array
}

/** The message that tells the other side why its call failed; an accident is an internal error to it. */
export function failed (id: Id | null, error: unknown): Failed {
  if (!(error instanceof Failure)) return { kind: 'failure', id, reason: 'internal' }
  return { kind: 'failure', id, reason: error.reason, detail: error.device }
}
