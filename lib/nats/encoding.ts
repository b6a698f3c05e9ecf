import { Failure } from '../protocol/errors.ts'

/** Where a message between nodes may hold bytes, besides in itself: each as `data`. */
const holders = ['', 'params', 'value']
const NEWLINE = 0x0a

/** One line of JSON; then, where there are bytes, the name of what holds them, and the bytes as they are. */
export function encode (message: object): Uint8Array {
  const at = holders.find(name => holder(message, name)?.data instanceof Uint8Array)
  try {
    if (at === undefined) return Buffer.from(JSON.stringify(message))
    const { data, ...rest } = holder(message, at)
    const line = JSON.stringify(at === '' ? rest : { ...message, [at]: rest })
    return Buffer.concat([Buffer.from(`${line}\n${at}\n`), data])
  } catch (error) { // a circle, a bigint
    throw new Failure('bad-params', { message: `Cannot be encoded: ${(error as Error).message}` })
  }
}

export function decode (bytes: Uint8Array): any {
  const buffer = Buffer.from(bytes.buffer, bytes.byteOffset, bytes.length)
  const end = buffer.indexOf(NEWLINE)
  if (end === -1) return JSON.parse(buffer.toString())
  const message = JSON.parse(buffer.toString('utf8', 0, end))
  const start = buffer.indexOf(NEWLINE, end + 1)
  // a copy: what was read is a piece of a larger buffer
  holder(message, buffer.toString('utf8', end + 1, start)).data = Buffer.from(buffer.subarray(start + 1))
  return message
}

function holder (message: any, name: string): any {
  return name === '' ? message : message[name]
}
