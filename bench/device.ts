import { connect as dial, type Socket } from 'node:net'
import { frameOf, opcodes, upgradeRequest } from '../test/campaigns/raw.ts'
import type { Dialect } from './dialects.ts'
import type { ReceiveCounter } from './receive-counter.ts'

/** What the devices of a candidate share. */
export interface DeviceGroup {
  port: number
  dialect: Dialect
  counter: ReceiveCounter
  /** Gets every text message. Without it, frames are counted by their headers and payloads are skipped. */
  onText: ((device: LoadDevice, text: string) => void) | undefined
}

/** Shared by all sockets: a read is processed before the next one starts. */
const readBuffer = Buffer.allocUnsafe(131_072)
const pong = frameOf(opcodes.pong)
/** The pong of Engine.IO: a text of one character. */
const pongText = frameOf(opcodes.text, '3')

/** A device over a bare TCP connection; it uses as little CPU time as possible. */
export class LoadDevice {
  readonly id: string
  readonly #group: DeviceGroup
  readonly #socket: Socket
  readonly #topic: string | undefined
  #opened!: () => void
  #failed!: (error: Error) => void
  /** An incomplete header or frame, completed by the next read. */
  #partial: Buffer | undefined
  /** Bytes still missing of a payload that is skipped. */
  #payloadLeft = 0
  #upgraded = false
  #welcomesLeft = 0
  lost = false

  private constructor (group: DeviceGroup, id: string, topic: string | undefined) {
    this.id = id
    this.#group = group
    this.#topic = topic
    this.#welcomesLeft = group.dialect.welcomes(topic)
    const callback = (size: number, bytes: Uint8Array) => {
      this.#read((bytes as Buffer).subarray(0, size))
      group.counter.check()
      return true
    }
    this.#socket = dial({ port: group.port, host: '127.0.0.1', noDelay: true, onread: { buffer: readBuffer, callback } })
    this.#socket.on('error', error => this.#failed(error))
    this.#socket.on('close', () => {
      this.lost = true
      this.#failed(new Error(`${id} was refused`))
    })
  }

  /** Resolves once the device has received its welcome frames. */
  static async connect (group: DeviceGroup, id: string, topic?: string): Promise<LoadDevice> {
    const device = new LoadDevice(group, id, topic)
    await new Promise<void>((resolve, reject) => {
      device.#opened = resolve
      device.#failed = reject
      device.#socket.write(requestOf(group.dialect, id))
    })
    return device
  }

  send (message: string | Buffer): void {
    this.#socket.write(frameOf(typeof message === 'string' ? opcodes.text : opcodes.binary, message))
  }

  write (frame: Buffer): void {
    this.#socket.write(frame)
  }

  /** Stops reading. */
  stall (): void {
    this.#socket.pause()
  }

  #read (bytes: Buffer): void {
    if (this.#partial) bytes = Buffer.concat([this.#partial, bytes])
    this.#partial = undefined
    let at = this.#upgraded ? 0 : this.#upgrade(bytes)
    while (at < bytes.length) {
      if (this.#payloadLeft > 0) at += this.#countPayload(bytes.length - at)
      else {
        const end = this.#frame(bytes, at)
        if (end === at) {
          this.#partial = Buffer.from(bytes.subarray(at)) // a copy: all sockets share the buffer
          return
        }
        at = end
      }
    }
  }

  /** Reads the answer to the upgrade; returns where the frames begin. */
  #upgrade (bytes: Buffer): number {
    const end = bytes.indexOf('\r\n\r\n')
    if (end === -1) {
      this.#partial = Buffer.from(bytes)
      return bytes.length
    }
    if (bytes.toString('latin1', 9, 12) !== '101') {
      this.#failed(new Error(bytes.toString()))
      return bytes.length
    }
    this.#upgraded = true
    const first = this.#group.dialect.firstMessage?.(this.id, this.#topic)
    if (first !== undefined) this.send(first)
    if (this.#welcomesLeft === 0) this.#opened()
    return end + 4
  }

  #countPayload (available: number): number {
    const part = Math.min(this.#payloadLeft, available)
    this.#payloadLeft -= part
    this.#group.counter.addBytes(part)
    if (this.#payloadLeft === 0) this.#group.counter.addFrame()
    return part
  }

  /** Reads a header, or a whole frame if its payload is needed. Returns where it ends, or `at` if it is incomplete. */
  #frame (bytes: Buffer, at: number): number {
    const available = bytes.length - at
    if (available < 2) return at
    let length = bytes[at + 1]! & 0x7f
    const head = length === 127 ? 10 : length === 126 ? 4 : 2
    if (available < head) return at
    if (length === 126) length = bytes.readUInt16BE(at + 2)
    else if (length === 127) length = Number(bytes.readBigUInt64BE(at + 2))

    const opcode = bytes[at]! & 0x0f
    const isMessage = opcode < opcodes.close && length > 1
    if (isMessage && this.#welcomesLeft === 0 && !this.#group.onText) {
      this.#payloadLeft = length
      return at + head
    }
    const end = at + head + length
    if (end > bytes.length) return at
    if (isMessage) this.#receiveText(bytes.toString('utf8', at + head, end))
    else if (opcode === opcodes.ping) this.#socket.write(pong)
    else if (opcode < opcodes.close) this.#socket.write(pongText)
    return end
  }

  #receiveText (text: string): void {
    if (this.#welcomesLeft > 0) {
      if (--this.#welcomesLeft === 0) this.#opened()
      return
    }
    this.#group.counter.addFrame()
    this.#group.onText!(this, text)
  }
}

function requestOf ({ path, protocol }: Dialect, id: string): string {
  const request = upgradeRequest(id).replace(/^GET \S+/, `GET ${path(id)}`)
  return protocol === undefined ? request : request.replace('\r\n\r\n', `\r\nSec-WebSocket-Protocol: ${protocol}\r\n\r\n`)
}
