import type { Socket } from 'node:net'
import type { ConnectionOptions } from 'node:tls'
import { jsonrpc } from '../protocol/jsonrpc.ts'
import { connectTo } from '../protocol/connect.ts'
import { closeNotice, closeNoticeIn, type CloseNotice } from '../protocol/close-notice.ts'
import { LineSplitter } from '../protocol/line-splitter.ts'
import type { WebSocketLike } from './connection.ts'

export interface TcpSocketOptions {
  /** Speak TLS; with `cert` and `key` the device shows a certificate. */
  tls?: ConnectionOptions
  /** Bytes of a line. */
  maxMessage?: number
}

const BEARER = 'bearer.'
const VANISHED: CloseNotice = { code: 1006, reason: '' }
const frames = jsonrpc()
const lines = jsonrpc({ bytes: 'base64' })

/** What `connect` takes as `WebSocket` to go over TCP, TLS or a Unix socket instead. In Node only. */
export function tcpSocket ({ tls, maxMessage = 16_777_216 }: TcpSocketOptions = {}): new (url: string, protocols: string[]) => WebSocketLike {
  return class extends TcpSocket {
    constructor (url: string, protocols: string[]) {
      super(new URL(url), protocols, tls, maxMessage)
    }
  }
}

type Listener = (event: any) => void

/** One connection to the TCP door, as a client takes it for a WebSocket. */
class TcpSocket implements WebSocketLike {
  binaryType = ''
  readonly #socket: Socket
  readonly #lines: LineSplitter
  readonly #listeners = new Map<string, Listener>()
  #farewell = VANISHED

  constructor (url: URL, protocols: string[], tls: ConnectionOptions | undefined, maxMessage: number) {
    this.#lines = new LineSplitter(maxMessage)
    this.#socket = connectTo(url, tls)
    this.#socket.on('data', chunk => this.#receive(chunk))
    this.#socket.on('error', error => {
      this.#tell('error', error)
      this.#socket.destroy() // after an error of TLS it would not close by itself
    })
    this.#socket.on('close', () => this.#tell('close', this.#farewell))
    const deviceId = url.searchParams.get('deviceId')
    const token = protocols.find(name => name.startsWith(BEARER))?.slice(BEARER.length)
    this.#say(lines.encode({ kind: 'notice', method: 'connect', params: { deviceId, token } }) as string)
  }

  addEventListener (type: string, listener: Listener): void {
    this.#listeners.set(type, listener)
  }

  /** Bytes go as base64, which a line can hold. */
  send (data: string | Uint8Array): void {
    this.#say((typeof data === 'string' ? data : lines.encode(frames.decode(data))) as string)
  }

  close (code?: number): void {
    if (code !== undefined) this.#say(lines.encode(closeNotice(code, '')) as string)
    this.#socket.destroySoon()
  }

  #say (line: string): void {
    this.#socket.write(`${line}\n`)
  }

  #receive (chunk: Buffer): void {
    this.#lines.add(chunk)
    try {
      for (let line = this.#lines.next(); line; line = this.#lines.next()) this.#take(line.toString())
    } catch { // the line is too long, and what comes after it no use
      this.#socket.destroy()
    }
  }

  #take (text: string): void {
    const said = closeNoticeIn(text, lines)
    if (said) this.#farewell = said
    else this.#tell('message', { data: toFrame(text) })
  }

  #tell (type: string, event: object): void {
    this.#listeners.get(type)?.(event)
  }
}

/** As it would have come over WebSocket: with bytes in it, as a binary frame. */
function toFrame (text: string): string | Uint8Array {
  if (!text.includes('"base64"')) return text
  const frame = frames.encode(lines.decode(text))!
  return typeof frame === 'string' ? text : frame
}
