import type { Socket as RawSocket } from 'node:net'
import { TLSSocket } from 'node:tls'
import type { TransportContext } from '../../gateway/transport.ts'
import { retryWithin } from '../../gateway/drain.ts'
import { reasons, Failure, closeCodes, type CloseReason, type Reason } from '../../protocol/errors.ts'
import type { ConnectRequest } from '../../gateway/connect-request.ts'
import type { Call, Message, Notice } from '../../protocol/message.ts'
import type { AdmittedDevice } from '../../connection/session-host.ts'
import { TcpConnection, type TcpConnectionListener } from './connection.ts'

/** What a newcomer tells the door it stands in. */
export interface TcpHandshakeHost {
  /** It is a Unix socket. */
  readonly isLocal: boolean
  letIn (newcomer: TcpHandshake): void
  ended (newcomer: TcpHandshake): void
}

const OBJECT = 0x7b
const BLANKS = Buffer.from(' \t\r\n')
const HINT = 'The first message is connect {deviceId, token}'

/** What whoever is not admitted is told at last; every other reason is one that only something else than waiting mends. */
const closeReasonOf: Partial<Record<Reason, CloseReason>> = { draining: 'leaving', unauthenticated: 'unauthenticated', departed: 'done' }

/** A connection on its way in: it introduces itself with its first line, or is shown out. */
export class TcpHandshake implements TcpConnectionListener {
  readonly #socket: RawSocket
  readonly #address: string | undefined
  readonly #ground: TransportContext
  readonly #host: TcpHandshakeHost
  readonly #stream: TcpConnection
  readonly #deadline: NodeJS.Timeout
  readonly #departure = new AbortController()
  #state: 'waiting' | 'asking' | 'settled' = 'waiting'

  constructor (socket: RawSocket, address: string | undefined, ground: TransportContext, host: TcpHandshakeHost) {
    this.#socket = socket
    this.#address = address
    this.#ground = ground
    this.#host = host
    this.#deadline = setTimeout(() => this.#turnAway('silent'), ground.limits.admissionTimeout)
    socket.on('data', this.#look)
    this.#stream = new TcpConnection(socket, { codec: ground.codec, limits: ground.limits, keeper: this })
  }

  greet (text: string): void {
    const asked = this.#ground.codec.decode(text)
    if (isAsked(asked) && asked.method === 'connect') return void this.#introduce(asked)
    if (isAsked(asked)) this.#answer(asked, 'malformed', HINT)
    this.#turnAway('protocol', HINT)
  }

  spoilt (goodbye: CloseReason): void {
    if (this.#state === 'waiting') this.#turnAway(goodbye === 'unsaid' ? 'silent' : goodbye)
    else this.#departure.abort(new Failure('departed'))
  }

  ended (): void {
    if (this.#state === 'waiting') this.#turnAway('vanished')
    this.#departure.abort(new Failure('departed'))
    this.#host.ended(this)
  }

  /** The node is leaving. */
  leave (): void {
    if (this.#state === 'waiting') this.#turnAway('leaving', retryWithin(this.#ground.limits.retrySpread))
    else this.#departure.abort(new Failure('draining'))
  }

  /** What does not begin like a message is none: an HTTP request, a TLS hello. Neither need ever send a newline. */
  readonly #look = (chunk: Buffer): void => {
    const first = chunk.find(byte => !BLANKS.includes(byte))
    if (first === undefined) return
    this.#socket.removeListener('data', this.#look)
    if (first !== OBJECT) this.#turnAway('protocol', HINT)
  }

  async #introduce (asked: Call | Notice): Promise<void> {
    clearTimeout(this.#deadline)
    this.#state = 'asking'
    this.#stream.hold()
    const arrival = await this.#admit(asked)
    this.#state = 'settled'
    if (!arrival) return
    this.#host.letIn(this)
    const session = this.#stream.session = this.#ground.gateway.open(arrival, this.#stream)
    if (asked.kind === 'call') this.#stream.say({ kind: 'result', id: asked.id, result: {} })
    await this.#ground.gateway.enter(session)
    this.#stream.release()
  }

  /** Nothing: it may not come in, or has left meanwhile. */
  async #admit (asked: Call | Notice): Promise<AdmittedDevice | undefined> {
    const { gateway, codec } = this.#ground
    try {
      return await gateway.admit(this.#introductionOf(asked), this.#departure, codec)
    } catch (error) {
      this.#refuse(asked, error as Failure)
      return undefined
    }
  }

  #introductionOf ({ params }: Call | Notice): ConnectRequest {
    const { deviceId, token } = { ...params as Record<string, unknown> }
    const { localAddress } = this.#socket
    const introduction: ConnectRequest = {
      deviceId,
      token: typeof token === 'string' ? token : undefined,
      protocols: [],
      address: this.#address,
      isLocal: this.#host.isLocal,
      localAddress,
      headers: {}
    }
    if (!(this.#socket instanceof TLSSocket && this.#socket.authorized)) return introduction
    return { ...introduction, certificate: this.#socket.getPeerCertificate() }
  }

  #refuse (asked: Call | Notice, { reason, message, mayPass }: Failure): void {
    if (!this.#stream.isOpen) return
    this.#answer(asked, reason, message)
    const goodbye = mayPass ? 'overloaded' : closeReasonOf[reason] ?? 'forbidden'
    this.#stream.close(closeCodes[goodbye].code, goodbye === 'leaving' ? retryWithin(this.#ground.limits.retrySpread) : message)
  }

  #answer (asked: Call | Notice, reason: Reason, message: string): void {
    if (asked.kind === 'call') this.#stream.say({ kind: 'failure', id: asked.id, reason, detail: { code: (reasons[reason] ?? reasons.internal).rpc, message } })
  }

  #turnAway (goodbye: CloseReason, reason: string = closeCodes[goodbye].message): void {
    clearTimeout(this.#deadline)
    this.#state = 'settled'
    this.#ground.gateway.refused(goodbye, { address: this.#address })
    this.#stream.close(closeCodes[goodbye].code, reason)
  }
}

/** Whether it is a call or a notice. */
function isAsked (message: Message | Message[]): message is Call | Notice {
  return !Array.isArray(message) && (message.kind === 'call' || message.kind === 'notice')
}
