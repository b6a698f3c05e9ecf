import type { Id, InvalidMessage, Message } from './message.ts'

/** A JSON object. */
export type JsonObject = Record<string, unknown>

export function isJsonObject (value: unknown): value is JsonObject {
  return typeof value === 'object' && value !== null && !Array.isArray(value)
}

export function invalid (reason: InvalidMessage['reason'], id: Id | null = null): InvalidMessage {
  return { kind: 'invalid', id, reason }
}

/** A message whose bytes cannot be attached. An answer is one all the same: its caller must not wait on, and it is not answered. */
export function withoutBytes (message: Message): InvalidMessage {
  if (message.kind === 'notice') return invalid('malformed')
  if (message.kind === 'invalid') return message
  return invalid(message.kind === 'call' ? 'malformed' : 'answer-invalid', message.id)
}

/** What a message carries: its params, or its result. */
export function payloadOf (message: Message): unknown {
  if (message.kind === 'call' || message.kind === 'notice') return message.params
  return message.kind === 'result' ? message.result : undefined
}

function withPayload (message: Message, body: unknown): Message {
  return message.kind === 'result' ? { ...message, result: body } : { ...message, params: body } as Message
}

export function bytesOf (message: Message): Uint8Array | undefined {
  const body = payloadOf(message)
  if (body instanceof Uint8Array) return body
  return isJsonObject(body) && body.data instanceof Uint8Array ? body.data : undefined
}

export function withData (message: Message, data: unknown, name = 'data'): Message {
  const body = payloadOf(message)
  const rest: JsonObject = isJsonObject(body) && !(body instanceof Uint8Array) ? { ...body } : {}
  delete rest.data
  return withPayload(message, { ...rest, [name]: data })
}

/** For a protocol that cannot hold bytes: as `base64` in place of `data`. */
export function toBase64 (message: Message): Message {
  const data = bytesOf(message)
  if (!data) return message
  let binary = ''
  for (const byte of data) binary += String.fromCharCode(byte)
  return withData(message, btoa(binary), 'base64')
}

export function fromBase64 (message: Message): Message {
  const body = payloadOf(message)
  if (!isJsonObject(body) || typeof body.base64 !== 'string') return message
  const { base64, ...rest } = body
  try {
    return withPayload(message, { ...rest, data: Uint8Array.from(atob(base64 as string), char => char.charCodeAt(0)) })
  } catch {
    return withoutBytes(message)
  }
}
