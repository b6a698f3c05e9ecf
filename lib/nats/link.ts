import { setTimeout as sleep } from 'node:timers/promises'
import { jetstreamManager, type JetStreamManager } from '@nats-io/jetstream'
import { connect, RequestError, TimeoutError, type Msg, type NatsConnection, type Subscription } from '@nats-io/transport-node'
import { LinkStatus } from '../cluster/link-status.ts'
import { Failure } from '../protocol/errors.ts'
import { checkOptions, type LinkOptions } from './link-options.ts'

export interface LinkSubscription {
  end (): void
}

type MessageListener = (message: Msg) => void

interface SubscriptionState {
  subject: string
  listener: MessageListener
  /** That of the current connection. */
  underlying?: Subscription
}

/** Creates the streams that the link needs before it is up; called again after each reconnect. */
export type Prepare = (manager: JetStreamManager) => Promise<unknown>

const RETRY_DELAY_MS = 250
/** Attempts to prepare the streams before `open` rejects. */
const MAX_ATTEMPTS = 8
/** Room for headers within the maximum payload of NATS. */
const HEADER_BYTES = 4_096
/** Timeout of a request to the API of JetStream. */
const API_TIMEOUT_MS = 2_000

/** The connection to NATS. While it is down, requests fail at once and nothing is buffered. */
export class Link extends LinkStatus {
  readonly prefix: string
  readonly replicas: number
  readonly #options: LinkOptions
  readonly #subscriptions = new Map<LinkSubscription, SubscriptionState>()
  readonly #closing = new AbortController()
  #prepare!: Prepare
  #connection: NatsConnection | undefined
  #manager: JetStreamManager | undefined
  /** Incremented with each change of the connection, so that the preparation for an earlier one stops. */
  #epoch = 0

  constructor (options: LinkOptions) {
    super()
    checkOptions(options)
    const { prefix = 'devices', replicas = 1 } = options
    this.prefix = prefix
    this.replicas = replicas
    this.#options = options
  }

  /**
   * Rejects if NATS is unreachable or the streams cannot be prepared, unless `startWithout` is set. Before it rejects it calls `abandon`, which closes
   * the link and whatever uses it.
   */
  async open (prepare: Prepare, abandon = () => this.close()): Promise<void> {
    this.#prepare = prepare
    if (this.#options.startWithout) return void this.#keepTrying()
    try {
      await this.#connect()
      await this.#bringUp(MAX_ATTEMPTS)
    } catch (error) {
      await abandon()
      const at = this.#options.servers === undefined ? '' : ` at ${[this.#options.servers].flat().join(', ')}`
      throw new Error(`fastify-devices: NATS${at} cannot be used: ${(error as Error).message} (\`startWithout: true\` starts without it, and keeps trying)`, { cause: error })
    }
  }

  /** Maximum size of a payload, in bytes. */
  get maxPayload (): number {
    return this.#reachable().info!.max_payload - HEADER_BYTES
  }

  /** Subscribes now and again after each reconnect. */
  subscribe (name: string, listener: MessageListener): LinkSubscription {
    return this.subscribeTo(this.subject(name), listener)
  }

  /** Subscribes to a subject without the prefix: an inbox. */
  subscribeTo (subject: string, listener: MessageListener): LinkSubscription {
    const state: SubscriptionState = { subject, listener }
    if (this.#connection) state.underlying = this.#subscribe(this.#connection, state)
    const subscription = {
      end: () => {
        this.#subscriptions.delete(subscription)
        state.underlying?.unsubscribe()
      }
    }
    this.#subscriptions.set(subscription, state)
    return subscription
  }

  publish (name: string, payload: Uint8Array | string, reply?: string): void {
    const connection = this.#reachable()
    if (payload.length > this.maxPayload) throw new Failure('too-large')
    connection.publish(this.subject(name), payload, reply === undefined ? {} : { reply })
  }

  reply (message: Msg, payload: Uint8Array | string): void {
    if (payload.length > this.maxPayload) throw new Failure('too-large')
    message.respond(payload)
  }

  /** Resolves with undefined if the subject has no subscriber. */
  async request (name: string, payload: Uint8Array | string, timeout: number): Promise<Msg | undefined> {
    const connection = this.#reachable()
    if (payload.length > this.maxPayload) throw new Failure('too-large')
    try {
      return await this.whileUp(connection.request(this.subject(name), payload, { timeout }))
    } catch (error) {
      if (error instanceof Failure) throw error
      if (error instanceof RequestError && error.isNoResponders()) return undefined
      throw error instanceof TimeoutError ? new Failure('timeout') : new Failure('unreachable', { message: (error as Error).message })
    }
  }

  /** Resolves once all publications and subscriptions so far have reached NATS, or when the link goes down, because a reconnect subscribes anew. */
  async flush (): Promise<void> {
    if (this.up) await this.whileUp(this.#connection!.flush()).catch(() => {})
  }

  /** Calls the API of JetStream. */
  async manage<T> (work: (manager: JetStreamManager) => Promise<T>): Promise<T> {
    this.#reachable()
    return await this.whileUp(work(this.#manager!))
  }

  subject (name: string): string {
    return `${this.prefix}.${name}`
  }

  async close (): Promise<void> {
    this.#closing.abort()
    this.forgetListeners() // closing is no outage
    this.#goDown()
    for (const subscription of this.#subscriptions.keys()) subscription.end()
    if (!this.#options.connection) await this.#connection?.close()
  }

  async #connect (): Promise<void> {
    const { connection, prefix: _prefix, replicas: _replicas, startWithout: _startWithout, ...options } = this.#options
    this.#connection = connection ?? await connect({
      timeout: 5_000,
      pingInterval: 5_000,
      maxPingOut: 2,
      reconnectTimeWait: RETRY_DELAY_MS,
      reconnectJitter: RETRY_DELAY_MS,
      noAsyncTraces: true,
      ...options,
      // only `close` ends the connection
      maxReconnectAttempts: -1,
      ignoreAuthErrorAbort: true
    })
    this.#manager = await jetstreamManager(this.#connection, { checkAPI: false, timeout: API_TIMEOUT_MS })
    for (const state of this.#subscriptions.values()) state.underlying = this.#subscribe(this.#connection, state)
    void this.#follow(this.#connection)
  }

  async #keepTrying (): Promise<void> {
    while (!this.#closing.signal.aborted) {
      try {
        await this.#connect()
        return await (this.#closing.signal.aborted ? this.close() : this.#bringUp())
      } catch (error) {
        this.reportOnce(error)
        await sleep(RETRY_DELAY_MS, undefined, { ref: false })
      }
    }
  }

  async #follow (connection: NatsConnection): Promise<void> {
    for await (const status of connection.status()) {
      if (this.#closing.signal.aborted) return
      if (status.type === 'disconnect' || status.type === 'close') this.#goDown()
      if (status.type === 'error') this.trouble(status.error)
      if (status.type === 'reconnect') void this.#bringUp()
    }
  }

  /** NATS is connected; the link is up once the streams are prepared. */
  async #bringUp (maxAttempts = Infinity): Promise<void> {
    const epoch = ++this.#epoch
    for (let attempt = 1; epoch === this.#epoch; attempt++) {
      if (await this.#tryPrepare(attempt < maxAttempts)) break
      await sleep(RETRY_DELAY_MS, undefined, { ref: false })
    }
    if (epoch !== this.#epoch) return
    this.forgetFailure()
    this.markUp()
  }

  async #tryPrepare (mayFail: boolean): Promise<boolean> {
    try {
      await this.#prepare(this.#manager!)
      return true
    } catch (error) {
      if (!mayFail) throw error
      this.reportOnce(error)
      return false
    }
  }

  #goDown (): void {
    this.#epoch++
    if (!this.up) return
    this.markDown(() => new Failure('dropped', { message: 'The connection to the other nodes ended before the answer' }))
  }

  #reachable (): NatsConnection {
    if (!this.up) throw new Failure('unreachable')
    return this.#connection!
  }

  #subscribe (connection: NatsConnection, { subject, listener }: SubscriptionState): Subscription {
    return connection.subscribe(subject, {
      callback: (error, message) => {
        try {
          if (!error) listener(message) // errors are also reported as a status
        } catch (thrown) {
          this.trouble(thrown)
        }
      }
    })
  }
}
