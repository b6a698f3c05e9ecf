import type { Socket as RawSocket } from 'node:net'
import { TLSSocket } from 'node:tls'
import type { Ground } from '../../gateway/transport.ts'
import { retryWithin } from '../../gateway/drain.ts'
import { answers, Failure, goodbyes, type Goodbye, type Reason } from '../../protocol/errors.ts'
import type { Introduction } from '../../gateway/connect-request.ts'
import type { Call, Message, Notice } from '../../protocol/message.ts'
import type { Arrival } from '../../connection/session.ts'
import { Stream, type Keeper } from './connection.ts'

/** What a newcomer tells the door it stands in. */
export interface Host {
  /** It is a Unix socket. */
  readonly isLocal: boolean
  letIn (newcomer: Newcomer): void
  ended (newcomer: Newcomer): void
}

const OBJECT = 0x7b
const BLANKS = Buffer.from(' \t\r\n')
const HINT = 'The first message is connect {deviceId, token}'

/** What whoever is not admitted is told at last; every other reason is one that only something else than waiting mends. */
const farewells: Partial<Record<Reason, Goodbye>> = { draining: 'leaving', unauthenticated: 'unauthenticated', departed: 'done' }

/** A connection on its way in: it introduces itself with its first line, or is shown out. */
export class Newcomer implements Keeper {
  readonly #socket: RawSocket
  readonly #address: string | undefined
  readonly #ground: Ground
  readonly #host: Host
  readonly #stream: Stream
  readonly #deadline: NodeJS.Timeout
  readonly #departure = new AbortController()
  #state: 'waiting' | 'asking' | 'settled' = 'waiting'

  constructor (socket: RawSocket, address: string | undefined, ground: Ground, host: Host) {
    this.#socket = socket
    this.#address = address
    this.#ground = ground
    this.#host = host
    this.#deadline = setTimeout(() => this.#turnAway('silent'), ground.limits.admissionTimeout)
    socket.on('data', this.#look)
    this.#stream = new Stream(socket, { codec: ground.codec, limits: ground.limits, keeper: this })
  }

  greet (text: string): void {
    const asked = this.#ground.codec.decode(text)
    if (isAsked(asked) && asked.method === 'connect') return void this.#introduce(asked)
    if (isAsked(asked)) this.#answer(asked, 'malformed', HINT)
    this.#turnAway('protocol', HINT)
  }

  spoilt (goodbye: Goodbye): void {
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
    const session = this.#stream.session = this.#ground.entrance.open(arrival, this.#stream)
    if (asked.kind === 'call') this.#stream.say({ kind: 'result', id: asked.id, result: {} })
    await this.#ground.entrance.enter(session)
    this.#stream.release()
  }

  /** Nothing: it may not come in, or has left meanwhile. */
  async #admit (asked: Call | Notice): Promise<Arrival | undefined> {
    const { entrance, codec } = this.#ground
    try {
      return await entrance.admit(this.#introductionOf(asked), this.#departure, codec)
    } catch (error) {
      this.#refuse(asked, error as Failure)
      return undefined
    }
  }

  #introductionOf ({ params }: Call | Notice): Introduction {
    const { deviceId, token } = { ...params as Record<string, unknown> }
    const { localAddress } = this.#socket
    const introduction: Introduction = {
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
    const goodbye = mayPass ? 'overloaded' : farewells[reason] ?? 'forbidden'
    this.#stream.close(goodbyes[goodbye].code, goodbye === 'leaving' ? retryWithin(this.#ground.limits.retrySpread) : message)
  }

  #answer (asked: Call | Notice, reason: Reason, message: string): void {
    if (asked.kind === 'call') this.#stream.say({ kind: 'failure', id: asked.id, reason, detail: { code: (answers[reason] ?? answers.internal).rpc, message } })
  }

  #turnAway (goodbye: Goodbye, reason: string = goodbyes[goodbye].message): void {
    clearTimeout(this.#deadline)
    this.#state = 'settled'
    this.#ground.entrance.refused(goodbye, { address: this.#address })
    this.#stream.close(goodbyes[goodbye].code, reason)
  }
}

/** Whether it is a call or a notice. */
function isAsked (message: Message | Message[]): message is Call | Notice {
  return !Array.isArray(message) && (message.kind === 'call' || message.kind === 'notice')
}
