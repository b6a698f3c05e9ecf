import type { Ownership } from '../cluster/backplane.ts'
import { TokenBucket } from './token-bucket.ts'
import { clock } from './clock.ts'
import { assertTimestamp, type Credentials, type DeviceDescription, type Device, type Disconnect } from './device.ts'
import { Failure, closeCodes, type CloseReason, type Reason } from '../protocol/errors.ts'
import { requestDevice, requestOfMessage } from './device-operations.ts'
import type { Frame } from './frame.ts'
import { checkedCall } from './outbound-checks.ts'
import { Liveness } from './heartbeat.ts'
import { callForMessage, encodeForPeer, encodeFrame } from './message-encoder.ts'
import { receiveFrame, receivePong, reportRefused, reportUnexpected, spendTokens } from './message-receiver.ts'
import type { Call, Codec, FailureMessage, InvalidMessage, Message, NamedCall, Notice, Result } from '../protocol/message.ts'
import { WriteQueue } from './write-queue.ts'
import { traceFor, type RequestLike } from '../protocol/request-context.ts'
import { Peer, type CallOptions, type InboundCall, type PeerHandler } from '../protocol/peer.ts'
import type { AdmittedDevice, SessionHost, SessionServer, Socket } from './session-host.ts'
import { invoke } from '../protocol/user-code.ts'

/**
 * One live connection of one device. A node holds tens of thousands of them, most of them idle: fields that only some sessions need are
 * created on first use, and limits that all share are not copied.
 */
export class Session implements Device, PeerHandler {
  readonly id: string
  readonly since: number
  readonly address: string | undefined
  readonly localAddress: string | undefined
  readonly codec: Codec
  readonly peer: Peer
  /** Passes from one connection of the device to the next, so that reconnecting does not refill it. */
  readonly bucket: TokenBucket
  left: Disconnect | undefined
  /** Answers requests of this node and of others for this session. */
  owner: SessionServer | undefined
  readonly #host: SessionHost<Session>
  readonly #socket: Socket
  readonly #writeQueue: WriteQueue
  readonly #liveness: Liveness
  #ownership: Ownership | undefined
  #topics: Set<string> | undefined
  #credentials: Credentials | undefined
  /** When the device was welcomed, by `clock`. */
  #enteredAt: number | undefined
  /** Called once the session has entered or left. */
  #entryListeners: Array<() => void> | undefined
  #outboundCalls = 0
  #messageCount = 0
  #expiresAt: number | undefined

  constructor (host: SessionHost<Session>, socket: Socket, { deviceId, address, localAddress, credentials, expiresAt, codec }: AdmittedDevice, bucket?: TokenBucket) {
    const now = clock()
    this.id = deviceId
    this.since = Date.now()
    this.address = address
    this.localAddress = localAddress
    this.#credentials = credentials
    this.codec = codec
    this.#host = host
    this.#socket = socket
    this.#writeQueue = new WriteQueue(socket, host.limits.maxBuffered, host.flushScheduler)
    this.#liveness = new Liveness(host.limits, now)
    this.bucket = bucket ?? new TokenBucket(host.limits, now)
    this.#expiresAt = expiresAt
    this.peer = new Peer(this, host.peerLimits(codec))
  }

  get topics (): Set<string> {
    return this.#topics ??= new Set()
  }

  get credentials (): Credentials {
    return this.#credentials ??= {}
  }

  /** How many milliseconds a call may block others where the protocol limits the calls on the wire; undefined where it does not. */
  get answerTimeout (): number | undefined {
    return this.#host.peerLimits(this.codec).lingerMs
  }

  /** The protocol has calls of its own and none of ours. */
  get isForeign (): boolean {
    return this.codec.callOf !== undefined
  }

  /** Delivers the letters that wait for the device, if there are any. */
  wake (): void {
    this.#host.wake(this)
  }

  /** Fencing token; valid after `own()`. */
  get generation (): number {
    return this.#ownership!.generation
  }

  /** Calls in flight in both directions, without those that deliver letters. */
  get calls (): number {
    return this.#outboundCalls + this.peer.answering
  }

  get protocol (): string {
    return this.codec.subprotocol
  }

  get transport (): string {
    return this.#socket.transport ?? 'other'
  }

  get node (): string {
    return this.#host.node
  }

  /** Takes ownership of the device, and releases it at once if the session has left meanwhile. */
  own (ownership: Ownership): void {
    if (typeof ownership.generation !== 'number') throw new TypeError('Backplane.own() returned no generation')
    this.#ownership = ownership
    if (this.left) this.#releaseOwnership()
  }

  /** The session is in the registry, and its device has been welcomed. */
  enter (): void {
    this.#enteredAt = clock()
    this.#notifyEntryListeners()
  }

  /** Stays true after the session has left. */
  get isIn (): boolean {
    return this.#enteredAt !== undefined
  }

  /** Whether the session had entered at a moment of `clock`. */
  wasIn (moment: number): boolean {
    return this.#enteredAt !== undefined && this.#enteredAt <= moment
  }

  /** Resolves once the session has entered or left; undefined if it already has. */
  entered (): Promise<void> | undefined {
    if (this.isIn || this.left) return undefined
    return new Promise(resolve => { (this.#entryListeners ??= []).push(resolve) })
  }

  /** Resolves at the first sign of life of the device, at once on a socket without pings; rejects if the session leaves first. */
  confirmAlive (): Promise<void> {
    if (this.left) return Promise.reject(new Failure('departed'))
    return new Promise((resolve, reject) => {
      if (!this.#socket.probe) return resolve();
      (this.#entryListeners ??= []).push(() => reject(new Failure('departed')))
      this.#socket.probe(resolve)
    })
  }

  /** Takes a frame of `size` bytes. */
  receive (payload: string | Uint8Array, size: number): void {
    if (!this.left) receiveFrame(this, this.#host, this.#liveness, payload, size)
  }

  pong (): void {
    receivePong(this, this.#host, this.#liveness)
  }

  /** Counts against the rate of the device. False: the device sends too fast, and the session ends if it keeps on. */
  spend (count: number): boolean {
    return spendTokens(this, this.#host, count)
  }

  send (given: unknown): void {
    const { checks } = this.#host
    const data = checks ? checks.message(given) : given
    const id = `${this.generation}.${++this.#messageCount}`
    const frame = this.notice('message', { id, data: data ?? null }, requestOfMessage(this, id))
    if (frame) this.write(frame)
    else this.#sendAsCall(id, data)
  }

  /** Sends the welcome at once, so that it leaves in one write with what the transport has sent before. */
  welcome (params: unknown): void {
    this.write(this.notice('welcome', params))
    this.#writeQueue.flush()
  }

  /** The call that carries a message; the device acknowledges the message by answering it. */
  callFor (id: string, data: unknown): NamedCall & { id?: string } {
    return callForMessage(this.codec, id, data)
  }

  call (method: string, params?: unknown, options?: CallOptions): Promise<unknown> {
    const { checks } = this.#host
    return checks ? checkedCall(checks, method, params, params => requestDevice(this, method, params, options, checks)) : requestDevice(this, method, params, options, checks)
  }

  /** A call without the checks of the contract: the node where it began has made them. */
  request (method: string, params?: unknown, { timeout = this.#host.limits.callTimeout, signal, id, request }: CallOptions = {}): Promise<unknown> {
    const trace = traceFor(this.codec, request) // first: a request of the application may throw when it is read
    if (!this.#hasCallSlot()) return Promise.reject(new Failure('busy'))
    this.#outboundCalls++
    const startTime = this.#host.stats.startTime()
    return this.peer.call(method, params, { timeout, signal, id, trace }).then(result => {
      this.#callSettled(method, 'ok', startTime)
      return result
    }, (failure: Failure) => {
      this.#callSettled(method, failure.reason, startTime)
      throw failure
    })
  }

  renew (expiresAt: number): void {
    assertTimestamp(expiresAt)
    this.#expiresAt = expiresAt
  }

  /** Encodes a notice; undefined where the protocol of the device has none of ours. */
  notice (method: 'message' | 'welcome', params: unknown, request?: RequestLike): Frame | undefined {
    return this.isForeign ? undefined : encodeFrame(this.codec, { kind: 'notice', method, params, trace: traceFor(this.codec, request) }, this.#host.limits.maxBuffered)
  }

  /** Writes a frame; a device with too much unwritten output is disconnected. */
  write (frame: Frame | undefined): void {
    if (frame && this.#ensureOpen()) this.cast(frame)
  }

  /** Writes a frame that other sessions share. It does not ask whether the socket is open: over many connections that costs more than it saves. */
  cast (frame: Frame): void {
    this.#host.stats.sent(frame.size)
    if (!this.#writeQueue.write(frame)) this.end('slow')
  }

  /** Writes a message at once, or resolves once there was room for it: callers that wait send no faster than the device reads. */
  offer (id: string, data: unknown, request?: RequestLike): Promise<void> | undefined {
    const frame = this.notice('message', { id, data }, request)
    if (!this.#ensureOpen()) throw new Failure('dropped')
    if (!frame) return void this.#sendAsCall(id, data, request)
    const written = this.#writeQueue.offer(frame)
    if (written) return written.then(() => this.#host.stats.sent(frame.size))
    this.#host.stats.sent(frame.size)
    return undefined
  }

  /** Resolves once there is room for any letter, and rejects if the session leaves first; undefined if there is room, or the session has left. */
  room (): Promise<void> | undefined {
    return this.left ? undefined : this.#writeQueue.room()
  }

  /** Offered messages still wait for room. */
  get isBehind (): boolean {
    return this.#writeQueue.isBehind
  }

  /** Ends the connection from our side. */
  end (closeReason: CloseReason, text: string = closeCodes[closeReason].message): void {
    if (this.left) return
    const { code } = closeCodes[closeReason]
    this.closed(code, text)
    this.#socket.close(code, text)
  }

  /** The connection has ended, whoever ended it. */
  closed (code: number, reason: string): void {
    if (this.left) return
    this.left = { code, reason, at: Date.now() }
    this.#host.stats.disconnected(code)
    this.peer.end()
    this.#writeQueue.end()
    this.#notifyEntryListeners()
    this.#releaseOwnership()
    this.#host.onClosed(this)
  }

  describe (): DeviceDescription {
    const { node, generation, since, address, localAddress, protocol, topics, peer } = this
    return { connected: true, node, generation, since, address, localAddress, protocol, topics: [...topics], inFlight: peer.inFlight }
  }

  check (now: number, slack: number): void {
    const isExpired = this.#expiresAt !== undefined && Date.now() >= this.#expiresAt
    const closeReason = isExpired ? 'expired' : this.#liveness.check(this.#socket, now, slack)
    if (closeReason) this.end(closeReason)
  }

  /** As `Peer` needs them, from here on. */
  transmit (message: Message | Message[]): void {
    this.write(encodeForPeer(this, this.#host, message))
  }

  answer (request: Call | Notice, inbound: InboundCall): unknown {
    return this.#host.answer(this, request, inbound)
  }

  refused (request: Call | Notice): void {
    reportRefused(this, this.#host, request)
  }

  unexpected (message: Result | FailureMessage | InvalidMessage): void {
    reportUnexpected(this, this.#host, message)
  }

  /** False: the session has left. A socket that has closed before its event arrived counts as closed. */
  #ensureOpen (): boolean {
    if (!this.left && !this.#socket.isOpen) this.closed(closeCodes['no-code'].code, closeCodes['no-code'].message)
    return !this.left
  }

  /** Sends a message as a call. Nobody waits for the answer, so a failure is only logged. */
  #sendAsCall (id: string, data: unknown, request?: RequestLike): void {
    const { method, params, ...options } = this.callFor(id, data)
    const reqId = request?.id
    if (!this.#hasCallSlot()) throw new Failure('busy')
    this.request(method, params, options).catch(error => {
      this.#host.log.info({ reqId, deviceId: this.id, method, reason: (error as Failure).reason }, 'message not acknowledged')
    })
  }

  #hasCallSlot (): boolean {
    if (this.#outboundCalls < this.#host.limits.maxCalls) return true
    this.#host.stats.count('calls', 'busy')
    return false
  }

  #callSettled (method: string, outcome: Reason | 'ok', startTime: number): void {
    this.#outboundCalls--
    this.#host.stats.settled('out', method, outcome, startTime)
  }

  #notifyEntryListeners (): void {
    for (const listener of this.#entryListeners ?? []) listener()
    this.#entryListeners = undefined
  }

  #releaseOwnership (): void {
    invoke(() => this.#ownership?.release()).catch(error => this.#host.log.warn({ err: error, deviceId: this.id }, 'ownership release failed'))
  }
}
