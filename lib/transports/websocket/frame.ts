/** FIN and opcode, the first byte of a frame. */
const TEXT = 0x81
const BINARY = 0x82
/** RSV1. */
const COMPRESSED = 0x40

/** Encodes a payload as one unfragmented, unmasked WebSocket frame (RFC 6455, 5.2). */
export function toWire (payload: string | Uint8Array): Buffer {
  return encodeFrame(payload, typeof payload === 'string' ? TEXT : BINARY)
}

/** Encodes a compressed payload (RFC 7692); `isText` says what it is when inflated. */
export function toCompressed (deflated: Uint8Array, isText: boolean): Buffer {
  return encodeFrame(deflated, COMPRESSED | (isText ? TEXT : BINARY))
}

function encodeFrame (payload: string | Uint8Array, firstByte: number): Buffer {
  const length = Buffer.byteLength(payload)
  const offset = length < 126 ? 2 : length < 65_536 ? 4 : 10
  const wire = Buffer.allocUnsafe(offset + length)
  wire[0] = firstByte
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
