const POLYNOMIAL = 0x82f63b78
const table = Uint32Array.from({ length: 256 }, (_, byte) => {
  let crc = byte
  for (let bit = 0; bit < 8; bit++) crc = crc & 1 ? crc >>> 1 ^ POLYNOMIAL : crc >>> 1
  return crc
})

/** CRC-32C, turned and shifted so that a checksum of what holds checksums is no trivial one. */
export function crc32c (bytes: Buffer): number {
  let crc = -1
  for (const byte of bytes) crc = table[(crc ^ byte) & 255]! ^ crc >>> 8
  crc = ~crc >>> 0
  return ((crc >>> 15 | crc << 17) >>> 0) + 0xa282ead8 >>> 0
}
