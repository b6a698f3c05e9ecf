const TEXT = 0x81
const BINARY = 0x82
const COMPRESSED = 0x40

/** A payload as one whole unmasked WebSocket frame (RFC 6455, 5.2). */
export function toWire (payload: string | Uint8Array): Buffer {
  return wireOf(payload, typeof payload === 'string' ? TEXT : BINARY)
}

/** The same, for what is text or not but holds bytes: it was compressed (RFC 7692). */
export function toCompressed (deflated: Uint8Array, isText: boolean): Buffer {
  return wireOf(deflated, COMPRESSED | (isText ? TEXT : BINARY))
}

function wireOf (payload: string | Uint8Array, head: number): Buffer {
  const length = Buffer.byteLength(payload)
  const offset = length < 126 ? 2 : length < 65_536 ? 4 : 10
  const wire = Buffer.allocUnsafe(offset + length)
  wire[0] = head
  if (offset === 2) {
    wire[1] = length
  } else if (offset === 4) {
    wire[1] = 126
    wire.writeUInt16BE(length, 2)
  } else {
    wire[1] = 127
    wire.writeBigUInt64BE(BigInt(length), 2)
  }
  if (typeof payload === 'string') wire.write(payload, offset)
  else wire.set(payload, offset)
  return wire
}
