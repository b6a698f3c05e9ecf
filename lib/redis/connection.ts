import { Redis, type RedisOptions } from 'ioredis'
import type { LinkOptions } from './link-options.ts'
import type { Script } from './script.ts'
import { checkServer } from './server-check.ts'

/** Commands of `ioredis` that its types lack. */
type ScriptCommands = Record<'evalBuffer' | 'evalshaBuffer', (script: string, keyCount: number, ...args: Argument[]) => Promise<unknown>>

export type Argument = string | number | Buffer
export type MessageListener = (payload: Buffer) => void

const CONNECT_TIMEOUT_MS = 2_000
/** Time for a new connection to be ready, once it is connected. */
const READY_TIMEOUT_MS = 5_000
/** The two connections end together: nothing is queued, retried or subscribed again, because a new pair replaces them. */
const settings = {
  autoResubscribe: false,
  autoResendUnfulfilledCommands: false,
  commandTimeout: undefined,
  enableAutoPipelining: false, // see `#batch`
  enableOfflineQueue: false,
  enableReadyCheck: true,
  keyPrefix: '',
  lazyConnect: true,
  maxRetriesPerRequest: 0,
  monitor: false,
  reconnectOnError: null,
  retryStrategy: () => null,
  stringNumbers: false
} satisfies RedisOptions

/** Sentinels report a new master at once. The old one may accept writes for some seconds more, and forgets them when it becomes a replica. */
const defaults = { failoverDetector: true } satisfies RedisOptions

/** Two connections to Redis, one of which is subscribed to channels. Used until either ends, and then replaced. */
export class Connection {
  readonly #commands: Redis & ScriptCommands
  readonly #subscriber: Redis
  #isEnded = false
  #end: () => void = () => {}

  private constructor (client: Redis, onMessage: (channel: string, payload: Buffer) => void) {
    this.#commands = client as Redis & ScriptCommands
    this.#subscriber = client.duplicate()
    // Redis may send to a connection that has ended here, and the same to the one that replaces it
    this.#subscriber.on('messageBuffer', (channel, payload) => { if (!this.#isEnded) onMessage(channel.toString(), payload) })
    for (const one of this.#both) {
      one.on('close', () => this.close()).on('error', () => ignoreErrors(one)) // `open` rejects with the error
      one.on('connect', () => ignoreSentinelErrors(one))
    }
  }

  /** Ends when the signal aborts, before it is open as well as after. */
  static async open (options: LinkOptions, onMessage: (channel: string, payload: Buffer) => void, signal: AbortSignal): Promise<Connection> {
    let connection: Connection | undefined
    try {
      connection = new Connection(clientOf(options), onMessage)
      signal.addEventListener('abort', () => connection!.close(), { once: true })
      await connection.#connect()
      return connection
    } catch (error) {
      connection?.close()
      throw withoutSecrets(error)
    }
  }

  get isEnded (): boolean {
    return this.#isEnded
  }

  onEnd (listener: () => void): void {
    this.#end = listener
  }

  /** Resolves with what the script returns; its strings are buffers. */
  async run (script: Script, keys: string[], args: Argument[]): Promise<unknown> {
    return await this.#evaluate(script, keys, args).catch(error => { throw withoutSecrets(error) })
  }

  async #evaluate ({ source, digest }: Script, keys: string[], args: Argument[]): Promise<unknown> {
    this.#batch()
    try {
      return await this.#commands.evalshaBuffer(digest, keys.length, ...keys, ...args)
    } catch (error) {
      if (!(error as Error).message.startsWith('NOSCRIPT')) throw error
      return await this.#commands.evalBuffer(source, keys.length, ...keys, ...args)
    }
  }

  async publish (channel: string, payload: string | Uint8Array): Promise<number> {
    this.#batch()
    return await this.#commands.publish(channel, payload as Buffer).catch(error => { throw withoutSecrets(error) })
  }

  async subscribe (...channels: string[]): Promise<void> {
    await this.#subscriber.subscribe(...channels).catch(error => { throw withoutSecrets(error) })
  }

  async unsubscribe (channel: string): Promise<void> {
    await this.#subscriber.unsubscribe(channel)
  }

  close (): void {
    if (this.#isEnded) return
    this.#isEnded = true
    for (const one of this.#both) {
      ignoreErrors(one)
      one.disconnect()
    }
    this.#end()
  }

  /** The commands of one turn of the event loop leave in one write. This costs less than the pipelines of `ioredis`. */
  #batch (): void {
    const { stream } = this.#commands
    if (stream.writableCorked > 0) return
    stream.cork()
    setImmediate(() => stream.uncork())
  }

  get #both (): Redis[] {
    return [this.#commands, this.#subscriber]
  }

  async #connect (): Promise<void> {
    const firstErrors = this.#both.map(one => new Promise<never>((_resolve, reject) => { one.once('error', reject) }))
    for (const failed of firstErrors) failed.catch(() => {})
    await Promise.race([Promise.all(this.#both.map(one => one.connect())), ...firstErrors])
    checkServer(await this.#commands.info())
  }
}

/** Time for two connections to be ready. The Sentinels are asked one after the other. */
export function openTimeoutOf ({ connectTimeout = CONNECT_TIMEOUT_MS, client, sentinels = client?.options.sentinels ?? [] }: LinkOptions): number {
  return connectTimeout * (1 + sentinels.length) + READY_TIMEOUT_MS
}

/** The client listens to the first error of its socket only. With TLS another may follow, also after the end, and without a listener it would stop the process. */
function ignoreErrors ({ stream }: Redis): void {
  stream?.on('error', () => {})
}

/** The detector of failovers connects to all Sentinels, and `ioredis` prints an error that has no listener. One that is away is no trouble. */
function ignoreSentinelErrors (client: Redis): void {
  const { connector } = client as unknown as { connector: { failoverDetector?: { sentinels: Array<{ client: Redis }> } } }
  for (const sentinel of connector.failoverDetector?.sentinels ?? []) sentinel.client.on('error', () => {})
}

/**
 * The error of a command has its arguments as a property, such as a password or a message, and that of a wrong URL has the URL. Redis before 6 also repeats the
 * arguments of an unknown command, `HELLO` with the password. Redis 7.2 and Valkey name the user whose permission is missing.
 */
export function withoutSecrets (error: unknown): Error {
  return new Error((error as Error).message.replace(/, with args beginning with:.*$/s, '').replace(/\bUser \S+ has no permissions/, 'this user has no permissions'))
}

function clientOf ({ url, client, prefix: _prefix, startWithout: _startWithout, ...options }: LinkOptions): Redis {
  if (client?.isCluster) throw new Error('Redis Cluster is not supported: use one server, or Sentinel')
  if (client) return client.duplicate({ ...defaults, ...options, ...settings })
  const given = { connectTimeout: CONNECT_TIMEOUT_MS, ...defaults, ...options, ...settings }
  return url === undefined ? new Redis(given) : new Redis(url, given)
}
