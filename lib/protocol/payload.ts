import type { Call, Id, InvalidMessage, Message } from './message.ts'

export type JsonObject = Record<string, unknown>

export function isJsonObject (value: unknown): value is JsonObject {
  return typeof value === 'object' && value !== null && !Array.isArray(value)
}

export function invalid (reason: InvalidMessage['reason'], id: Id | null = null): InvalidMessage {
  return { kind: 'invalid', id, reason }
}

/** Replaces a message that cannot carry its bytes. An answer becomes `answer-invalid`: it still settles its call, and is not answered itself. */
export function withoutBytes (message: Message): InvalidMessage {
  if (message.kind === 'invalid') return message
  return invalid('method' in message ? 'malformed' : 'answer-invalid', (message as Partial<Call>).id)
}

/** The params or the result of a message. */
export function payloadOf (message: Message): unknown {
  return message.kind === 'result' ? message.result : (message as Partial<Call>).params
}

function withPayload (message: Message, payload: unknown): Message {
  return message.kind === 'result' ? { ...message, result: payload } : { ...message, params: payload } as Message
}

export function bytesOf (message: Message): Uint8Array | undefined {
  const payload = payloadOf(message)
  if (payload instanceof Uint8Array) return payload
  return isJsonObject(payload) && payload.data instanceof Uint8Array ? payload.data : undefined
}

export function withData (message: Message, data: unknown, name = 'data'): Message {
  const payload = payloadOf(message)
  const { data: _data, ...rest } = isJsonObject(payload) && !(payload instanceof Uint8Array) ? payload : {}
  return withPayload(message, { ...rest, [name]: data })
}

/** Replaces `data` by `base64`, for a protocol without bytes. */
export function toBase64 (message: Message): Message {
  const data = bytesOf(message)
  if (!data) return message
  let binary = ''
  for (const byte of data) binary += String.fromCharCode(byte)
  return withData(message, btoa(binary), 'base64')
}

export function fromBase64 (message: Message): Message {
  const payload = payloadOf(message)
  if (!isJsonObject(payload) || typeof payload.base64 !== 'string') return message
  const { base64, ...rest } = payload
  try {
    return withPayload(message, { ...rest, data: Uint8Array.from(atob(base64 as string), char => char.charCodeAt(0)) })
  } catch {
    return withoutBytes(message)
  }
}
