import type { FastifyBaseLogger } from 'fastify'
import type { Owner, Ownership } from '../cluster/backplane.ts'
import { TokenBucket, type RateLimit } from './token-bucket.ts'
import { clock } from './clock.ts'
import { assertTimestamp, type Credentials, type DeviceDescription, type Device, type Disconnect } from './device.ts'
import { Failure, closeCodes, type CloseReason, type Reason } from '../protocol/errors.ts'
import { Frame } from './frame.ts'
import { Liveness, type HeartbeatSocket, type HeartbeatLimits } from './heartbeat.ts'
import { decodeWith, failureMessage, type Call, type Codec, type FailureMessage, type InvalidMessage, type Message, type NamedCall, type Notice, type Result } from '../protocol/message.ts'
import { WriteQueue, type WriteTarget } from './write-queue.ts'
import { Peer, type CallOptions, type InboundCall, type PeerHandler, type PeerLimits } from '../protocol/peer.ts'
import type { Stats } from './stats.ts'
import { invoke, describeThrown } from '../protocol/user-code.ts'
import type { FlushScheduler } from './flush-scheduler.ts'

const BYTES_PER_TOKEN = 8_192

/** One open connection, as a transport offers it. */
export interface Socket extends HeartbeatSocket, WriteTarget {
  /** False: the goodbyes are said, only the connection is not down yet. */
  readonly isOpen: boolean
  /** Pings, and calls back at the first thing that comes after it. What comes before the welcome still waits. */
  probe? (onAlive: () => void): void
  close (code: number, reason: string): void
}

export interface SessionLimits extends HeartbeatLimits, RateLimit {
  maxBuffered: number
  maxCalls: number
  callTimeout: number
}

/** What a session needs of the node it lives on. */
export interface SessionHost {
  readonly node: string
  readonly limits: SessionLimits
  readonly stats: Stats
  readonly tide: FlushScheduler
  readonly log: FastifyBaseLogger
  answer (session: Session, asked: Call | Notice, inbound: InboundCall): unknown
  left (session: Session): void
  /** There may be letters for it. */
  wake (session: Session): void
}

/** What is known of a device when its connection opens. */
export interface AdmittedDevice {
  deviceId: string
  address: string | undefined
  localAddress: string | undefined
  /** None, where nobody asks for any. */
  credentials?: Credentials | undefined
  /** When they end, in milliseconds since 1970. */
  expiresAt?: number | undefined
  codec: Codec
}

/**
 * One live connection of one device. Many are held at a time, and most of them say nothing: what only some need is made when it is
 * asked for, and what is the same for all is not copied into each.
 */
export class Session implements Device, PeerHandler, PeerLimits {
  readonly id: string
  readonly since: number
  readonly address: string | undefined
  readonly localAddress: string | undefined
  readonly codec: Codec
  readonly peer: Peer
  /** Goes from one connection of the device to the next: coming again does not fill it. */
  readonly bucket: TokenBucket
  left: Disconnect | undefined
  /** Answers for this session what other nodes ask. */
  owner: Owner | undefined
  readonly #home: SessionHost
  readonly #socket: Socket
  readonly #output: WriteQueue
  readonly #pulse: Liveness
  #ownership: Ownership | undefined
  #topics: Set<string> | undefined
  #credentials: Credentials | undefined
  /** When the device was welcomed, as `clock` says. */
  #enteredAt: number | undefined
  /** Who asks for the device before it is welcomed. */
  #early: Array<() => void> | undefined
  #calls = 0
  #messages = 0
  #expiresAt: number | undefined

  constructor (home: SessionHost, socket: Socket, { deviceId, address, localAddress, credentials, expiresAt, codec }: AdmittedDevice, bucket?: TokenBucket) {
    const now = clock()
    this.id = deviceId
    this.since = Date.now()
    this.address = address
    this.localAddress = localAddress
    this.#credentials = credentials
    this.codec = codec
    this.#home = home
    this.#socket = socket
    this.#output = new WriteQueue(socket, home.limits.maxBuffered, home.tide)
    this.#pulse = new Liveness(home.limits, now)
    this.bucket = bucket ?? new TokenBucket(home.limits, now)
    this.#expiresAt = expiresAt
    this.peer = new Peer(this, this)
  }

  get topics (): Set<string> {
    return this.#topics ??= new Set()
  }

  get credentials (): Credentials {
    return this.#credentials ??= {}
  }

  /** Milliseconds that a call may keep others off the wire, where there is room for few. */
  get patience (): number | undefined {
    return this.codec.concurrency === Infinity ? undefined : this.#home.limits.callTimeout
  }

  /** Speaks a protocol that has none of our methods. */
  get isForeign (): boolean {
    return this.codec.callOf !== undefined
  }

  /** There may be letters for the device. */
  wake (): void {
    this.#home.wake(this)
  }

  /** Known to all who meet it: nobody does before the device is its own. */
  get generation (): number {
    return this.#ownership!.generation
  }

  /** Calls in flight, of both sides; letters on their way do not count. */
  get calls (): number {
    return this.#calls + this.peer.answering
  }

  get protocol (): string {
    return this.codec.subprotocol
  }

  get node (): string {
    return this.#home.node
  }

  /** The device is this session's now; one that has left meanwhile gives it back. */
  own (ownership: Ownership): void {
    if (typeof ownership.generation !== 'number') throw new TypeError('The backplane gave no generation')
    this.#ownership = ownership
    if (this.left) this.#release()
  }

  /** It is in the registry and welcomed. */
  enter (): void {
    this.#enteredAt = clock()
    this.#admitEarly()
  }

  get isIn (): boolean {
    return this.#enteredAt !== undefined
  }

  /** Whether it was in at a moment, as `clock` says. */
  wasIn (moment: number): boolean {
    return this.#enteredAt !== undefined && this.#enteredAt <= moment
  }

  /** Resolves once it has entered, or left; nothing, if it has already. */
  entered (): Promise<void> | undefined {
    if (this.isIn || this.left) return undefined
    return new Promise(resolve => { (this.#early ??= []).push(resolve) })
  }

  /** Resolves once the device has shown that it is there; rejects if it leaves first. A socket without pings is taken for alive. */
  confirmAlive (): Promise<void> {
    if (this.left) return Promise.reject(new Failure('departed'))
    return new Promise((resolve, reject) => {
      if (!this.#socket.probe) return resolve();
      (this.#early ??= []).push(() => reject(new Failure('departed')))
      this.#socket.probe(resolve)
    })
  }

  /** A frame of so many bytes came in. */
  receive (payload: string | Uint8Array, size: number): void {
    if (this.left) return
    try {
      this.#take(payload, size)
    } catch (error) { // a codec that is not ours
      this.#home.log.error({ err: error, deviceId: this.id, protocol: this.protocol }, 'a frame could not be read or answered')
      this.end('fault')
    }
  }

  #take (payload: string | Uint8Array, size: number): void {
    const message = decodeWith(this.codec, payload)
    this.#pulse.heard()
    this.#home.stats.received(Array.isArray(message) ? message.length : 1, size)
    if (Array.isArray(message)) this.#receiveBatch(message, size)
    else if (isAnswer(message) || this.spend(this.#costOf(1, size))) this.peer.receive(message)
    else this.#tell([message])
  }

  #receiveBatch (messages: Message[], size: number): void {
    const asked = messages.filter(message => !isAnswer(message))
    if (asked.length === 0 || this.spend(this.#costOf(asked.length, size))) return this.peer.receive(messages)
    for (const answer of messages.filter(isAnswer)) this.peer.receive(answer)
    this.#tell(asked)
  }

  /** The answer to a ping of ours; one that nobody asked for counts like any message. */
  pong (): void {
    if (!this.#pulse.isAwaiting) this.spend(1)
    this.#pulse.heard()
  }

  /** Counts against the device's rate; false: it sends too fast. Whoever goes on all the same is shown out. */
  spend (count: number): boolean {
    if (this.bucket.take(count, clock())) return true
    this.#home.stats.count('refusals', 'too-fast')
    if (this.bucket.excess > this.#home.limits.burst) this.end('flood')
    return false
  }

  send (data: unknown): void {
    const id = `${this.generation}.${++this.#messages}`
    const frame = this.notice('message', { id, data: data ?? null })
    if (frame) this.hand(frame)
    else this.#command(id, data)
  }

  /** Tells the device that it is let in, at once: it leaves with what the transport has answered. */
  welcome (params: unknown): void {
    this.hand(this.notice('welcome', params))
    this.#output.flush()
  }

  /** The call that brings a message; its answer is the acknowledgement. */
  callFor (id: string, data: unknown): NamedCall & { id?: string } {
    if (!this.codec.callOf) return { method: 'message', params: { id, data }, id }
    const named = this.codec.callOf(data)
    if (!named) throw new Failure('bad-params', { message: `To a device that speaks ${this.protocol} a message is a call: {"method": "...", "params": {...}}` })
    return named
  }

  call (method: string, params?: unknown, { timeout = this.#home.limits.callTimeout, signal, id }: CallOptions = {}): Promise<unknown> {
    if (!this.#hasRoom()) return Promise.reject(new Failure('busy'))
    this.#calls++
    return this.peer.call(method, params, { timeout, signal, id }).then(result => {
      this.#called('ok')
      return result
    }, (failure: Failure) => {
      this.#called(failure.reason)
      throw failure
    })
  }

  #called (outcome: Reason | 'ok'): void {
    this.#calls--
    this.#home.stats.count('calls', outcome)
  }

  renew (expiresAt: number): void {
    assertTimestamp(expiresAt)
    this.#expiresAt = expiresAt
  }

  /** Encodes a notice of ours for this device; nothing, where its protocol has none of them. */
  notice (method: 'message' | 'welcome', params: unknown): Frame | undefined {
    return this.isForeign ? undefined : this.frame({ kind: 'notice', method, params })
  }

  /** Encodes a message for this device; nothing, where its protocol has no words for it. */
  frame (message: Message | Message[]): Frame | undefined {
    const payload = this.#encode(message)
    if (payload === undefined) return undefined
    const frame = new Frame(payload)
    if (frame.size > this.#home.limits.maxBuffered) throw new Failure('too-large')
    return frame
  }

  /** Writes a frame; a device that lets too much wait is shown out. */
  hand (frame: Frame | undefined): void {
    if (!frame || !this.#isHere()) return
    this.#home.stats.sent(frame.size)
    if (!this.#output.write(frame)) this.end('slow')
  }

  /** Writes a frame that goes to others too. To ask each connection first whether it is open costs more than it is worth. */
  cast (frame: Frame): void {
    this.#home.stats.sent(frame.size)
    if (!this.#output.write(frame)) this.end('slow')
  }

  /** Writes a message at once, or resolves when there was room for it: whoever waits keeps to the pace of the device. */
  offer (id: string, data: unknown): Promise<void> | undefined {
    const frame = this.notice('message', { id, data })
    if (!this.#isHere()) throw new Failure('dropped')
    if (!frame) return void this.#command(id, data)
    const { stats } = this.#home
    const waits = this.#output.offer(frame)
    if (waits) return waits.then(() => stats.sent(frame.size))
    stats.sent(frame.size)
    return undefined
  }

  /** Resolves once so little waits that any letter may be handed over; nothing, if that is so, or it has left. Rejects if it leaves. */
  room (): Promise<void> | undefined {
    return this.left ? undefined : this.#output.room()
  }

  /** What it was promised still waits for room. */
  get isBehind (): boolean {
    return this.#output.isBehind
  }

  /** Ends the connection from our side. */
  end (goodbye: CloseReason, reason: string = closeCodes[goodbye].message): void {
    if (this.left) return
    const { code } = closeCodes[goodbye]
    this.#leave(code, reason)
    this.#socket.close(code, reason)
  }

  /** The connection ended by itself. */
  closed (code: number, reason: string): void {
    if (!this.left) this.#leave(code, reason)
  }

  describe (): DeviceDescription {
    const { node, generation, since, address, localAddress, protocol, topics, peer } = this
    return { connected: true, node, generation, since, address, localAddress, protocol, topics: [...topics], inFlight: peer.inFlight }
  }

  check (now: number, slack: number): void {
    const isExpired = this.#expiresAt !== undefined && Date.now() >= this.#expiresAt
    const goodbye = isExpired ? 'expired' : this.#pulse.check(this.#socket, now, slack)
    if (goodbye) this.end(goodbye)
  }

  // What the peer asks of us.

  get concurrency (): number {
    return this.codec.concurrency
  }

  get maxInbound (): number {
    return this.#home.limits.maxCalls
  }

  get lingerMs (): number | undefined {
    return this.patience
  }

  get nextId (): (() => string) | undefined {
    return this.codec.mint
  }

  transmit (message: Message | Message[]): void {
    this.hand(this.#frameOrFailure(message))
  }

  answer (asked: Call | Notice, inbound: InboundCall): unknown {
    return this.#home.answer(this, asked, inbound)
  }

  refused (asked: Call | Notice): void {
    this.#home.stats.count('answers', 'busy')
    this.#home.log.debug({ deviceId: this.id, method: asked.method.slice(0, 64), reason: 'busy' }, 'a call was refused')
  }

  unexpected (message: Result | FailureMessage | InvalidMessage): void {
    if (message.kind !== 'invalid') this.spend(1)
    const reason = message.kind === 'result' ? 'late' : message.reason
    this.#home.stats.count('strays', reason)
    this.#home.log.debug({ deviceId: this.id, kind: message.kind, reason }, 'message without a use')
  }

  #isHere (): boolean {
    if (!this.left && !this.#socket.isOpen) this.closed(closeCodes.unsaid.code, closeCodes.unsaid.message)
    return !this.left
  }

  /** Makes the call that brings a message; what the device answers is told to nobody. */
  #command (id: string, data: unknown): void {
    const { method, params, ...options } = this.callFor(id, data)
    if (!this.#hasRoom()) throw new Failure('busy')
    this.call(method, params, options).catch(error => {
      this.#home.log.info({ deviceId: this.id, method, reason: (error as Failure).reason }, 'a message was not acknowledged')
    })
  }

  #hasRoom (): boolean {
    if (this.#calls < this.#home.limits.maxCalls) return true
    this.#home.stats.count('calls', 'busy')
    return false
  }

  #encode (message: Message | Message[]): string | Uint8Array | undefined {
    try {
      return this.codec.encode(message)
    } catch (error) { // a circle, a bigint
      throw new Failure('bad-params', { message: `Cannot be encoded: ${describeThrown(error)}` })
    }
  }

  /** An answer that cannot be encoded is our fault, and told so; for anything else it is the caller's. */
  #frameOrFailure (message: Message | Message[]): Frame | undefined {
    try {
      return this.frame(message)
    } catch (error) {
      const answers = (Array.isArray(message) ? message : [message]).filter(one => one.kind === 'result' || one.kind === 'failure')
      if (answers.length === 0) throw error
      this.#home.log.error({ deviceId: this.id, code: (error as Failure).code }, 'the result of a handler cannot be sent')
      const failures = answers.map(({ id }) => failureMessage(id, undefined))
      return this.#frameOrFault(Array.isArray(message) ? failures : failures[0]!)
    }
  }

  /** A codec that cannot even say that something went wrong is of no use to this device. */
  #frameOrFault (failures: Message | Message[]): Frame | undefined {
    try {
      return this.frame(failures)
    } catch (error) {
      this.#home.log.error({ err: error, deviceId: this.id, protocol: this.protocol }, 'a codec failed')
      this.end('fault')
      return undefined
    }
  }

  /** A large message counts as several: what it costs to pass on grows with its size. */
  #costOf (messages: number, size: number): number {
    return Math.min(Math.max(messages, Math.ceil(size / BYTES_PER_TOKEN)), this.#home.limits.burst)
  }

  #tell (messages: Message[]): void {
    for (const message of messages) {
      if (message.kind === 'call') this.hand(this.frame({ kind: 'failure', id: message.id, reason: 'too-fast' }))
      else if (message.kind === 'notice') this.hand(this.frame({ kind: 'failure', id: null, reason: 'too-fast' }))
    }
  }

  #leave (code: number, reason: string): void {
    this.left = { code, reason, at: Date.now() }
    this.#home.stats.left(code)
    this.peer.end()
    this.#output.end()
    this.#admitEarly()
    this.#release()
    this.#home.left(this)
  }

  #admitEarly (): void {
    for (const resolve of this.#early ?? []) resolve()
    this.#early = undefined
  }

  #release (): void {
    const ownership = this.#ownership
    if (!ownership) return
    invoke(() => ownership.release()).catch(error => this.#home.log.warn({ err: error, deviceId: this.id }, 'a device could not be released'))
  }
}

/** An answer was asked for, so it costs a device nothing unless it turns out to be a stray. */
function isAnswer ({ kind }: Message): boolean {
  return kind === 'result' || kind === 'failure'
}
