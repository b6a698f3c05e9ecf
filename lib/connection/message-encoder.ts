import type { FastifyBaseLogger } from 'fastify'
import { Failure, type CloseReason } from '../protocol/errors.ts'
import { failureMessage, type Codec, type FailureMessage, type Message, type NamedCall, type Result } from '../protocol/message.ts'
import { describeThrown } from '../protocol/user-code.ts'
import { Frame } from './frame.ts'

/** As much of a session as encoding a reply needs. */
interface ReplyingSession {
  readonly id: string
  readonly codec: Codec
  end (reason: CloseReason): void
}

/** As much of the node as encoding a reply needs. */
interface EncodingHost {
  readonly limits: { maxBuffered: number }
  readonly log: FastifyBaseLogger
}

/** Encodes a message; undefined where the protocol cannot express it. Throws a `Failure` for what cannot be encoded or exceeds `maxBytes`. */
export function encodeFrame (codec: Codec, message: Message | Message[], maxBytes: number): Frame | undefined {
  const payload = encodePayload(codec, message)
  if (payload === undefined) return undefined
  const frame = new Frame(payload)
  if (frame.size > maxBytes) throw new Failure('too-large')
  return frame
}

/**
 * Encodes what a peer sends. A result that cannot be encoded is an error of the application, so the device gets an internal error in
 * its place. A call or notice that cannot be encoded is an error of its caller, so this throws.
 */
export function encodeForPeer (session: ReplyingSession, host: EncodingHost, message: Message | Message[]): Frame | undefined {
  try {
    return encodeFrame(session.codec, message, host.limits.maxBuffered)
  } catch (error) {
    const replies = (Array.isArray(message) ? message : [message]).filter(isReply)
    if (replies.length === 0) throw error
    host.log.error({ deviceId: session.id, code: (error as Failure).code }, 'handler result cannot be sent')
    const failures = replies.map(({ id }) => failureMessage(id, undefined))
    return encodeFailure(session, host, Array.isArray(message) ? failures : failures[0]!)
  }
}

/** The call that carries a message; the device acknowledges the message by answering it. */
export function callForMessage (codec: Codec, id: string, data: unknown): NamedCall & { id?: string } {
  if (!codec.callOf) return { method: 'message', params: { id, data }, id }
  const call = codec.callOf(data)
  if (!call) throw new Failure('bad-params', { message: `To a device that speaks ${codec.subprotocol} a message is a call: {"method": "...", "params": {...}}` })
  return call
}

function encodePayload (codec: Codec, message: Message | Message[]): string | Uint8Array | undefined {
  try {
    return codec.encode(message)
  } catch (error) { // a cyclic object, a bigint
    throw new Failure('bad-params', { message: `Cannot be encoded: ${describeThrown(error)}` })
  }
}

/** Ends the session where the codec cannot encode a failure either: its device would wait for answers in vain. */
function encodeFailure (session: ReplyingSession, host: EncodingHost, failures: Message | Message[]): Frame | undefined {
  try {
    return encodeFrame(session.codec, failures, host.limits.maxBuffered)
  } catch (error) {
    host.log.error({ err: error, deviceId: session.id, protocol: session.codec.subprotocol }, 'codec failed')
    session.end('internal')
    return undefined
  }
}

/** Whether the message answers a call. */
export function isReply (message: Message): message is Result | FailureMessage {
  return message.kind === 'result' || message.kind === 'failure'
}
