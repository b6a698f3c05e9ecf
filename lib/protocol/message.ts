import { Failure, type Detail, type ParamsFlaw, type Reason } from './errors.ts'

/** What a call and its answer have in common. */
export type Id = string | number

export interface Call { kind: 'call', id: Id, method: string, params?: unknown }
export interface Notice { kind: 'notice', method: string, params?: unknown }
export interface Result { kind: 'result', id: Id, result: unknown }
export interface FailureMessage { kind: 'failure', id: Id | null, reason: Reason, detail?: Detail | undefined, flaw?: ParamsFlaw }

/**
 * Text that was no message. With the reason `answer-invalid` it was meant as an answer to `id`, or is one of those that get
 * no answer; `detail` is what the answer to any other says.
 */
export interface InvalidMessage { kind: 'invalid', id: Id | null, reason: 'unreadable' | 'malformed' | 'answer-invalid', detail?: Detail }

/** What flows between two peers. */
export type Message = Call | Notice | Result | FailureMessage | InvalidMessage

/** What is called, and with what. */
export type NamedCall = Pick<Call, 'method' | 'params'>

/** A wire protocol: frames to messages and back. Pure, keeps no state. */
export interface Codec {
  readonly subprotocol: string
  /** How many calls may be on the wire at a time, in each direction. */
  readonly concurrency: number
  /** Where devices that speak it connect, their id behind it; without one, where all others do. */
  readonly path?: string
  /** Never throws: what cannot be read is a message of kind `invalid`. */
  decode (frame: string | Uint8Array): Message | Message[]
  /** A string leaves as a text frame, bytes as a binary frame. Undefined: the protocol has no words for it, and nothing leaves. */
  encode (message: Message | Message[]): string | Uint8Array | undefined
  /** An id for a call of ours, where numbers from 1 will not do. */
  readonly mint?: () => string
  /**
   * For a protocol with methods of its own and none of ours, be it `message`, `welcome` or `subscribe`: the call that the
   * data of a message names, if it names one.
   */
  callOf? (data: unknown): NamedCall | undefined
}

/** What a codec made of a frame; throws where that is no message, as one that is not ours may have it. */
export function decodeWith (codec: Codec, frame: string | Uint8Array): Message | Message[] {
  const message = codec.decode(frame)
  if (!Array.isArray(message) && typeof message.kind !== 'string') throw new TypeError('The codec gave no message')
  return message
}

/** The message that tells the other side why its call failed; an accident is an internal error to it. */
export function failureMessage (id: Id | null, error: unknown): FailureMessage {
  if (!(error instanceof Failure)) return { kind: 'failure', id, reason: 'internal' }
  return { kind: 'failure', id, reason: error.reason, detail: error.device, ...(error.flaw && { flaw: error.flaw }) }
}
