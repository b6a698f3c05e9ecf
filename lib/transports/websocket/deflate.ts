import { constants, deflateRawSync } from 'node:zlib'
import type { Form } from '../../connection/frame.ts'
import { toCompressed, toWire } from './frame.ts'

/** Length of the empty block that ends a flush. */
const TAIL_BYTES = 4

/**
 * Makes WebSocket frames of payloads, and compresses those of `threshold` bytes or more (RFC 7692). Each is compressed without the
 * context of earlier ones, so that a broadcast is compressed once for all devices.
 */
export function compressedForm (threshold: number): Form {
  return payload => {
    if (Buffer.byteLength(payload) < threshold) return toWire(payload)
    // flush, not finish; RFC 7692, 7.2.1, removes the empty block at the end
    const deflated = deflateRawSync(payload, { finishFlush: constants.Z_SYNC_FLUSH }).subarray(0, -TAIL_BYTES)
    if (deflated.length >= Buffer.byteLength(payload)) return toWire(payload)
    return toCompressed(deflated, typeof payload === 'string')
  }
}
