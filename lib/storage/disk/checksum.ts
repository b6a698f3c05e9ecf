import { crc32 } from 'node:zlib'
import { sizeOf } from '../mailbox.ts'

const CHECKSUM = 4
const AT_HAND = 65_536
/** Bytes of a character, at most. */
const WIDEST = 3

const scratch = Buffer.allocUnsafe(AT_HAND)

/** A value with its checksum before it, good until the next one is sealed. The key counts too: a record in the place of another is found out. */
export function withChecksum (key: string, value: string | Uint8Array): Uint8Array {
  const isSmall = CHECKSUM + (value.length + key.length) * WIDEST <= AT_HAND
  const bytes = isSmall ? scratch : Buffer.allocUnsafe(CHECKSUM + sizeOf(value) + sizeOf(key))
  const end = CHECKSUM + written(bytes, value)
  const all = end + bytes.write(key, end)
  bytes.writeUInt32BE(crc32(bytes.subarray(CHECKSUM, all)))
  return bytes.subarray(0, end)
}

/** The value, if it is as it was sealed. */
export function withoutChecksum (key: string, record: Uint8Array): Uint8Array | undefined {
  if (record.length < CHECKSUM) return undefined
  const value = record.subarray(CHECKSUM)
  return new DataView(record.buffer, record.byteOffset).getUint32(0) === crc32(key, crc32(value)) ? value : undefined
}

function written (bytes: Buffer, value: string | Uint8Array): number {
  if (typeof value === 'string') return bytes.write(value, CHECKSUM)
  bytes.set(value, CHECKSUM)
  return value.length
}
