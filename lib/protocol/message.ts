import { Failure, type Detail, type ParamsFlaw, type Reason } from './errors.ts'

/** Correlates a call with its answer. */
export type Id = string | number

/** The trace that a message belongs to: the headers of W3C Trace Context, well-formed. */
export interface TraceContext {
  traceparent: string
  tracestate?: string
}

export interface Call { kind: 'call', id: Id, method: string, params?: unknown, trace?: TraceContext | undefined }
export interface Notice { kind: 'notice', method: string, params?: unknown, trace?: TraceContext | undefined }
export interface Result { kind: 'result', id: Id, result: unknown }
export interface FailureMessage { kind: 'failure', id: Id | null, reason: Reason, detail?: Detail | undefined, flaw?: ParamsFlaw }

/**
 * A frame that could not be decoded. With the reason `answer-invalid` it is an invalid answer to the call `id`, or to be ignored: it gets no answer. With any
 * other reason it is answered with a failure that has `detail`.
 */
export interface InvalidMessage { kind: 'invalid', id: Id | null, reason: 'unreadable' | 'malformed' | 'answer-invalid', detail?: Detail }

/** What two peers exchange. */
export type Message = Call | Notice | Result | FailureMessage | InvalidMessage

/** A method and its params. */
export type NamedCall = Pick<Call, 'method' | 'params'>

/** A wire protocol: decodes frames into messages and encodes messages into frames. Pure and stateless. */
export interface Codec {
  readonly subprotocol: string
  /** Maximum number of calls on the wire at a time, in each direction. */
  readonly concurrency: number
  /** The URL path where its devices connect, followed by their id. Undefined: they use the common path. */
  readonly path?: string
  /** Never throws: an unreadable frame becomes a message of kind `invalid`. */
  decode (frame: string | Uint8Array): Message | Message[]
  /** A string is sent as a text frame, bytes as a binary frame. Undefined: the protocol cannot express the message, and nothing is sent. */
  encode (message: Message | Message[]): string | Uint8Array | undefined
  /** Makes the id of an outgoing call, if the protocol does not allow numbers from 1. */
  readonly mint?: () => string
  /** The same protocol for devices that asked for trace context: it encodes the `trace` of calls and notices. Undefined: the protocol has no place for it. */
  readonly traced?: Codec
  /** It encodes the `trace` of calls and notices; any other codec is given none. */
  readonly isTraced?: boolean
  /**
   * Only for a protocol with methods of its own, without `message`, `welcome` and `subscribe`: turns the data of a message into a call. Undefined: the data
   * does not name a call.
   */
  callOf? (data: unknown): NamedCall | undefined
}

/** Decodes a frame. Throws if the codec does not return a message; third-party codecs may have bugs. */
export function decodeWith (codec: Pick<Codec, 'decode'>, frame: string | Uint8Array): Message | Message[] {
  const message = codec.decode(frame)
  if (!Array.isArray(message) && typeof message.kind !== 'string') throw new TypeError('The codec returned no message')
  return message
}

/** The failed answer to a call of the other side. An unexpected error becomes `internal`, without its message. */
export function failureMessage (id: Id | null, error: unknown): FailureMessage {
  if (!(error instanceof Failure)) return { kind: 'failure', id, reason: 'internal' }
  return { kind: 'failure', id, reason: error.reason, detail: error.device, ...(error.flaw && { flaw: error.flaw }) }
}
