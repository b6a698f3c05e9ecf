import { setTimeout as sleep } from 'node:timers/promises'
import { jetstreamManager, type JetStreamManager } from '@nats-io/jetstream'
import { connect, RequestError, TimeoutError, type Msg, type NatsConnection, type Subscription } from '@nats-io/transport-node'
import { Failure } from '../protocol/errors.ts'
import { checkOptions, type LinkOptions } from './link-options.ts'

export interface LinkSubscription {
  end (): void
}

type MessageListener = (message: Msg) => void

/** Creates the streams that the link needs before it is up; called again after each reconnect. */
export type Prepare = (manager: JetStreamManager) => Promise<unknown>

const RETRY_INTERVAL_MS = 250
const MAX_TRIES = 8
/** What is left free of the largest message, for what goes with its payload. */
const HEADER_BYTES = 4_096
/** How long NATS may take for one answer of its own. */
const API_TIMEOUT_MS = 2_000

/** The connection to NATS: whether it is up, and nothing that waits while it is not. */
export class Link {
  readonly prefix: string
  readonly replicas: number
  readonly #options: LinkOptions
  readonly #subscribed = new Map<LinkSubscription, { subject: string, hear: MessageListener, underlying?: Subscription }>()
  readonly #changed = new Set<(up: boolean) => void>()
  readonly #troubled = new Set<(error: unknown) => void>()
  /** Ends what is under way when the link falls. */
  readonly #underway = new Set<(failure: Failure) => void>()
  readonly #closing = new AbortController()
  #prepare!: Prepare
  #connection: NatsConnection | undefined
  #manager: JetStreamManager | undefined
  #up = false
  /** Why the last try failed. */
  #setback: string | undefined
  /** Counts connections, so that what an earlier one began does not go on in the next. */
  #turn = 0

  constructor (options: LinkOptions) {
    checkOptions(options)
    const { prefix = 'devices', replicas = 1 } = options
    this.prefix = prefix
    this.replicas = replicas
    this.#options = options
  }

  /** Rejects when NATS is not there, or not as it must be, unless it may start without. Then `abandon` closes the link, and what uses it. */
  async open (prepare: Prepare, abandon = () => this.close()): Promise<void> {
    this.#prepare = prepare
    if (this.#options.startWithout) return void this.#keepTrying()
    try {
      await this.#connect()
      await this.#rise(MAX_TRIES)
    } catch (error) {
      await abandon()
      const at = this.#options.servers === undefined ? '' : ` at ${[this.#options.servers].flat().join(', ')}`
      throw new Error(`fastify-devices: NATS${at} is of no use: ${(error as Error).message} (\`startWithout: true\` starts without it, and keeps trying)`, { cause: error })
    }
  }

  get up (): boolean {
    return this.#up
  }

  /** How large a message may be. */
  get largest (): number {
    return this.#reachable().info!.max_payload - HEADER_BYTES
  }

  onChange (listener: (up: boolean) => void): void {
    this.#changed.add(listener)
  }

  /** Tells what went wrong where nobody waits. */
  onTrouble (listener: (error: unknown) => void): void {
    this.#troubled.add(listener)
  }

  trouble (error: unknown): void {
    for (const listener of this.#troubled) listener(error)
  }

  /** Holds over all connections to come. */
  subscribe (name: string, hear: MessageListener): LinkSubscription {
    return this.subscribeTo(this.subject(name), hear)
  }

  /** To a subject that has no name of ours: an inbox. */
  subscribeTo (subject: string, hear: MessageListener): LinkSubscription {
    const subscription: { subject: string, hear: MessageListener, underlying?: Subscription } = { subject, hear }
    if (this.#connection) subscription.underlying = this.#subscribe(this.#connection, subscription)
    const subscribed = {
      end: () => {
        this.#subscribed.delete(subscribed)
        subscription.underlying?.unsubscribe()
      }
    }
    this.#subscribed.set(subscribed, subscription)
    return subscribed
  }

  publish (name: string, payload: Uint8Array | string, reply?: string): void {
    const connection = this.#reachable()
    if (payload.length > this.largest) throw new Failure('too-large')
    connection.publish(this.subject(name), payload, reply === undefined ? {} : { reply })
  }

  reply (message: Msg, payload: Uint8Array | string): void {
    if (payload.length > this.largest) throw new Failure('too-large')
    message.respond(payload)
  }

  /** Undefined: nobody listens to the subject. */
  async request (name: string, payload: Uint8Array | string, timeout: number): Promise<Msg | undefined> {
    const connection = this.#reachable()
    if (payload.length > this.largest) throw new Failure('too-large')
    try {
      return await this.#whileUp(connection.request(this.subject(name), payload, { timeout }))
    } catch (error) {
      if (error instanceof Failure) throw error
      if (error instanceof RequestError && error.isNoResponders()) return undefined
      throw error instanceof TimeoutError ? new Failure('timeout') : new Failure('unreachable', { message: (error as Error).message })
    }
  }

  /** Resolves once what was published and subscribed is in effect; at once where the link falls, as it begins anew then. */
  async flush (): Promise<void> {
    if (this.#up) await this.#whileUp(this.#connection!.flush()).catch(() => {})
  }

  /** Asks NATS for something of its own. */
  async manage<T> (work: (manager: JetStreamManager) => Promise<T>): Promise<T> {
    this.#reachable()
    return await this.#whileUp(work(this.#manager!))
  }

  subject (name: string): string {
    return `${this.prefix}.${name}`
  }

  async close (): Promise<void> {
    this.#closing.abort()
    this.#changed.clear() // it did not fall, it was let go
    this.#fall()
    for (const subscribed of this.#subscribed.keys()) subscribed.end()
    if (!this.#options.connection) await this.#connection?.close()
  }

  async #connect (): Promise<void> {
    const { connection, prefix: _prefix, replicas: _replicas, startWithout: _startWithout, ...options } = this.#options
    this.#connection = connection ?? await connect({
      timeout: 5_000,
      pingInterval: 5_000,
      maxPingOut: 2,
      reconnectTimeWait: RETRY_INTERVAL_MS,
      reconnectJitter: RETRY_INTERVAL_MS,
      noAsyncTraces: true,
      ...options,
      // it ends when it is closed, and for no other reason
      maxReconnectAttempts: -1,
      ignoreAuthErrorAbort: true
    })
    this.#manager = await jetstreamManager(this.#connection, { checkAPI: false, timeout: API_TIMEOUT_MS })
    for (const subscription of this.#subscribed.values()) subscription.underlying = this.#subscribe(this.#connection, subscription)
    void this.#follow(this.#connection)
  }

  async #keepTrying (): Promise<void> {
    while (!this.#closing.signal.aborted) {
      try {
        await this.#connect()
        return await (this.#closing.signal.aborted ? this.close() : this.#rise())
      } catch (error) {
        this.#failed(error)
        await sleep(RETRY_INTERVAL_MS, undefined, { ref: false })
      }
    }
  }

  async #follow (connection: NatsConnection): Promise<void> {
    for await (const status of connection.status()) {
      if (this.#closing.signal.aborted) return
      if (status.type === 'disconnect' || status.type === 'close') this.#fall()
      if (status.type === 'error') this.trouble(status.error)
      if (status.type === 'reconnect') void this.#rise()
    }
  }

  /** NATS is there; the link is up as soon as everything is ready in it. */
  async #rise (tries = Infinity): Promise<void> {
    const turn = ++this.#turn
    for (let tried = 1; turn === this.#turn; tried++) {
      if (await this.#isPrepared(tried < tries)) break
      await sleep(RETRY_INTERVAL_MS, undefined, { ref: false })
    }
    if (turn !== this.#turn) return
    this.#up = true
    this.#setback = undefined
    for (const listener of this.#changed) listener(true)
  }

  async #isPrepared (mayFail: boolean): Promise<boolean> {
    try {
      await this.#prepare(this.#manager!)
      return true
    } catch (error) {
      if (!mayFail) throw error
      this.#failed(error)
      return false
    }
  }

  /** A try failed, and so may the next ones, for the same reason: once is said enough. */
  #failed (error: unknown): void {
    const { message } = error as Error
    if (message !== this.#setback) this.trouble(error)
    this.#setback = message
  }

  #fall (): void {
    this.#turn++
    if (!this.#up) return
    this.#up = false
    for (const end of this.#underway) end(new Failure('dropped', { message: 'The connection to the other nodes ended before the answer' }))
    for (const listener of this.#changed) listener(false)
  }

  #reachable (): NatsConnection {
    if (!this.#up) throw new Failure('unreachable')
    return this.#connection!
  }

  #subscribe (connection: NatsConnection, { subject, hear }: { subject: string, hear: MessageListener }): Subscription {
    return connection.subscribe(subject, {
      callback: (error, message) => {
        try {
          if (!error) hear(message) // an error is told as a status, too
        } catch (thrown) {
          this.trouble(thrown)
        }
      }
    })
  }

  #whileUp<T> (work: Promise<T>): Promise<T> {
    return new Promise((resolve, reject) => {
      this.#underway.add(reject)
      work.then(resolve, reject).finally(() => this.#underway.delete(reject))
    })
  }
}
