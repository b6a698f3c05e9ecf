import { setTimeout as sleep } from 'node:timers/promises'
import { withDeadline } from '../protocol/deadline.ts'
import { LinkStatus } from '../cluster/link-status.ts'
import { Failure } from '../protocol/errors.ts'
import type { Health } from '../protocol/health.ts'
import { Connection, openTimeoutOf, type Argument, type MessageListener } from './connection.ts'
import { checkOptions, type LinkOptions } from './link-options.ts'
import type { Script } from './script.ts'

export interface LinkSubscription {
  end (): void
}

/** What runs a script on Redis. */
export type Run = (script: Script, keys: string[], args: Argument[]) => Promise<unknown>
/** What the link needs before it is up; called again after each reconnect. */
export type Prepare = (run: Run) => Promise<unknown>

const RETRY_DELAY_MS = 250
/** Redis may accept connections and then refuse what a node needs: a connection that ends sooner is followed by a pause. */
const MIN_UPTIME_MS = 1_000
const SHORT_LIVED_DELAY_MS = 1_000
/** Redis ends the connection of a subscriber for which 32 MB are buffered, and a larger message would end all. */
const MAX_PAYLOAD_BYTES = 8_388_608

/** The connection to Redis. While it is down, requests fail at once and nothing is buffered. */
export class Link extends LinkStatus {
  readonly prefix: string
  readonly #options: LinkOptions
  readonly #listeners = new Map<string, Set<MessageListener>>()
  #prepare!: Prepare
  #connection: Connection | undefined
  /** Ends the connection, also one that is being opened. */
  #attempt: AbortController | undefined
  #upSince = -Infinity
  /** The last subscription. Redis answers them in order. */
  #subscribing = Promise.resolve()
  #isClosed = false

  constructor (options: LinkOptions) {
    super()
    checkOptions(options)
    this.prefix = options.prefix ?? 'devices'
    this.#options = options
  }

  /**
   * Rejects if Redis is unreachable or cannot be used, unless `startWithout` is set. Before it rejects it calls `abandon`, which closes the link and
   * whatever uses it.
   */
  async open (prepare: Prepare, abandon = async () => this.close()): Promise<void> {
    this.#prepare = prepare
    if (this.#options.startWithout) return void this.#keepTrying()
    try {
      await this.#connect()
    } catch (error) {
      await abandon()
      throw new Error(`fastify-devices: Redis${addressIn(this.#options.url)} cannot be used: ${(error as Error).message} (\`startWithout: true\` starts without it, and keeps trying)`, { cause: error })
    }
  }

  /** Whether what uses the link can be used. */
  async health (): Promise<Health> {
    return this.up ? { ok: true } : { ok: false, reason: 'Redis unreachable' }
  }

  /** The name of a key or of a channel. */
  name (suffix: string): string {
    return `${this.prefix}:${suffix}`
  }

  /** Runs a script; its strings come as buffers. Rejects with `unreachable`, or `store-full` if Redis has no memory left. The keys are without the prefix. */
  async run (script: Script, keys: string[], args: Argument[]): Promise<unknown> {
    const connection = this.#reachable()
    return await this.whileUp(this.#run(connection, script, keys, args))
  }

  /** Resolves with the number of receivers. */
  async publish (channel: string, payload: string | Uint8Array): Promise<number> {
    const connection = this.#reachable()
    checkSize(payload)
    return await this.whileUp(connection.publish(this.name(channel), payload))
  }

  /** Publishes for whoever listens. A failure ends the link, or another message tells of it. */
  tell (channel: string, payload: string | Uint8Array): void {
    this.publish(channel, payload).catch(error => { if (this.up) this.reportOnce(error) })
  }

  /** Subscribes now and again after each reconnect. */
  subscribe (channel: string, listener: MessageListener): LinkSubscription {
    const name = this.name(channel)
    const listeners = this.#listeners.get(name)
    if (!listeners) this.#subscribing = this.#settled(connection => connection.subscribe(name))
    this.#listeners.set(name, (listeners ?? new Set()).add(listener))
    return { end: () => this.#unsubscribe(name, listener) }
  }

  /** Resolves once all subscriptions so far are in effect, or the link goes down, because a reconnect subscribes anew. */
  async flush (): Promise<void> {
    await this.#subscribing
  }

  /** Takes the link down and connects anew: what Redis has been asked is not answered. */
  reset (reason: string): void {
    if (!this.up) return
    this.#connection!.close()
    this.reportOnce(new Error(reason))
  }

  close (): void {
    this.#isClosed = true
    this.forgetListeners() // closing is no outage
    this.#listeners.clear()
    this.#attempt?.abort(new Error('closed'))
  }

  async #connect (): Promise<void> {
    const attempt = new AbortController()
    this.#attempt = attempt
    try {
      await withDeadline(this.#establish(attempt.signal), openTimeoutOf(this.#options), () => new Error('no answer'), attempt)
    } catch (error) {
      attempt.abort()
      throw error
    }
  }

  async #establish (signal: AbortSignal): Promise<void> {
    const connection = await Connection.open(this.#options, (channel, payload) => this.#receive(channel, payload), signal)
    this.#connection = connection
    connection.onEnd(() => this.#goDown(connection))
    await this.#bringUp(connection)
  }

  async #bringUp (connection: Connection): Promise<void> {
    if (this.#listeners.size > 0) await connection.subscribe(...this.#listeners.keys())
    await this.#prepare((script, keys, args) => this.#run(connection, script, keys, args))
    if (connection.isEnded) throw new Error('the connection ended')
    this.#upSince = performance.now()
    this.markUp()
  }

  async #keepTrying (delay = 0): Promise<void> {
    if (delay > 0) await pause(delay)
    while (!this.#isClosed) {
      try {
        return await this.#connect()
      } catch (error) {
        if (!this.#isClosed) this.reportOnce(error)
        await pause(RETRY_DELAY_MS)
      }
    }
  }

  #goDown (connection: Connection): void {
    if (!this.up || connection !== this.#connection) return
    const wasShortLived = performance.now() - this.#upSince < MIN_UPTIME_MS
    if (!wasShortLived) this.forgetFailure()
    this.markDown(() => new Failure('unreachable', { message: 'The connection to Redis ended before the answer' }))
    void this.#keepTrying(wasShortLived ? SHORT_LIVED_DELAY_MS : 0)
  }

  #reachable (): Connection {
    if (!this.up) throw new Failure('unreachable')
    return this.#connection!
  }

  async #run (connection: Connection, script: Script, keys: string[], args: Argument[]): Promise<unknown> {
    try {
      return await connection.run(script, keys.map(key => this.name(key)), args)
    } catch (error) {
      throw this.#failureOf(connection, error as Error)
    }
  }

  /** A server that has become a replica is left for the new master. */
  #failureOf (connection: Connection, { message }: Error): Failure {
    if (message.startsWith('OOM')) return new Failure('store-full')
    if (message.startsWith('READONLY')) connection.close()
    return new Failure('unreachable', { message })
  }

  #receive (channel: string, payload: Buffer): void {
    for (const listener of this.#listeners.get(channel) ?? []) {
      try {
        listener(payload)
      } catch (error) {
        this.trouble(error)
      }
    }
  }

  #unsubscribe (name: string, listener: MessageListener): void {
    const listeners = this.#listeners.get(name)
    if (!listeners?.delete(listener) || listeners.size > 0) return
    this.#listeners.delete(name)
    void this.#settled(connection => connection.unsubscribe(name))
  }

  /** A subscription that fails ends the connection: the next one subscribes to all channels anew. */
  async #settled (work: (connection: Connection) => Promise<void>): Promise<void> {
    const connection = this.#connection
    if (!connection || connection.isEnded) return
    await work(connection).catch(error => {
      if (!connection.isEnded) this.reportOnce(error)
      connection.close()
    })
  }
}

export function checkSize (payload: string | Uint8Array): void {
  if (payload.length > MAX_PAYLOAD_BYTES) throw new Failure('too-large')
}

/** Nodes must not all come at the same time. */
async function pause (milliseconds: number): Promise<void> {
  await sleep(milliseconds * (0.5 + Math.random()), undefined, { ref: false })
}

/** Without user, password and query: the client takes options from the query, the password too. */
function addressIn (url = ''): string {
  if (!/^rediss?:/.test(url) || !URL.canParse(url)) return ''
  const { protocol, host } = new URL(url)
  return ` at ${protocol}//${host}`
}
