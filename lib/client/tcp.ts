import type { Socket } from 'node:net'
import type { ConnectionOptions } from 'node:tls'
import { jsonrpc } from '../protocol/jsonrpc.ts'
import { connectTo } from '../protocol/connect.ts'
import { closeNotice, closeNoticeIn, type CloseNotice } from '../protocol/close-notice.ts'
import { LineSplitter } from '../protocol/line-splitter.ts'
import type { WebSocketLike } from './connection.ts'

export interface TcpSocketOptions {
  /** Options of `tls.connect`: connects over TLS. With `cert` and `key` the device presents a client certificate. */
  tls?: ConnectionOptions
  /**
   * Maximum length of a received line, in bytes; a longer one ends the connection.
   * @default 16_777_216
   */
  maxMessage?: number
}

const BEARER = 'bearer.'
const ABNORMAL_CLOSURE: CloseNotice = { code: 1006, reason: '' }
// a message without a trace is encoded as without tracing
const frameCodec = jsonrpc().traced!
const lineCodec = jsonrpc({ bytes: 'base64' }).traced!

/** For the option `WebSocket` of `connect`: connects over TCP, TLS or a Unix socket. For Node only. */
export function tcpSocket ({ tls, maxMessage = 16_777_216 }: TcpSocketOptions = {}): new (url: string, protocols: string[]) => WebSocketLike {
  return class extends TcpSocket {
    constructor (url: string, protocols: string[]) {
      super(new URL(url), protocols, tls, maxMessage)
    }
  }
}

type Listener = (event: any) => void

/** A connection to the TCP transport with the interface of a WebSocket. */
class TcpSocket implements WebSocketLike {
  binaryType = ''
  readonly #socket: Socket
  readonly #lines: LineSplitter
  readonly #listeners = new Map<string, Listener>()
  #closeNotice = ABNORMAL_CLOSURE

  constructor (url: URL, protocols: string[], tls: ConnectionOptions | undefined, maxMessage: number) {
    this.#lines = new LineSplitter(maxMessage)
    this.#socket = connectTo(url, tls)
    this.#socket.on('data', chunk => this.#receive(chunk))
    this.#socket.on('error', error => {
      this.#emit('error', error)
      this.#socket.destroy() // a TLS socket does not close by itself after an error
    })
    this.#socket.on('close', () => this.#emit('close', this.#closeNotice))
    const deviceId = url.searchParams.get('deviceId')
    const token = protocols.find(name => name.startsWith(BEARER))?.slice(BEARER.length)
    const trace = url.searchParams.has('trace') || undefined
    this.#writeLine(lineCodec.encode({ kind: 'notice', method: 'connect', params: { deviceId, token, trace } }) as string)
  }

  addEventListener (type: string, listener: Listener): void {
    this.#listeners.set(type, listener)
  }

  /** Bytes are sent as base64, because a line is text. */
  send (data: string | Uint8Array): void {
    this.#writeLine((typeof data === 'string' ? data : lineCodec.encode(frameCodec.decode(data))) as string)
  }

  close (code?: number): void {
    if (code !== undefined) this.#writeLine(lineCodec.encode(closeNotice(code, '')) as string)
    this.#socket.destroySoon()
  }

  #writeLine (line: string): void {
    this.#socket.write(`${line}\n`)
  }

  #receive (chunk: Buffer): void {
    this.#lines.add(chunk)
    try {
      for (let line = this.#lines.next(); line; line = this.#lines.next()) this.#receiveLine(line.toString())
    } catch { // the line is too long; nothing after it can be read
      this.#socket.destroy()
    }
  }

  #receiveLine (text: string): void {
    const notice = closeNoticeIn(text, lineCodec)
    if (notice) this.#closeNotice = notice
    else this.#emit('message', { data: toFrame(text) })
  }

  #emit (type: string, event: object): void {
    this.#listeners.get(type)?.(event)
  }
}

/** The frame that a WebSocket would have received: a binary one if the line carries bytes. */
function toFrame (line: string): string | Uint8Array {
  if (!line.includes('"base64"')) return line
  const frame = frameCodec.encode(lineCodec.decode(line))!
  return typeof frame === 'string' ? line : frame
}
