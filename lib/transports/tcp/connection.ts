import { isUtf8 } from 'node:buffer'
import type { Socket as RawSocket } from 'node:net'
import { closeCodes, type CloseReason } from '../../protocol/errors.ts'
import { closeNotice, closeNoticeIn } from '../../protocol/close-notice.ts'
import type { Outgoing } from '../../connection/frame.ts'
import { LineSplitter } from '../../protocol/line-splitter.ts'
import type { Codec, Message } from '../../protocol/message.ts'
import type { Session } from '../../connection/session.ts'
import type { Socket } from '../../connection/session-host.ts'

export interface TcpConnectionLimits {
  /** Bytes of a line. */
  maxMessage: number
  pongTimeout: number
  closeTimeout: number
}

/** Who looks after a stream that has no session yet, and wants to know when it is over. */
export interface TcpConnectionListener {
  /** A line came. */
  greet (text: string): void
  /** Something came that can be no line, or the other side will say nothing more. */
  spoilt (goodbye: CloseReason): void
  ended (): void
}

/** One TCP, TLS or Unix connection: a message a line. Its listeners are shared by all: a connection costs no closure. */
export class TcpConnection implements Socket {
  sent = 0
  session: Session | undefined
  /** How it ended, as far as it is known here. */
  closeNotice = { code: closeCodes.vanished.code as number, reason: closeCodes.vanished.message as string }
  readonly codec: Codec
  readonly #socket: SocketWithConnection
  readonly #limits: TcpConnectionLimits
  readonly #keeper: TcpConnectionListener
  readonly #lines: LineSplitter
  #isOver = false
  #isHeld = false
  /** Lines that came while the other side was probed. */
  #early: { lines: Buffer[], size: number, onAlive?: (() => void) | undefined } | undefined

  constructor (socket: RawSocket, { codec, limits, keeper }: { codec: Codec, limits: TcpConnectionLimits, keeper: TcpConnectionListener }) {
    this.codec = codec
    this.#limits = limits
    this.#keeper = keeper
    this.#lines = new LineSplitter(Math.min(limits.maxMessage, MAX_CONNECT_BYTES))
    this.#socket = socket as SocketWithConnection
    this.#socket[kConnection] = this
    socket.on('data', onData)
    socket.on('end', onEnd)
    socket.on('error', onError)
    socket.on('close', onClose)
  }

  get isOpen (): boolean {
    return !this.#isOver && this.#socket.writable
  }

  get buffered (): number {
    return this.#socket.writableLength
  }

  get queued (): number | undefined {
    return this.#socket._handle?.writeQueueSize
  }

  get received (): number {
    return this.#socket.bytesRead
  }

  send (outgoing: Outgoing): void {
    if (this.isOpen) this.#write(outgoing.wire(toLine))
  }

  /** Says something where there is no session yet, or no more. */
  say (message: Message): void {
    this.#write(toLine(this.codec.encode(message)!))
  }

  onDrain (listener: () => void): void {
    this.#socket.write('', error => { if (!error) listener() })
  }

  /** There are no pings on a line: any answer to a call, an error too, is as good. */
  ping (): void {
    this.session!.peer.call('ping', undefined, { timeout: this.#limits.pongTimeout }).catch(() => {})
  }

  /** Any line that comes after the ping counts. All lines wait for `release`. */
  probe (onAlive: () => void): void {
    const early = this.#early ??= { lines: [], size: 0 }
    early.onAlive = undefined
    this.#lines.limit = this.#limits.maxMessage
    this.#read() // sent before the ping, and perhaps all that the other side left behind
    early.onAlive = onAlive
    this.ping()
    this.#socket.resume()
  }

  /** Lets the lines that come wait until there is a session for them. */
  hold (): void {
    this.#isHeld = true
  }

  release (): void {
    const { lines } = this.#early ?? { lines: [] }
    this.#early = undefined
    this.#isHeld = false
    this.#lines.limit = this.#limits.maxMessage
    for (const line of lines) this.#take(line)
    this.#socket.resume()
    this.#read()
  }

  close (code: number, reason: string): void {
    if (!this.isOpen) return
    this.closeNotice = { code, reason }
    try {
      this.say(closeNotice(code, reason))
    } catch {} // a codec that is not ours has no words for it
    this.#finish()
  }

  cut (): void {
    this.#socket.destroy()
  }

  receive (chunk: Buffer): void {
    if (this.#isOver) return
    this.#lines.add(chunk)
    this.#read()
  }

  /** The other side has nothing more to say: it has left, even if it would listen on. */
  halfClosed (): void {
    if (this.#isOver) return
    if (this.session) this.#left(closeCodes.unsaid.code, closeCodes.unsaid.message)
    else this.#keeper.spoilt('unsaid')
  }

  closed (): void {
    this.#isOver = true
    this.session?.closed(this.closeNotice.code, this.closeNotice.reason)
    this.#keeper.ended()
  }

  #read (): void {
    while (this.#mayRead && !this.#isOver) {
      const line = this.#next()
      if (!line) break
      this.#take(line)
    }
    if (this.#lines.waiting > this.#limits.maxMessage) this.#socket.pause()
  }

  get #mayRead (): boolean {
    return this.#early ? this.#early.size <= this.#limits.maxMessage : !this.#isHeld
  }

  #next (): Buffer | undefined {
    try {
      return this.#lines.next()
    } catch { // it is too long
      this.#spoil('size')
      return undefined
    }
  }

  #take (line: Buffer): void {
    if (isBlank(line) && !this.#early) return void this.session?.spend(1)
    if (!isUtf8(line)) return this.#spoil('text')
    try {
      this.#hear(line)
    } catch { // a codec that is not ours cannot read it
      this.#spoil('fault')
    }
  }

  #hear (line: Buffer): void {
    const text = line.toString()
    const said = closeNoticeIn(text, this.codec)
    if (said) this.#left(said.code, said.reason)
    else if (this.#early) this.#keep(line)
    else if (this.session) this.session.receive(text, line.length)
    else this.#keeper.greet(text)
  }

  #keep (line: Buffer): void {
    const early = this.#early!
    early.lines.push(Buffer.from(line)) // a copy, because the chunk may be large
    early.size += line.length + 1
    // the end of the connection may be right behind it: it is read one turn of the event loop later
    const { onAlive } = early
    if (onAlive) setImmediate(() => setImmediate(() => { if (this.isOpen) onAlive() }))
  }

  #spoil (goodbye: CloseReason): void {
    if (this.session) this.session.end(goodbye)
    else this.#keeper.spoilt(goodbye)
  }

  #left (code: number, reason: string): void {
    this.closeNotice = { code, reason }
    this.session?.closed(code, reason)
    this.#finish()
  }

  /** Nothing is said or heard any more, and the other side has so long to hang up as well. */
  #finish (): void {
    this.#isOver = true
    this.#socket.end()
    this.#socket.resume()
    const timer = setTimeout(() => this.cut(), this.#limits.closeTimeout)
    this.#socket.once('close', () => clearTimeout(timer))
  }

  #write (wire: Buffer): void {
    this.sent += wire.length
    this.#socket.write(wire)
  }
}

/** Who a device is takes no more bytes than this. */
const MAX_CONNECT_BYTES = 16_384
const kConnection = Symbol('stream')
const CARRIAGE_RETURN = 0x0d

type SocketWithConnection = RawSocket & {
  [kConnection]: TcpConnection
  /** How much of what it was given the system has not taken yet. */
  _handle?: { writeQueueSize?: number }
}

/** A payload as one whole line. */
function toLine (payload: string | Uint8Array): Buffer {
  return Buffer.from(`${payload as string}\n`)
}

/** Whoever types may press Enter for nothing. */
function isBlank (line: Buffer): boolean {
  return line.length === 0 || (line.length === 1 && line[0] === CARRIAGE_RETURN)
}

function onData (this: RawSocket, chunk: Buffer): void {
  (this as SocketWithConnection)[kConnection].receive(chunk)
}

function onEnd (this: RawSocket): void {
  (this as SocketWithConnection)[kConnection].halfClosed()
}

function onError (this: RawSocket): void {
  this.destroy() // after an error of TLS it would not close by itself
}

function onClose (this: RawSocket): void {
  (this as SocketWithConnection)[kConnection].closed()
}
