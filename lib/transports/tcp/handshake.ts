import type { Socket as RawSocket } from 'node:net'
import { TLSSocket } from 'node:tls'
import type { TransportContext } from '../../gateway/transport.ts'
import { retryWithin } from '../../gateway/drain.ts'
import { reasons, Failure, closeCodes, type CloseReason, type Reason } from '../../protocol/errors.ts'
import type { ConnectRequest } from '../../gateway/connect-request.ts'
import type { Call, Message, Notice } from '../../protocol/message.ts'
import type { AdmittedDevice } from '../../connection/session-host.ts'
import { TcpConnection, type TcpConnectionListener } from './connection.ts'

/** The transport, as a handshake needs it. */
export interface TcpHandshakeHost {
  /** The transport listens on a Unix socket. */
  readonly isLocal: boolean
  onAdmitted (handshake: TcpHandshake): void
  onClosed (handshake: TcpHandshake): void
}

const OPENING_BRACE = 0x7b
const BLANKS = Buffer.from(' \t\r\n')
const HINT = 'The first message is connect {deviceId, token}'

/** Close reasons of refusals. Every other refusal is `forbidden`, because the device cannot cure it by waiting. */
const refusalCloseReasons: Partial<Record<Reason, CloseReason>> = { draining: 'leaving', unauthenticated: 'unauthenticated', departed: 'done' }

/** Admits a connection whose first line is `connect`, and closes any other. */
export class TcpHandshake implements TcpConnectionListener {
  readonly #socket: RawSocket
  readonly #address: string | undefined
  readonly #context: TransportContext
  readonly #host: TcpHandshakeHost
  readonly #connection: TcpConnection
  readonly #timer: NodeJS.Timeout
  /** Aborts when the device leaves, or the node drains, during admission. */
  readonly #departure = new AbortController()
  #state: 'waiting' | 'admitting' | 'settled' = 'waiting'

  constructor (socket: RawSocket, address: string | undefined, context: TransportContext, host: TcpHandshakeHost) {
    this.#socket = socket
    this.#address = address
    this.#context = context
    this.#host = host
    this.#timer = setTimeout(() => this.#reject('silent'), context.limits.admissionTimeout)
    socket.on('data', this.#checkFirstByte)
    this.#connection = new TcpConnection(socket, { codec: context.codec, limits: context.limits, listener: this })
  }

  get transport (): string {
    return 'tcp'
  }

  onLine (text: string): void {
    const message = this.#context.codec.decode(text)
    if (isRequest(message) && message.method === 'connect') return void this.#connect(message)
    if (isRequest(message)) this.#sendFailure(message, 'malformed', HINT)
    this.#reject('protocol', HINT)
  }

  onInvalid (reason: CloseReason): void {
    if (this.#state === 'waiting') this.#reject(reason === 'no-code' ? 'silent' : reason)
    else this.#departure.abort(new Failure('departed'))
  }

  onClosed (): void {
    if (this.#state === 'waiting') this.#reject('lost')
    this.#departure.abort(new Failure('departed'))
    this.#host.onClosed(this)
  }

  /** The node is draining. */
  abort (): void {
    if (this.#state === 'waiting') this.#reject('leaving', retryWithin(this.#context.limits.retrySpread))
    else this.#departure.abort(new Failure('draining'))
  }

  /** Rejects an HTTP request or a TLS hello by its first byte, because neither need ever contain a newline. */
  readonly #checkFirstByte = (chunk: Buffer): void => {
    const first = chunk.find(byte => !BLANKS.includes(byte))
    if (first === undefined) return
    this.#socket.removeListener('data', this.#checkFirstByte)
    if (first !== OPENING_BRACE) this.#reject('protocol', HINT)
  }

  async #connect (request: Call | Notice): Promise<void> {
    clearTimeout(this.#timer)
    this.#state = 'admitting'
    this.#connection.pause()
    const device = await this.#admit(request)
    this.#state = 'settled'
    if (!device) return
    this.#host.onAdmitted(this)
    const session = this.#connection.session = this.#context.gateway.open(device, this.#connection)
    if (request.kind === 'call') this.#connection.sendMessage({ kind: 'result', id: request.id, result: {} })
    await this.#context.gateway.enter(session)
    this.#connection.resume()
  }

  /** Undefined: the device was refused, or has left meanwhile. */
  async #admit (request: Call | Notice): Promise<AdmittedDevice | undefined> {
    const { gateway, codec } = this.#context
    try {
      return await gateway.admit(this.#connectRequestOf(request), this.#departure, codec)
    } catch (error) {
      this.#refuse(request, error as Failure)
      return undefined
    }
  }

  #connectRequestOf ({ params }: Call | Notice): ConnectRequest {
    const { deviceId, token, trace } = { ...params as Record<string, unknown> }
    const { localAddress } = this.#socket
    const connectRequest: ConnectRequest = {
      deviceId,
      token: typeof token === 'string' ? token : undefined,
      protocols: [],
      trace: trace === true || trace === 1,
      address: this.#address,
      isLocal: this.#host.isLocal,
      localAddress,
      headers: {}
    }
    if (!(this.#socket instanceof TLSSocket && this.#socket.authorized)) return connectRequest
    return { ...connectRequest, certificate: this.#socket.getPeerCertificate() }
  }

  /** Admission has failed: answers the request and closes the connection. */
  #refuse (request: Call | Notice, { reason, message, mayPass }: Failure): void {
    if (!this.#connection.isOpen) return
    this.#sendFailure(request, reason, message)
    const closeReason = mayPass ? 'overloaded' : refusalCloseReasons[reason] ?? 'forbidden'
    this.#connection.close(closeCodes[closeReason].code, closeReason === 'leaving' ? retryWithin(this.#context.limits.retrySpread) : message)
  }

  #sendFailure (request: Call | Notice, reason: Reason, message: string): void {
    if (request.kind !== 'call') return
    const { rpc } = reasons[reason] ?? reasons.internal
    this.#connection.sendMessage({ kind: 'failure', id: request.id, reason, detail: { code: rpc, message } })
  }

  /** Closes a connection that never reached admission. */
  #reject (closeReason: CloseReason, text: string = closeCodes[closeReason].message): void {
    clearTimeout(this.#timer)
    this.#state = 'settled'
    this.#context.gateway.refused(closeReason, { address: this.#address })
    this.#connection.close(closeCodes[closeReason].code, text)
  }
}

function isRequest (message: Message | Message[]): message is Call | Notice {
  return !Array.isArray(message) && (message.kind === 'call' || message.kind === 'notice')
}
