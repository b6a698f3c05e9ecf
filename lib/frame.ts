const TEXT = 0x81
const BINARY = 0x82

/** A message encoded once; however many sockets it goes to, its WebSocket bytes are made once. */
export class Frame {
  readonly payload: string | Uint8Array
  #wire: Buffer | undefined

  constructor (payload: string | Uint8Array) {
    this.payload = payload
  }

  /** The whole unmasked WebSocket frame, header included (RFC 6455, 5.2). */
  get wire (): Buffer {
    this.#wire ??= toWire(this.payload)
    return this.#wire
  }
}

function toWire (payload: string | Uint8Array): Buffer {
  const length = typeof payload === 'string' ? Buffer.byteLength(payload) : payload.length
  const offset = length < 126 ? 2 : length < 65_536 ? 4 : 10
  const wire = Buffer.allocUnsafe(offset + length)
  wire[0] = typeof payload === 'string' ? TEXT : BINARY
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
