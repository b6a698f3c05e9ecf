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

/** One WebSocket. All connections share their event listeners, so that none costs a closure. */
export class WebSocketConnection implements Socket {
  sent = 0
  session: Session | undefined
  readonly #socket: SocketWithConnection
  /** Frames received before the welcome; undefined once frames go to the session directly. */
  #pausedFrames: PausedFrames | undefined
  /** The stream below the WebSocket. Output is already framed, so it bypasses the sender of `ws`. */
  readonly stream: RawStream
  readonly #connections: Set<WebSocketConnection>
  readonly #form: Form | 'masked'

  /** `form` is for devices that negotiated compression. It is `masked` for outbound connections, because a client must mask its frames. */
  constructor (socket: WebSocket, connections: Set<WebSocketConnection>, form: Form | 'masked' | undefined) {
    this.#socket = socket as SocketWithConnection
    this.#socket[kConnection] = this
    this.#connections = connections.add(this)
    this.#form = form === 'masked' || (form && canInflate(this.#socket)) ? form : toWire
    // the listener of @fastify/websocket retains the request, the reply and their headers
    socket.removeAllListeners('error')
    this.stream = this.#socket._socket
    this.stream._httpMessage?.detachSocket(this.stream as unknown as RawSocket)
    socket.on('message', onMessage)
    socket.on('ping', onPing)
    socket.on('pong', onPong)
    socket.on('error', onError)
    socket.on('close', onClose)
  }

  get transport (): string {
    return this.#form === 'masked' ? 'dialled' : 'websocket'
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
    if (this.#form === 'masked') return this.#sendMasked(outgoing)
    const wire = outgoing.wire(this.#form)
    const isFirst = this.sent === 0
    this.sent += wire.length
    this.stream.write(wire)
    if (isFirst) this.stream.uncork() // the upgrade response has waited to leave with it
  }

  onDrain (listener: () => void): void {
    // `drain` fires only after the high-water mark was exceeded; this callback always runs
    this.stream.write('', error => { if (!error) listener() })
  }

  ping (): void {
    this.#socket.ping()
  }

  /** Keeps frames from the session. They wait in the kernel, except those that arrive while the device is probed. */
  pause (): void {
    this.#pausedFrames = { frames: [], size: 0 }
    this.#socket.pause()
  }

  /** Only the pong to this ping proves life: other frames may have been sent before the device gave the connection up. */
  probe (onAlive: () => void): void {
    const payload = randomBytes(PROBE_BYTES)
    this.#pausedFrames!.probe = { payload, onAlive }
    this.stream.uncork()
    this.#socket.ping(payload)
    this.#socket.resume()
  }

  /** Gives the session the frames that were kept, and then frames as they arrive. */
  resume (): void {
    const { frames } = this.#pausedFrames!
    this.#pausedFrames = undefined
    for (const [frame, size] of frames) this.session!.receive(frame, size)
    this.#socket.resume()
  }

  receive (frame: string | Buffer, size: number): void {
    const paused = this.#pausedFrames
    if (!paused) return this.session!.receive(frame, size)
    paused.frames.push([frame, size])
    paused.size += size
    if (paused.size > MAX_PAUSED_BYTES) this.#socket.pause()
  }

  pong (payload: Buffer): void {
    const { probe } = this.#pausedFrames ?? {}
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
    this.#connections.delete(this)
    this.session!.closed(code, reason)
  }

  /** Each frame has a mask of its own, so there are no bytes to share. */
  #sendMasked (outgoing: Outgoing): void {
    for (const payload of outgoing.payloads()) this.#socket.send(payload)
    this.sent = (this.stream as unknown as RawSocket).bytesWritten
  }
}

const { OPEN } = WebSocket
const PROBE_BYTES = 8
/** Limit of the frames that are kept while a device is probed. */
const MAX_PAUSED_BYTES = 65_536
const kConnection = Symbol('connection')

interface PausedFrames {
  frames: Array<[frame: string | Buffer, size: number]>
  size: number
  probe?: { payload: Buffer, onAlive: () => void }
}

type SocketWithConnection = WebSocket & {
  [kConnection]: WebSocketConnection
  _socket: RawStream
  /** The negotiated extensions. */
  _extensions: { 'permessage-deflate'?: { params: { server_max_window_bits?: number } } }
}

/** Whether the device can inflate the shared frames. One that asked for a smaller window gets uncompressed frames, which RFC 7692 permits. */
function canInflate ({ _extensions: { 'permessage-deflate': deflate } }: SocketWithConnection): boolean {
  return deflate !== undefined && deflate.params.server_max_window_bits === undefined
}

/** A socket of Node; the stream of an injected request has fewer members. */
export type RawStream = Duplex & {
  bytesRead?: number
  localAddress?: string
  /** `writeQueueSize`: bytes that the operating system has not taken yet. */
  _handle?: { writeQueueSize?: number }
  /** The response that is being written. */
  _httpMessage?: ServerResponse
}

/** Close reasons by error code of `ws`; every other error of `ws` is a protocol error. */
const closeReasons: Record<string, CloseReason> = {
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
  // an error of the stream has another code; `close` follows
  if (code.startsWith('WS_ERR_')) session.end(closeReasons[code] ?? 'protocol')
  else if (code.startsWith('Z_')) session.end('text', 'sent what cannot be inflated')
}

function onClose (this: WebSocket, code: number, reason: Buffer): void {
  (this as SocketWithConnection)[kConnection].closed(code, reason.toString())
}
