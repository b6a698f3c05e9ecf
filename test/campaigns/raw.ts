import { randomBytes } from 'node:crypto'
import { once } from 'node:events'
import { connect as dial, type Socket } from 'node:net'

export const opcodes = { continuation: 0, text: 1, binary: 2, close: 8, ping: 9, pong: 10 } as const

const MASKED = 0x80
const FINAL = 0x80

/** The upgrade request of a device. */
export function upgradeRequest (deviceId: string, token = ''): string {
  return [
    `GET /ws?deviceId=${deviceId} HTTP/1.1`, 'Host: 127.0.0.1', 'Connection: Upgrade', 'Upgrade: websocket', 'Sec-WebSocket-Version: 13',
    `Sec-WebSocket-Key: ${randomBytes(16).toString('base64')}`, ...(token ? [`Authorization: Bearer ${token}`] : []), '', ''
  ].join('\r\n')
}

/** A masked frame. The mask is all zeros, so the payload is unchanged. */
export function frameOf (opcode: number, payload: string | Uint8Array = '', final = true): Buffer {
  const body = Buffer.from(payload as string)
  const long = body.length > 125
  const head = Buffer.alloc(long ? 8 : 6)
  head[0] = (final ? FINAL : 0) | opcode
  head[1] = MASKED | (long ? 126 : body.length)
  if (long) head.writeUInt16BE(body.length, 2)
  return Buffer.concat([head, body])
}

export function closeFrame (code: number): Buffer {
  const body = Buffer.alloc(2)
  body.writeUInt16BE(code)
  return frameOf(opcodes.close, body)
}

export interface CloseNotice {
  code: number
  reason: string
}

/** A device over a bare TCP connection. It does not answer close frames by itself, and its socket can be paused. */
export class RawDevice {
  readonly socket: Socket
  /** Resolves with the status of the answer to the upgrade. */
  readonly opened: Promise<number>
  /** Resolves with the close frame of the server; without one, never. */
  readonly closed: Promise<CloseNotice>
  /** Resolves once the TCP connection is closed. */
  readonly ended: Promise<unknown>
  onMessage: (message: any) => void = () => {}
  #opened!: (status: number) => void
  #closed!: (notice: CloseNotice) => void
  #partial: Buffer = Buffer.alloc(0)
  #isUpgraded = false

  constructor (url: string) {
    const { hostname, port } = new URL(url)
    this.socket = dial(Number(port), hostname).setNoDelay()
    this.opened = new Promise(resolve => { this.#opened = resolve })
    this.closed = new Promise(resolve => { this.#closed = resolve })
    this.ended = new Promise(resolve => this.socket.once('close', resolve))
    this.socket.on('error', () => {})
    this.socket.on('data', bytes => this.#read(bytes))
  }

  /** Connects, and resolves when the upgrade is answered. */
  static async connect (url: string, deviceId: string): Promise<RawDevice> {
    const device = new RawDevice(url)
    await device.join(deviceId)
    return device
  }

  /** Resolves when the upgrade is answered. */
  async join (deviceId: string): Promise<void> {
    await once(this.socket, 'connect')
    this.socket.write(upgradeRequest(deviceId))
    await this.opened
  }

  send (message: object): void {
    this.socket.write(frameOf(opcodes.text, JSON.stringify(message)))
  }

  /** Sends the close frame that the server waits for. */
  answerClose (code: number): void {
    this.socket.write(closeFrame(code))
  }

  #read (bytes: Buffer): void {
    this.#partial = this.#partial.length === 0 ? bytes : Buffer.concat([this.#partial, bytes])
    if (!this.#isUpgraded && !this.#readHead()) return
    for (let size = frameSize(this.#partial); size <= this.#partial.length; size = frameSize(this.#partial)) {
      this.#frame(this.#partial.subarray(0, size))
      this.#partial = this.#partial.subarray(size)
    }
  }

  #readHead (): boolean {
    const end = this.#partial.indexOf('\r\n\r\n')
    if (end === -1) return false
    const status = Number(this.#partial.toString('latin1', 9, 12))
    this.#partial = this.#partial.subarray(end + 4)
    this.#isUpgraded = status === 101
    this.#opened(status)
    return this.#isUpgraded
  }

  #frame (frame: Buffer): void {
    const body = frame.subarray(headSize(frame))
    const opcode = frame[0]! & 0x0f
    if (opcode === opcodes.text) this.onMessage(JSON.parse(body.toString()))
    else if (opcode === opcodes.close) this.#closed({ code: body.readUInt16BE(), reason: body.toString('utf8', 2) })
    else if (opcode === opcodes.ping) this.socket.write(frameOf(opcodes.pong, body))
  }
}

function headSize (frame: Buffer): number {
  const length = frame[1]! & 0x7f
  return length === 127 ? 10 : length === 126 ? 4 : 2
}

/** Size of the first frame, header included; `Infinity` while that is unknown. */
function frameSize (bytes: Buffer): number {
  if (bytes.length < 2 || bytes.length < headSize(bytes)) return Infinity
  const length = bytes[1]! & 0x7f
  if (length < 126) return 2 + length
  return length === 126 ? 4 + bytes.readUInt16BE(2) : 10 + Number(bytes.readBigUInt64BE(2))
}
