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
  /** Maximum size of a line in bytes. */
  maxMessage: number
  pongTimeout: number
  closeTimeout: number
}

/** Receives the events of a connection that has no session yet. */
export interface TcpConnectionListener {
  /** The name of the transport. */
  readonly transport: string
  onLine (text: string): void
  /** The connection has sent something that is no line, or has closed its side. */
  onInvalid (reason: CloseReason): void
  onClosed (): void
}

/** One TCP, TLS or Unix connection with one message a line. All connections share their event listeners, so that none costs a closure. */
export class TcpConnection implements Socket {
  sent = 0
  session: Session | undefined
  /** How the connection ended, as far as this side knows. */
  closeNotice = { code: closeCodes.lost.code as number, reason: closeCodes.lost.message as string }
  readonly codec: Codec
  readonly #socket: SocketWithConnection
  readonly #limits: TcpConnectionLimits
  readonly #listener: TcpConnectionListener
  readonly #splitter: LineSplitter
  #hasEnded = false
  #isPaused = false
  #probe: ProbeState | undefined

  constructor (socket: RawSocket, { codec, limits, listener }: { codec: Codec, limits: TcpConnectionLimits, listener: TcpConnectionListener }) {
    this.codec = codec
    this.#limits = limits
    this.#listener = listener
    this.#splitter = new LineSplitter(Math.min(limits.maxMessage, MAX_CONNECT_BYTES))
    this.#socket = socket as SocketWithConnection
    this.#socket[kConnection] = this
    socket.on('data', onData)
    socket.on('end', onEnd)
    socket.on('error', onError)
    socket.on('close', onClose)
  }

  get transport (): string {
    return this.#listener.transport
  }

  get isOpen (): boolean {
    return !this.#hasEnded && this.#socket.writable
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

  /** Sends a message where there is no session, or none any more. */
  sendMessage (message: Message): void {
    this.#write(toLine(this.codec.encode(message)!))
  }

  onDrain (listener: () => void): void {
    this.#socket.write('', error => { if (!error) listener() })
  }

  /** TCP has no ping of its own, so this calls `ping`. Any answer proves life, an error too. */
  ping (): void {
    this.session!.peer.call('ping', undefined, { timeout: this.#limits.pongTimeout }).catch(() => {})
  }

  /** Any line that arrives after the ping proves life. All lines wait for `resume`. */
  probe (onAlive: () => void): void {
    const probe = this.#probe ??= { lines: [], size: 0 }
    probe.onAlive = undefined
    this.#splitter.limit = this.#limits.maxMessage
    this.#read() // these lines were sent before the ping: the device may have gone since
    probe.onAlive = onAlive
    this.ping()
    this.#socket.resume()
  }

  /** Keeps incoming lines until there is a session for them. */
  pause (): void {
    this.#isPaused = true
  }

  /** Processes the lines that were kept, and then lines as they arrive. */
  resume (): void {
    const { lines } = this.#probe ?? { lines: [] }
    this.#probe = undefined
    this.#isPaused = false
    this.#splitter.limit = this.#limits.maxMessage
    for (const line of lines) this.#processLine(line)
    this.#socket.resume()
    this.#read()
  }

  close (code: number, reason: string): void {
    if (!this.isOpen) return
    this.closeNotice = { code, reason }
    try {
      this.sendMessage(closeNotice(code, reason))
    } catch {} // a custom codec may be unable to encode it
    this.#end()
  }

  cut (): void {
    this.#socket.destroy()
  }

  receive (chunk: Buffer): void {
    if (this.#hasEnded) return
    this.#splitter.add(chunk)
    this.#read()
  }

  /** A device that closes its side has left, even if it would still read. */
  halfClosed (): void {
    if (this.#hasEnded) return
    if (this.session) this.#peerLeft(closeCodes['no-code'].code, closeCodes['no-code'].message)
    else this.#listener.onInvalid('no-code')
  }

  closed (): void {
    this.#hasEnded = true
    this.session?.closed(this.closeNotice.code, this.closeNotice.reason)
    this.#listener.onClosed()
  }

  #read (): void {
    while (this.#mayRead && !this.#hasEnded) {
      const line = this.#nextLine()
      if (!line) break
      this.#processLine(line)
    }
    if (this.#splitter.waiting > this.#limits.maxMessage) this.#socket.pause()
  }

  get #mayRead (): boolean {
    return this.#probe ? this.#probe.size <= this.#limits.maxMessage : !this.#isPaused
  }

  #nextLine (): Buffer | undefined {
    try {
      return this.#splitter.next()
    } catch { // the line is too long
      this.#fail('size')
      return undefined
    }
  }

  #processLine (line: Buffer): void {
    if (isBlank(line) && !this.#probe) return void this.session?.spend(1)
    if (!isUtf8(line)) return this.#fail('text')
    try {
      this.#processText(line)
    } catch { // a custom codec may throw
      this.#fail('internal')
    }
  }

  #processText (line: Buffer): void {
    const text = line.toString()
    const notice = closeNoticeIn(text, this.codec)
    if (notice) this.#peerLeft(notice.code, notice.reason)
    else if (this.#probe) this.#keepLine(line, this.#probe)
    else if (this.session) this.session.receive(text, line.length)
    else this.#listener.onLine(text)
  }

  #keepLine (line: Buffer, probe: ProbeState): void {
    probe.lines.push(Buffer.from(line)) // a copy, because the line is a view of a chunk that may be large
    probe.size += line.length + 1
    // the end of the connection may follow right behind, and is read one turn of the event loop later
    const { onAlive } = probe
    if (onAlive) setImmediate(() => setImmediate(() => { if (this.isOpen) onAlive() }))
  }

  #fail (reason: CloseReason): void {
    if (this.session) this.session.end(reason)
    else this.#listener.onInvalid(reason)
  }

  #peerLeft (code: number, reason: string): void {
    this.closeNotice = { code, reason }
    this.session?.closed(code, reason)
    this.#end()
  }

  /** Nothing is sent or processed any more. The other side has `closeTimeout` to close its side, and is cut then. */
  #end (): void {
    this.#hasEnded = true
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

/** Limit of the first line, which comes from an unauthenticated device. */
const MAX_CONNECT_BYTES = 16_384
const CARRIAGE_RETURN = 0x0d
const kConnection = Symbol('connection')

/** Lines that arrive while the device is probed. */
interface ProbeState {
  lines: Buffer[]
  size: number
  onAlive?: (() => void) | undefined
}

type SocketWithConnection = RawSocket & {
  [kConnection]: TcpConnection
  /** `writeQueueSize`: bytes that the operating system has not taken yet. */
  _handle?: { writeQueueSize?: number }
}

/** A payload as one whole line. */
function toLine (payload: string | Uint8Array): Buffer {
  return Buffer.from(`${payload as string}\n`)
}

/** Somebody who types may press Enter on an empty line. */
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
  this.destroy() // after a TLS error the socket does not close by itself
}

function onClose (this: RawSocket): void {
  (this as SocketWithConnection)[kConnection].closed()
}
