import { Failure } from '../protocol/errors.ts'
import { failureMessage, type Call, type Message, type Notice, type Result } from '../protocol/message.ts'
import { Peer, type InboundCall, type PeerHandler } from '../protocol/peer.ts'
import type { ClientTracer } from './tracer.ts'

/** The part of the WebSocket API that the client uses; browsers and the package `ws` have it. */
export interface WebSocketLike {
  binaryType: string
  send (data: string | Uint8Array): void
  close (code?: number, reason?: string): void
  /** Closes without the closing handshake. Only `ws` has it. */
  terminate? (): void
  addEventListener (type: 'message' | 'close' | 'error', listener: (event: any) => void): void
}

/** What a connection needs of its client. */
export interface ConnectionHandler {
  answer (request: Call | Notice, inbound: InboundCall): unknown
  ended (code: number, reason: string): void
  failed (error: unknown): unknown
}

type TopicRequest = [method: 'subscribe' | 'unsubscribe', topics: string[]]

/** Close code of a connection that ended without a close frame, or was never established. */
export const ABNORMAL_CLOSURE = 1006
export const NORMAL_CLOSURE = 1000
const PING_TIMEOUT_MS = 10_000
const PING = '{"jsonrpc":"2.0","id":"ping","method":"ping"}'
/** The default limit of a server; further calls wait in order. */
const MAX_CONCURRENT_CALLS = 32
const MAX_INBOUND_CALLS = 1_000
/** Delay before a topic request is repeated that the server refused for being busy. */
const RETRY_DELAY_MS = 1_000
const TOO_MANY_REQUESTS = 429

/** One connection of a client. */
export class ClientConnection implements PeerHandler {
  readonly peer = new Peer(this, { concurrency: MAX_CONCURRENT_CALLS, maxInbound: MAX_INBOUND_CALLS })
  readonly #socket: WebSocketLike
  readonly #handler: ConnectionHandler
  readonly #timeout: number
  readonly #codec: ClientTracer['codec']
  readonly #topicRequests: TopicRequest[] = []
  #hasReceived = false
  #heartbeatTimer: ReturnType<typeof setTimeout> | undefined
  #retryTimer: ReturnType<typeof setTimeout> | undefined
  #isEnded = false

  constructor (socket: WebSocketLike, handler: ConnectionHandler, timeout: number, codec: ClientTracer['codec']) {
    this.#socket = socket
    this.#handler = handler
    this.#timeout = timeout
    this.#codec = codec
    socket.binaryType = 'arraybuffer'
    socket.addEventListener('message', ({ data }: { data: string | ArrayBuffer }) => {
      if (this.#isEnded) return
      this.#hasReceived = true
      this.peer.receive(codec.decode(typeof data === 'string' ? data : new Uint8Array(data)))
    })
    // The close event that follows an error has no reason. The error has one in `ws`, but not in browsers.
    let errorMessage = ''
    socket.addEventListener('error', ({ message = '' }: { message?: string }) => { errorMessage = message })
    socket.addEventListener('close', ({ code, reason }: { code: number, reason: string }) => this.#end(code, reason || errorMessage))
  }

  /** Terminates the connection when nothing is received, not even the answer to a ping. Browsers hide the server's ping frames, so the ping is a call. */
  watchLiveness (heartbeat: number, hasPinged = false): void {
    clearTimeout(this.#heartbeatTimer)
    this.#hasReceived = false
    this.#heartbeatTimer = setTimeout(() => {
      const isSilent = !this.#hasReceived
      if (isSilent && hasPinged) return this.terminate()
      if (isSilent) this.#socket.send(PING) // bypasses the call queue; any message counts as the answer
      this.watchLiveness(heartbeat, isSilent)
    }, hasPinged ? Math.min(heartbeat, PING_TIMEOUT_MS) : heartbeat)
  }

  /** Subscribes to topics, or unsubscribes. Requests are sent one after the other, so that none overtakes another. */
  async requestTopics (...request: TopicRequest): Promise<void> {
    if (this.#topicRequests.push(request) > 1) return
    for (const next of this.#topicRequests) await this.#sendTopics(...next)
    this.#topicRequests.length = 0
  }

  /** Ends the connection at once, without the closing handshake. */
  terminate (): void {
    this.#end(ABNORMAL_CLOSURE, '')
  }

  close (): void {
    this.#socket.close(NORMAL_CLOSURE)
    this.#end(NORMAL_CLOSURE, '')
  }

  transmit (message: Message | Message[]): void {
    this.#socket.send(this.#encode(message))
  }

  answer (request: Call | Notice, inbound: InboundCall): unknown {
    return this.#handler.answer(request, inbound)
  }

  refused (): void {}

  unexpected (): void {}

  async #sendTopics (...[method, topics]: TopicRequest): Promise<void> {
    try {
      await this.peer.call(method, { topics }, { timeout: this.#timeout })
    } catch (error) {
      if (this.#isEnded) return
      if ((error as Failure).statusCode === TOO_MANY_REQUESTS) {
        await new Promise(resolve => { this.#retryTimer = setTimeout(resolve, RETRY_DELAY_MS) })
        await this.#sendTopics(method, topics)
      } else if (topics.length === 1) this.#handler.failed(withTopic(method, topics[0]!, error as Failure))
      else for (const topic of topics) await this.#sendTopics(method, [topic]) // one by one: a refused topic must not affect the others
    }
  }

  /** If a request cannot be encoded, its caller gets the failure; if an answer cannot, the server gets an internal error. */
  #encode (message: Message | Message[]): string | Uint8Array {
    try {
      return this.#codec.encode(message)!
    } catch (error) { // a circular reference or a BigInt
      if ('method' in message) throw new Failure('bad-params', { message: (error as Error | undefined)?.message })
      this.#handler.failed(error)
      return this.#codec.encode(([message].flat() as Result[]).map(({ id }) => failureMessage(id, undefined)))!
    }
  }

  #end (code: number, reason: string): void {
    if (this.#isEnded) return
    this.#isEnded = true
    clearTimeout(this.#heartbeatTimer)
    clearTimeout(this.#retryTimer)
    this.peer.end()
    // a silent connection is still open, and its server would not answer the closing handshake
    if (code === ABNORMAL_CLOSURE) (this.#socket.terminate ?? this.#socket.close).call(this.#socket)
    this.#handler.ended(code, reason)
  }
}

/** Adds the topic to the message of a failure: the application did not make this call, so it could not tell which topic failed. */
function withTopic (method: string, topic: string, { reason, message, device }: Failure): Failure {
  return new Failure(reason, { message: `${method} ${topic}: ${device?.message ?? message}`, detail: device })
}
