import { Failure } from '../protocol/errors.ts'

/** The members of a message whose `data` may be bytes; '' is the message itself. */
const BYTES_MEMBERS = ['', 'params', 'value']
const NEWLINE = 0x0a

/** One line of JSON. Where the message has bytes, a line with the name of the member that has them follows, and then the bytes. */
export function encode (message: object): Uint8Array {
  const member = BYTES_MEMBERS.find(name => memberOf(message, name)?.data instanceof Uint8Array)
  try {
    if (member === undefined) return Buffer.from(JSON.stringify(message))
    const { data, ...rest } = memberOf(message, member)
    const line = JSON.stringify(member === '' ? rest : { ...message, [member]: rest })
    return Buffer.concat([Buffer.from(`${line}\n${member}\n`), data])
  } catch (error) { // a circular reference or a bigint
    throw new Failure('bad-params', { message: `Cannot be encoded: ${(error as Error).message}` })
  }
}

export function decode (bytes: Uint8Array): any {
  const buffer = Buffer.from(bytes.buffer, bytes.byteOffset, bytes.length)
  const end = buffer.indexOf(NEWLINE)
  if (end === -1) return JSON.parse(buffer.toString())
  const message = JSON.parse(buffer.toString('utf8', 0, end))
  const start = buffer.indexOf(NEWLINE, end + 1)
  // copied, because the buffer is a slice of the larger one that was received
  memberOf(message, buffer.toString('utf8', end + 1, start)).data = Buffer.from(buffer.subarray(start + 1))
  return message
}

function memberOf (message: any, name: string): any {
  return name === '' ? message : message[name]
}
