import { reasons, type Detail, type Reason } from './errors.ts'
import { isSafeJson } from './safe-json.ts'
import type { Codec, Id, Message } from './message.ts'
import { traceIn } from './request-context.ts'
import { tracedCodec } from './traced-codec.ts'
import { payloadOf, bytesOf, fromBase64, invalid, isJsonObject, withoutBytes, toBase64, withData, type JsonObject } from './payload.ts'

export interface JsonRpcOptions {
  /**
   * Maximum nesting depth of a message.
   * @default 32
   */
  depth?: number
  /**
   * Maximum number of messages in a batch.
   * @default 20
   */
  batch?: number
  /**
   * How bytes are sent. `frame`: in a binary frame, after the JSON of the message. `base64`: as a member `base64` in place of `data`, for transports of text lines.
   * @default 'frame'
   */
  bytes?: 'frame' | 'base64'
}

type Limits = Omit<JsonRpcOptions, 'bytes'>

/** Frames of the protocol, to messages and back. */
type Frames = Pick<Codec, 'decode' | 'encode'>

const NEWLINE = 0x0a
const MAX_ID_LENGTH = 255
const utf8 = { decoder: new TextDecoder('utf-8', { fatal: true }), encoder: new TextEncoder() }

/** Error codes that mean the same to every peer. Any other is specific to the other side, and becomes `refused`. */
const sharedReasons: Reason[] = ['unknown-method', 'too-fast', 'busy']

/** JSON-RPC 2.0, single or batch. */
export function jsonrpc ({ bytes = 'frame', ...limits }: JsonRpcOptions = {}): Codec {
  const frames = bytes === 'base64' ? jsonrpcLines(limits) : jsonrpcFrames(limits, toTracedMessage)
  const codec: Codec = { subprotocol: 'jsonrpc', concurrency: Infinity, ...frames }
  // not enumerable: a codec that an application makes of this one by spreading it has another `encode`
  return Object.defineProperty({ ...codec }, 'traced', { value: tracedCodec(codec) })
}

/** Bytes as `base64`: a message is text in any case. */
function jsonrpcLines (limits: Limits): Frames {
  const frames = jsonrpcFrames(limits, toTracedMessage)
  const fromFrame = (message: Message | Message[]) => Array.isArray(message) ? message.map(fromBase64) : fromBase64(message)
  return {
    decode: frame => fromFrame(frames.decode(frame)),
    encode: message => frames.encode(Array.isArray(message) ? message : toBase64(message))
  }
}

/** Bytes in a binary frame after the message, and no trace. Apart from `jsonrpc`, so that a bundle of the client holds nothing else. */
export function jsonrpcFrames ({ depth = 32, batch = 20 }: Limits, messageOf = toMessage): Frames {
  function decode (frame: string | Uint8Array): Message | Message[] {
    if (typeof frame !== 'string') return decodeBinary(frame)
    const value = parse(frame)
    if (!Array.isArray(value)) return value === undefined ? invalid('unreadable') : decodeOne(value)
    if (value.length === 0 || value.length > batch) return invalid('malformed')
    return value.map(decodeOne)
  }

  function decodeBinary (frame: Uint8Array): Message {
    const end = frame.indexOf(NEWLINE)
    const value = end === -1 ? undefined : parse(frame.subarray(0, end))
    if (value === undefined) return invalid('unreadable')
    return attach(decodeOne(value), frame.subarray(end + 1))
  }

  function decodeOne (value: unknown): Message {
    if (!isJsonObject(value)) return invalid('malformed')
    return messageOf(value, isSafeJson(value, depth))
  }

  function encode (message: Message | Message[]): string | Uint8Array {
    if (Array.isArray(message)) return JSON.stringify(message.map(one => toMembers(toBase64(one))))
    const data = bytesOf(message)
    if (!data) return JSON.stringify(toMembers(message))
    const head = utf8.encoder.encode(JSON.stringify(toMembers(withData(message, undefined))) + '\n')
    const frame = new Uint8Array(head.length + data.length)
    frame.set(head)
    frame.set(data, head.length)
    return frame
  }

  return { decode, encode }
}

function parse (json: string | Uint8Array): unknown {
  try {
    return JSON.parse(typeof json === 'string' ? json : utf8.decoder.decode(json))
  } catch {
    return undefined
  }
}

function toMessage (value: JsonObject, isSafe: boolean): Message {
  const { id } = value
  const knownId = isId(id) ? id : null
  // An id without a method is an answer, even without a result or an error: a reply could settle a call of the other side.
  const isAnswer = !Object.hasOwn(value, 'method') && (knownId !== null || Object.hasOwn(value, 'result') || Object.hasOwn(value, 'error'))
  if (value.jsonrpc !== '2.0' || !isSafe) return invalid(isAnswer ? 'answer-invalid' : 'malformed', knownId)
  if (isAnswer) return toAnswer(value, knownId)
  const { method, params } = value
  if (typeof method !== 'string' || (params !== undefined && typeof params !== 'object') || params === null) {
    return invalid('malformed', knownId)
  }
  const request = params === undefined ? { method } : { method, params }
  if (id === undefined) return { kind: 'notice', ...request }
  return knownId === null ? invalid('malformed') : { kind: 'call', id: knownId, ...request }
}

/** Keeps the trace of a call or notice. */
function toTracedMessage (value: JsonObject, isSafe: boolean): Message {
  const message = toMessage(value, isSafe)
  if (value.traceparent === undefined || (message.kind !== 'call' && message.kind !== 'notice')) return message
  const trace = traceIn(value)
  return trace ? { ...message, trace } : message
}

function toAnswer (value: JsonObject, id: Id | null): Message {
  const { result, error } = value
  if (error === undefined && result !== undefined && id !== null) return { kind: 'result', id, result }
  if (result !== undefined || !isDetail(error)) return invalid('answer-invalid', id)
  const reason = sharedReasons.find(reason => reasons[reason].rpc === error.code) ?? 'refused'
  return { kind: 'failure', id, reason, detail: error }
}

function toMembers (message: Message): JsonObject {
  switch (message.kind) {
    case 'call': return { jsonrpc: '2.0', id: message.id, method: message.method, params: message.params }
    case 'notice': return { jsonrpc: '2.0', method: message.method, params: message.params }
    case 'result': return { jsonrpc: '2.0', id: message.id, result: message.result }
    case 'failure':
    case 'invalid': return { jsonrpc: '2.0', id: message.id, error: toError(message.reason, message.detail) }
  }
}

function toError (reason: Reason, detail?: Detail): Detail {
  if (typeof detail?.code === 'number') return detail
  const { rpc: code, message } = reasons[reason]
  return detail ? { ...detail, code } : { code, message }
}

function isId (id: unknown): id is Id {
  return typeof id === 'string' ? id.length <= MAX_ID_LENGTH : Number.isSafeInteger(id)
}

function isDetail (error: unknown): error is Detail {
  return isJsonObject(error) && Number.isSafeInteger(error.code) && typeof error.message === 'string'
}

/** Adds the bytes of a binary frame to its message as `data`; the params or the result must be an object or absent. */
function attach (message: Message, data: Uint8Array): Message {
  const payload = payloadOf(message)
  if (message.kind === 'invalid' || message.kind === 'failure' || !isJsonObject(payload ?? {})) return withoutBytes(message)
  return withData(message, data)
}
