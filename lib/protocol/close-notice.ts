import type { Codec, Message } from './message.ts'

/** How a connection was ended by the other side. */
export interface CloseNotice {
  code: number
  reason: string
}

const METHOD = 'close'
const LONGEST = 1_024

/** A goodbye where there is no close frame to hold it: the last message of all. */
export function closeNotice (code: number, reason: string): Message {
  return { kind: 'notice', method: METHOD, params: { code, reason } }
}

/** The goodbye that a line of text is, if it is one; most need not be looked into for that. */
export function closeNoticeIn (text: string, codec: Codec): CloseNotice | undefined {
  if (text.length > LONGEST || !text.includes(METHOD)) return undefined
  const message = codec.decode(text)
  if (Array.isArray(message) || message.kind !== 'notice' || message.method !== METHOD) return undefined
  const { code, reason } = { ...message.params as Partial<CloseNotice> }
  if (!Number.isInteger(code) || code! < 1_000 || code! > 4_999) return undefined
  return { code: code!, reason: typeof reason === 'string' ? reason : '' }
}
