import { randomBytes } from 'node:crypto'
import type { ServerResponse } from 'node:http'
import type { Socket as RawSocket } from 'node:net'
import type { Duplex } from 'node:stream'
import { WebSocket } from 'ws'
import type { CloseReason } from '../../protocol/errors.ts'
import type { Form, Outgoing } from '../../connection/frame.ts'
import type { Session } from '../../connection/session.ts'
import type { Socket } from '../../connection/session-host.ts'
import { toWire } from './frame.ts'

/** One WebSocket. Its listeners are shared by all: a connection costs no closure. */
export class WebSocketConnection implements Socket {
  sent = 0
  session: Session | undefined
  readonly #socket: SocketWithConnection
  /** Frames received before the welcome; undefined once frames go to the session at once. */
  #held: HeldFrames | undefined
  /** The connection below it. What leaves is framed already, and is written past the sender of `ws`. */
  readonly stream: RawStream
  readonly #lines: Set<WebSocketConnection>
  readonly #form: Form | 'masked'

  /** `deflating` is the form for those who have agreed on compression; a line that we dialled ourselves is `masked`. */
  constructor (socket: WebSocket, lines: Set<WebSocketConnection>, deflating: Form | 'masked' | undefined) {
    this.#socket = socket as SocketWithConnection
    this.#socket[kConnection] = this
    this.#lines = lines.add(this)
    this.#form = deflating === 'masked' || (deflating && inflates(this.#socket)) ? deflating : toWire
    // what @fastify/websocket left on it holds the request, the reply and their headers
    socket.removeAllListeners('error')
    this.stream = this.#socket._socket
    this.stream._httpMessage?.detachSocket(this.stream as unknown as RawSocket)
    socket.on('message', onMessage)
    socket.on('ping', onPing)
    socket.on('pong', onPong)
    socket.on('error', onError)
    socket.on('close', onClose)
  }

  get isOpen (): boolean {
    return this.#socket.readyState === OPEN
  }

  get buffered (): number {
    return this.stream.writableLength
  }

  get queued (): number | undefined {
    return this.stream._handle?.writeQueueSize
  }

  get received (): number | undefined {
    return this.stream.bytesRead
  }

  send (outgoing: Outgoing): void {
    if (!this.isOpen) return
    if (this.#form === 'masked') return this.#mask(outgoing)
    const wire = outgoing.wire(this.#form)
    const isFirst = this.sent === 0
    this.sent += wire.length
    this.stream.write(wire)
    if (isFirst) this.stream.uncork() // the answer to the upgrade has waited for it
  }

  onDrain (listener: () => void): void {
    // `drain` comes only after more than the socket's own high-water mark was waiting; this comes always
    this.stream.write('', error => { if (!error) listener() })
  }

  ping (): void {
    this.#socket.ping()
  }

  /** Frames wait from now on: in the kernel, but for those that come while the device is probed. */
  hold (): void {
    this.#held = { frames: [], size: 0 }
    this.#socket.pause()
  }

  /** Only the answer to this very ping counts: frames may be all that a device left behind when it gave up. */
  probe (onAlive: () => void): void {
    const probe = randomBytes(PROBE_BYTES)
    this.#held!.probe = { payload: probe, onAlive }
    this.stream.uncork()
    this.#socket.ping(probe)
    this.#socket.resume()
  }

  /** Hands over what was held, and whatever comes. */
  release (): void {
    const { frames } = this.#held!
    this.#held = undefined
    for (const [frame, size] of frames) this.session!.receive(frame, size)
    this.#socket.resume()
  }

  receive (frame: string | Buffer, size: number): void {
    const held = this.#held
    if (!held) return this.session!.receive(frame, size)
    held.frames.push([frame, size])
    held.size += size
    if (held.size > MAX_HELD) this.#socket.pause()
  }

  pong (payload: Buffer): void {
    const { probe } = this.#held ?? {}
    if (!probe) return this.session!.pong()
    if (probe.payload.equals(payload)) probe.onAlive()
  }

  close (code: number, reason: string): void {
    this.#socket.resume()
    this.#socket.close(code, reason)
  }

  cut (): void {
    this.#socket.terminate()
  }

  closed (code: number, reason: string): void {
    this.#lines.delete(this)
    this.session!.closed(code, reason)
  }

  /** Each has a mask of its own, so there is nothing to share. */
  #mask (outgoing: Outgoing): void {
    for (const payload of outgoing.payloads()) this.#socket.send(payload)
    this.sent = (this.stream as unknown as RawSocket).bytesWritten
  }
}

const { OPEN } = WebSocket
const PROBE_BYTES = 8
/** Bytes of frames that are held for a device which is probed. */
const MAX_HELD = 65_536

interface HeldFrames {
  frames: Array<[frame: string | Buffer, size: number]>
  size: number
  probe?: { payload: Buffer, onAlive: () => void }
}
const kConnection = Symbol('line')

type SocketWithConnection = WebSocket & {
  [kConnection]: WebSocketConnection
  _socket: RawStream
  /** What was agreed on. */
  _extensions: { 'permessage-deflate'?: { params: { server_max_window_bits?: number } } }
}

/** Whether it can read what was compressed for all. One that asked for a smaller window gets frames as they are, which it may. */
function inflates ({ _extensions: { 'permessage-deflate': deflate } }: SocketWithConnection): boolean {
  return deflate !== undefined && deflate.params.server_max_window_bits === undefined
}

/** A connection as Node has it; an injected one has less. */
export type RawStream = Duplex & {
  bytesRead?: number
  localAddress?: string
  /** How much of what it was given the system has not taken yet. */
  _handle?: { writeQueueSize?: number }
  /** Kept while a request on it is answered. */
  _httpMessage?: ServerResponse
}

/** What was wrong with a frame, in the words of `ws`; everything else it finds breaks the protocol. */
const faults: Record<string, CloseReason> = {
  WS_ERR_INVALID_UTF8: 'text',
  WS_ERR_UNSUPPORTED_MESSAGE_LENGTH: 'size',
  WS_ERR_UNSUPPORTED_DATA_PAYLOAD_LENGTH: 'size',
  WS_ERR_TOO_MANY_BUFFERED_PARTS: 'policy'
}

function onMessage (this: WebSocket, data: Buffer, isBinary: boolean): void {
  (this as SocketWithConnection)[kConnection].receive(isBinary ? data : data.toString(), data.length)
}

function onPing (this: WebSocket): void {
  (this as SocketWithConnection)[kConnection].session!.spend(1)
}

function onPong (this: WebSocket, payload: Buffer): void {
  (this as SocketWithConnection)[kConnection].pong(payload)
}

function onError (this: WebSocket, { code = '' }: NodeJS.ErrnoException): void {
  const session = (this as SocketWithConnection)[kConnection].session!
  // a line that was cut has no code of `ws` or of zlib, and its `close` follows
  if (code.startsWith('WS_ERR_')) session.end(faults[code] ?? 'protocol')
  else if (code.startsWith('Z_')) session.end('text', 'sent what cannot be inflated')
}

function onClose (this: WebSocket, code: number, reason: Buffer): void {
  (this as SocketWithConnection)[kConnection].closed(code, reason.toString())
}
