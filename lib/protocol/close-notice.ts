import type { Codec, Message } from './message.ts'

/** Why the other side closes the connection; for transports without a close frame. */
export interface CloseNotice {
  code: number
  reason: string
}

const CLOSE_METHOD = 'close'
const MAX_NOTICE_LENGTH = 1_024

/** The last message on a connection, in place of a close frame. */
export function closeNotice (code: number, reason: string): Message {
  return { kind: 'notice', method: CLOSE_METHOD, params: { code, reason } }
}

/** The close notice in a line of text, if it is one. Most lines are ruled out without decoding. */
export function closeNoticeIn (text: string, codec: Codec): CloseNotice | undefined {
  if (text.length > MAX_NOTICE_LENGTH || !text.includes(CLOSE_METHOD)) return undefined
  const message = codec.decode(text)
  if (Array.isArray(message) || message.kind !== 'notice' || message.method !== CLOSE_METHOD) return undefined
  const { code, reason } = { ...message.params as Partial<CloseNotice> }
  if (!Number.isInteger(code) || code! < 1_000 || code! > 4_999) return undefined
  return { code: code!, reason: typeof reason === 'string' ? reason : '' }
}
