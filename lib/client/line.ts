import { jsonrpc } from '../codecs/jsonrpc.ts'
import type { Call, Message, Notice } from '../message.ts'
import { Peer, type Inbound, type Party } from '../peer.ts'

/** The WebSocket of browsers, and the one of `ws`. */
export interface WebSocketLike {
  binaryType: string
  send (data: string | Uint8Array): void
  close (code?: number, reason?: string): void
  addEventListener (type: string, listener: (event: any) => void): void
}

/** What a line needs of the client behind it. */
export interface End {
  answer (asked: Call | Notice, inbound: Inbound): unknown
  ended (code: number, reason: string): void
}

const VANISHED = 1006
const PING_TIMEOUT = 10_000
const INBOUND = 128
const codec = jsonrpc()

/** One connection of a client. */
export class Line implements Party {
  readonly peer = new Peer(this, { concurrency: Infinity, inbound: INBOUND })
  readonly openedAt = Date.now()
  readonly #socket: WebSocketLike
  readonly #end: End
  #heard = true
  #listening: ReturnType<typeof setInterval> | undefined
  #over = false

  constructor (socket: WebSocketLike, end: End) {
    this.#socket = socket
    this.#end = end
    socket.binaryType = 'arraybuffer'
    socket.addEventListener('message', ({ data }: { data: string | ArrayBuffer }) => {
      if (this.#over) return
      this.#heard = true
      this.peer.receive(codec.decode(typeof data === 'string' ? data : new Uint8Array(data)))
    })
    socket.addEventListener('close', ({ code, reason }: { code: number, reason: string }) => this.#ended(code, reason))
    socket.addEventListener('error', () => {}) // its close follows
  }

  /** Notices by itself when nothing is heard any more: browsers do not show the pings of the server. */
  listen (heartbeat: number): void {
    this.#listening = setInterval(() => {
      if (this.#heard) this.#heard = false
      else this.peer.call('ping', undefined, { timeout: Math.min(heartbeat, PING_TIMEOUT) }).catch(() => this.#ended(VANISHED, ''))
    }, heartbeat)
  }

  close (): void {
    this.#socket.close(1000)
    this.#ended(1000, '')
  }

  say (message: Message | Message[]): void {
    this.#socket.send(codec.encode(message)!)
  }

  answer (asked: Call | Notice, inbound: Inbound): unknown {
    return this.#end.answer(asked, inbound)
  }

  busy (): void {}

  stray (): void {}

  #ended (code: number, reason: string): void {
    if (this.#over) return
    this.#over = true
    clearInterval(this.#listening)
    this.peer.end()
    if (code === VANISHED) this.#socket.close() // a line that fell silent has not closed
    this.#end.ended(code, reason)
  }
}
