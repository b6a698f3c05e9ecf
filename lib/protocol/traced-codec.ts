import type { Codec, Message } from './message.ts'

/** The codec for devices that asked for trace context: puts the trace of a call or notice in front of its other members. */
export function tracedCodec (codec: Codec): Codec {
  return { ...codec, isTraced: true, encode: message => withTrace(codec.encode(message)!, message) }
}

/** The frame begins with the `{` of a JSON object, whether bytes follow it or not. */
function withTrace (frame: string | Uint8Array, message: Message | Message[]): string | Uint8Array {
  if (!('trace' in message) || !message.trace) return frame
  const head = `${JSON.stringify(message.trace).slice(0, -1)},`
  if (typeof frame === 'string') return head + frame.slice(1)
  const bytes = new TextEncoder().encode(head)
  const traced = new Uint8Array(bytes.length + frame.length - 1)
  traced.set(bytes)
  traced.set(frame.subarray(1), bytes.length)
  return traced
}
