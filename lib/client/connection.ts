import { jsonrpc } from '../protocol/jsonrpc.ts'
import { Failure } from '../protocol/errors.ts'
import { failureMessage, type Call, type Message, type Notice, type Result } from '../protocol/message.ts'
import { Peer, type InboundCall, type PeerHandler } from '../protocol/peer.ts'

/** The WebSocket of browsers, and the one of `ws`. */
export interface WebSocketLike {
  binaryType: string
  send (data: string | Uint8Array): void
  close (code?: number, reason?: string): void
  /** Of `ws`: ends it without waiting for the other side. */
  terminate? (): void
  addEventListener (type: 'message' | 'close' | 'error', listener: (event: any) => void): void
}

/** What a line needs of the client behind it. */
export interface ConnectionEnd {
  answer (asked: Call | Notice, inbound: InboundCall): unknown
  ended (code: number, reason: string): void
  failed (error: unknown): unknown
}

type PendingCall = [method: 'subscribe' | 'unsubscribe', topics: string[]]

/** A connection that ended without a word, or never was one. */
export const VANISHED = 1006
const PING_TIMEOUT = 10_000
const PING = '{"jsonrpc":"2.0","id":"ping","method":"ping"}'
/** As many as a server takes by default; those beyond wait for their turn. */
const CALLS = 32
const INBOUND = 1_000
/** A server may be configured to pass on more than it takes from strangers, so there is no use in being strict with it. */
const DEPTH = 1_000
/** How long a server is left alone that takes no more just now. */
const PAUSE = 1_000
const TOO_MUCH = 429
const codec = jsonrpc({ depth: DEPTH })

/** One connection of a client. */
export class ClientConnection implements PeerHandler {
  readonly peer = new Peer(this, { concurrency: CALLS, maxInbound: INBOUND })
  readonly #socket: WebSocketLike
  readonly #end: ConnectionEnd
  readonly #timeout: number
  readonly #asked: PendingCall[] = []
  #heard = false
  #timer: ReturnType<typeof setTimeout> | undefined
  #pause: ReturnType<typeof setTimeout> | undefined
  #over = false

  constructor (socket: WebSocketLike, end: ConnectionEnd, timeout: number) {
    this.#socket = socket
    this.#end = end
    this.#timeout = timeout
    socket.binaryType = 'arraybuffer'
    socket.addEventListener('message', ({ data }: { data: string | ArrayBuffer }) => {
      if (this.#over) return
      this.#heard = true
      this.peer.receive(codec.decode(typeof data === 'string' ? data : new Uint8Array(data)))
    })
    // its close follows, and says nothing; what is known is known here, and in browsers nowhere
    let trouble = ''
    socket.addEventListener('error', ({ message = '' }: { message?: string }) => { trouble = message })
    socket.addEventListener('close', ({ code, reason }: { code: number, reason: string }) => this.#ended(code, reason || trouble))
  }

  /** Notices by itself when nothing is heard any more, even where it asked: browsers do not show the pings of the server. */
  listen (heartbeat: number, asked = false): void {
    clearTimeout(this.#timer)
    this.#heard = false
    this.#timer = setTimeout(() => {
      const silent = !this.#heard
      if (silent && asked) return this.cut()
      if (silent) this.#socket.send(PING) // past the calls that wait for their turn; whatever comes is an answer to it
      this.listen(heartbeat, silent)
    }, asked ? Math.min(heartbeat, PING_TIMEOUT) : heartbeat)
  }

  /** Tells the server what to listen to: one call after the other, so that none overtakes another. */
  async tell (...asked: PendingCall): Promise<void> {
    if (this.#asked.push(asked) > 1) return
    for (; this.#asked[0]; this.#asked.shift()) await this.#ask(...this.#asked[0])
  }

  /** Gives up on it. */
  cut (): void {
    this.#ended(VANISHED, '')
  }

  close (): void {
    this.#socket.close(1000)
    this.#ended(1000, '')
  }

  transmit (message: Message | Message[]): void {
    this.#socket.send(this.#encode(message))
  }

  answer (asked: Call | Notice, inbound: InboundCall): unknown {
    return this.#end.answer(asked, inbound)
  }

  refused (): void {}

  unexpected (): void {}

  async #ask (...[method, topics]: PendingCall): Promise<void> {
    try {
      await this.peer.call(method, { topics }, { timeout: this.#timeout })
    } catch (error) {
      if (this.#over) return
      if ((error as Failure).statusCode === TOO_MUCH) {
        await new Promise(resolve => { this.#pause = setTimeout(resolve, PAUSE) })
        await this.#ask(method, topics)
      } else if (topics.length === 1) this.#end.failed(naming(method, topics[0]!, error as Failure))
      else for (const topic of topics) await this.#ask(method, [topic]) // one that is refused must not take the others with it
    }
  }

  /** What cannot be encoded is the caller's fault; an answer that cannot is ours, and told so. */
  #encode (message: Message | Message[]): string | Uint8Array {
    try {
      return codec.encode(message)!
    } catch (error) { // a circle, a bigint
      if ('method' in message) throw new Failure('bad-params', { message: (error as Error | undefined)?.message })
      this.#end.failed(error)
      return codec.encode(([message].flat() as Result[]).map(({ id }) => failureMessage(id, undefined)))!
    }
  }

  #ended (code: number, reason: string): void {
    if (this.#over) return
    this.#over = true
    clearTimeout(this.#timer)
    clearTimeout(this.#pause)
    this.peer.end()
    // a line that fell silent has not closed, and would not answer
    if (code === VANISHED) (this.#socket.terminate ?? this.#socket.close).call(this.#socket)
    this.#end.ended(code, reason)
  }
}

/** The same failure, with words that say which topic it was: nobody waits for this call, so nothing else does. */
function naming (method: string, topic: string, { reason, message, device }: Failure): Failure {
  return new Failure(reason, { message: `${method} ${topic}: ${device?.message ?? message}`, detail: device })
}
