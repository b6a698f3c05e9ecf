import { once } from 'node:events'
import type { Socket as RawSocket } from 'node:net'
import { WebSocket, type ClientOptions } from 'ws'
import type { DialRequest, OutboundConnection } from '../gateway/dial.ts'
import { connectTo } from '../protocol/connect.ts'
import type { CloseNotice } from '../protocol/close-notice.ts'
import { decodeWith } from '../protocol/message.ts'
import { WebSocketConnection } from './websocket/connection.ts'
import { TcpConnection, type TcpConnectionListener } from './tcp/connection.ts'

/** To a WebSocket of another server. */
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
  const giveUp = () => socket.terminate()
  signal.addEventListener('abort', giveUp)
  socket.once('close', () => signal.removeEventListener('abort', giveUp))
  return new Promise((resolve, reject) => {
    socket.once('error', reject)
    socket.once('open', () => {
      const line = new WebSocketConnection(socket, new Set(), 'masked')
      line.hold()
      const over = new Promise<CloseNotice>(resolve => {
        socket.once('close', (code, reason) => resolve({ code, reason: reason.toString() }))
      })
      const { remoteAddress: address, localAddress } = line.stream as RawSocket
      resolve({ socket: line, address, localAddress, ended: over, release: () => line.release(), cut: () => line.cut() })
    })
  })
}

/** To a TCP or Unix socket of another server. */
export async function connectTcp ({ url, as, token, codec, tls, context, signal }: DialRequest): Promise<OutboundConnection> {
  const socket = connectTo(url, tls)
  const giveUp = () => socket.destroy(signal.reason as Error)
  signal.addEventListener('abort', giveUp)
  socket.once('close', () => signal.removeEventListener('abort', giveUp))
  await once(socket, tls ? 'secureConnect' : 'connect')
  const caller = new TcpDialer()
  const stream = caller.stream = new TcpConnection(socket, { codec, limits: context.limits, keeper: caller })
  if (as === undefined) {
    stream.hold()
  } else {
    sendConnect(stream, socket, { deviceId: as, token })
    await caller.accepted
  }
  const { remoteAddress: address, localAddress } = socket
  return { socket: stream, address, localAddress, ended: caller.over, release: () => stream.release(), cut: () => stream.cut() }
}

function sendConnect (stream: TcpConnection, socket: RawSocket, params: object): void {
  try {
    stream.say({ kind: 'call', id: 'connect', method: 'connect', params })
  } catch (error) { // a codec that is not ours
    socket.destroy()
    throw error
  }
}

/** Waits for the other side to accept us, and for the end. */
class TcpDialer implements TcpConnectionListener {
  stream!: TcpConnection
  readonly accepted: Promise<void>
  readonly over: Promise<CloseNotice>
  #accept!: () => void
  #refuse!: (farewell: CloseNotice) => void
  #end!: (farewell: CloseNotice) => void

  constructor () {
    this.accepted = new Promise((resolve, reject) => {
      this.#accept = resolve
      this.#refuse = reject
    })
    this.accepted.catch(() => {})
    this.over = new Promise(resolve => { this.#end = resolve })
  }

  /** The answer to our introduction; an error comes with a goodbye. */
  greet (text: string): void {
    const answer = decodeWith(this.stream.codec, text)
    if (Array.isArray(answer) || answer.kind !== 'result') return
    this.stream.hold()
    this.#accept()
  }

  spoilt (): void {
    this.stream.cut()
  }

  ended (): void {
    this.#refuse(this.stream.closeNotice)
    this.#end(this.stream.closeNotice)
  }
}
