import { crc32 } from 'node:zlib'
import { sizeOf } from '../mailbox.ts'

const CHECKSUM_BYTES = 4
const SCRATCH_BYTES = 65_536
/** Of a UTF-16 code unit in UTF-8. */
const MAX_CHARACTER_BYTES = 3

const scratch = Buffer.allocUnsafe(SCRATCH_BYTES)

/** A value behind its checksum, in a buffer that the next call overwrites. The checksum includes the key, so that a record under another key is invalid. */
export function withChecksum (key: string, value: string | Uint8Array): Uint8Array {
  const fits = CHECKSUM_BYTES + (value.length + key.length) * MAX_CHARACTER_BYTES <= SCRATCH_BYTES
  const bytes = fits ? scratch : Buffer.allocUnsafe(CHECKSUM_BYTES + sizeOf(value) + sizeOf(key))
  const end = CHECKSUM_BYTES + writeValue(bytes, value)
  const keyEnd = end + bytes.write(key, end)
  bytes.writeUInt32BE(crc32(bytes.subarray(CHECKSUM_BYTES, keyEnd)))
  return bytes.subarray(0, end)
}

/** The value of a record; undefined if its checksum does not match. */
export function withoutChecksum (key: string, record: Uint8Array): Uint8Array | undefined {
  if (record.length < CHECKSUM_BYTES) return undefined
  const value = record.subarray(CHECKSUM_BYTES)
  return new DataView(record.buffer, record.byteOffset).getUint32(0) === crc32(key, crc32(value)) ? value : undefined
}

function writeValue (bytes: Buffer, value: string | Uint8Array): number {
  if (typeof value === 'string') return bytes.write(value, CHECKSUM_BYTES)
  bytes.set(value, CHECKSUM_BYTES)
  return value.length
}
