import { once } from 'node:events'
import type { Socket as RawSocket } from 'node:net'
import { WebSocket, type ClientOptions } from 'ws'
import type { DialRequest, OutboundConnection } from '../gateway/dial.ts'
import { connectTo } from '../protocol/connect.ts'
import type { CloseNotice } from '../protocol/close-notice.ts'
import { decodeWith } from '../protocol/message.ts'
import { WebSocketConnection } from './websocket/connection.ts'
import { TcpConnection, type TcpConnectionListener } from './tcp/connection.ts'

/** Connects to a WebSocket of another server. */
export function connectWebSocket ({ url, as, token, codec, tls, context, signal }: DialRequest): Promise<OutboundConnection> {
  if (as !== undefined) url.searchParams.set('deviceId', as)
  const { maxMessage, closeTimeout } = context.limits
  const options: ClientOptions & { closeTimeout: number } = {
    ...(tls as object),
    headers: token === undefined ? {} : { authorization: `Bearer ${token}` },
    perMessageDeflate: false,
    followRedirects: false,
    maxPayload: maxMessage,
    closeTimeout
  }
  const socket = new WebSocket(url, [codec.subprotocol], options)
  const abort = () => socket.terminate()
  signal.addEventListener('abort', abort)
  socket.once('close', () => signal.removeEventListener('abort', abort))
  return new Promise((resolve, reject) => {
    socket.once('error', reject)
    socket.once('open', () => {
      const connection = new WebSocketConnection(socket, new Set(), 'masked')
      connection.pause()
      const over = new Promise<CloseNotice>(resolve => {
        socket.once('close', (code, reason) => resolve({ code, reason: reason.toString() }))
      })
      const { remoteAddress: address, localAddress } = connection.stream as RawSocket
      resolve({ socket: connection, address, localAddress, ended: over, release: () => connection.resume(), cut: () => connection.cut() })
    })
  })
}

/** Connects to a TCP or Unix socket of another server. */
export async function connectTcp ({ url, as, token, codec, tls, context, signal }: DialRequest): Promise<OutboundConnection> {
  const socket = connectTo(url, tls)
  const abort = () => socket.destroy(signal.reason as Error)
  signal.addEventListener('abort', abort)
  socket.once('close', () => signal.removeEventListener('abort', abort))
  await once(socket, tls ? 'secureConnect' : 'connect')
  const dialer = new TcpDialer()
  const connection = dialer.connection = new TcpConnection(socket, { codec, limits: context.limits, listener: dialer })
  if (as === undefined) {
    connection.pause()
  } else {
    sendConnect(connection, socket, { deviceId: as, token })
    await dialer.accepted
  }
  const { remoteAddress: address, localAddress } = socket
  return { socket: connection, address, localAddress, ended: dialer.closed, release: () => connection.resume(), cut: () => connection.cut() }
}

function sendConnect (connection: TcpConnection, socket: RawSocket, params: object): void {
  try {
    connection.sendMessage({ kind: 'call', id: 'connect', method: 'connect', params })
  } catch (error) { // a custom codec may throw
    socket.destroy()
    throw error
  }
}

/** Waits until the other side accepts the connection, and until the connection ends. */
class TcpDialer implements TcpConnectionListener {
  connection!: TcpConnection
  readonly accepted: Promise<void>
  readonly closed: Promise<CloseNotice>
  #accept!: () => void
  #reject!: (notice: CloseNotice) => void
  #resolveClosed!: (notice: CloseNotice) => void

  constructor () {
    this.accepted = new Promise((resolve, reject) => {
      this.#accept = resolve
      this.#reject = reject
    })
    this.accepted.catch(() => {})
    this.closed = new Promise(resolve => { this.#resolveClosed = resolve })
  }

  get transport (): string {
    return 'dialled'
  }

  /** Only the result of `connect` counts; a close notice follows an error. */
  onLine (text: string): void {
    const answer = decodeWith(this.connection.codec, text)
    if (Array.isArray(answer) || answer.kind !== 'result') return
    this.connection.pause()
    this.#accept()
  }

  onInvalid (): void {
    this.connection.cut()
  }

  onClosed (): void {
    this.#reject(this.connection.closeNotice)
    this.#resolveClosed(this.connection.closeNotice)
  }
}
