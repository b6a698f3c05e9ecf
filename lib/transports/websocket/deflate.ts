import { constants, deflateRawSync } from 'node:zlib'
import type { Form } from '../../connection/frame.ts'
import { toCompressed, toWire } from './frame.ts'

const TAIL = 4

/**
 * Payloads as WebSocket frames, those from `threshold` bytes on compressed (RFC 7692). Each is compressed for itself, without the
 * context of those before it, so that what goes to many is compressed once.
 */
export function deflating (threshold: number): Form {
  return payload => {
    if (Buffer.byteLength(payload) < threshold) return toWire(payload)
    // flushed, not finished: the empty block at the end is left out on the wire
    const deflated = deflateRawSync(payload, { finishFlush: constants.Z_SYNC_FLUSH }).subarray(0, -TAIL)
    if (deflated.length >= Buffer.byteLength(payload)) return toWire(payload)
    return toCompressed(deflated, typeof payload === 'string')
  }
}
