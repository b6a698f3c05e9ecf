import { setTimeout as sleep } from 'node:timers/promises'
import type { ConnectionOptions } from 'node:tls'
import { Type, type Static } from '@sinclair/typebox'
import type { Transport, TransportContext } from './transport.ts'
import { withDeadline } from '../protocol/deadline.ts'
import { Failure, closeCodes } from '../protocol/errors.ts'
import type { CloseNotice } from '../protocol/close-notice.ts'
import { isDeviceId } from '../protocol/device-id.ts'
import type { Codec } from '../protocol/message.ts'
import { complete, Milliseconds, Part } from './options.ts'
import { reconnectDelay } from '../protocol/reconnect.ts'
import type { Session } from '../connection/session.ts'
import type { Socket } from '../connection/session-host.ts'
import { describeThrown } from '../protocol/user-code.ts'

type TokenSource = string | (() => string | undefined | Promise<string | undefined>)

export const DialOptionsSchema = Type.Object({
  deviceId: Type.String({ description: 'Device id by which this node knows the other side' }),
  as: Type.Optional(Type.String({ description: 'Device id by which the other side knows this node; without it, no id is sent' })),
  token: Type.Optional(Type.Unsafe<TokenSource>(Type.Union([Type.String(), Type.Function([], Type.Unknown())], {
    description: 'A token, or a function that returns one; it is called before each connection'
  }))),
  codec: Type.Optional(Part<Codec>('Wire protocol of the other side; JSON-RPC by default. Over TCP it must encode to text without newlines')),
  tls: Type.Optional(Part<ConnectionOptions>('TLS options for `wss:`; with `tcp:` they turn TLS on')),
  minDelay: Milliseconds(1_000, 'Maximum delay before the first retry; it doubles with each further one'),
  maxDelay: Milliseconds(30_000, 'Maximum delay before any retry')
}, { additionalProperties: false })

/** The options of `dial()`. Durations are in milliseconds. */
export interface DialOptions {
  /** Device id by which this node knows the other side. */
  deviceId: string
  /** Device id by which the other side knows this node; without it, no id is sent. */
  as?: string | undefined
  /** A token, or a function that returns one; it is called before each connection. */
  token?: TokenSource | undefined
  /** Wire protocol of the other side; JSON-RPC by default. Over TCP it must encode to text without newlines. */
  codec?: Codec | undefined
  /** TLS options for `wss:`; with `tcp:` they turn TLS on. */
  tls?: ConnectionOptions | undefined
  /**
   * Maximum delay before the first retry; it doubles with each further one.
   * @default 1_000
   */
  minDelay?: number | undefined
  /**
   * Maximum delay before any retry.
   * @default 30_000
   */
  maxDelay?: number | undefined
}

type DialSettings = Static<typeof DialOptionsSchema> & { codec: Codec }

/** `stopped` is final: `close` was called, or the close code of the other side forbids reconnecting. */
export interface DialStatus {
  state: 'connecting' | 'connected' | 'waiting' | 'stopped'
  /** How the last connection ended. */
  code?: number
  reason?: string
  /** Milliseconds until the next attempt. */
  retryIn?: number
}

/** A connection from the server to a device. It reconnects until it is closed, or until the other side forbids it. */
export interface DialConnection {
  readonly deviceId: string
  readonly status: DialStatus
  /** Resolves with the first connection; rejects with `DEVICE_DROPPED` if there will be none. */
  readonly ready: Promise<void>
  close (): void
}

/** What a connector needs for one attempt. */
export interface DialRequest {
  url: URL
  as: string | undefined
  token: string | undefined
  codec: Codec
  tls: ConnectionOptions | undefined
  context: TransportContext
  /** Aborts when the attempt is given up. */
  signal: AbortSignal
}

/** A connection that the other side has accepted. It holds inbound messages back until `release`. */
export interface OutboundConnection {
  readonly socket: Socket & { session: Session | undefined }
  readonly address: string | undefined
  readonly localAddress: string | undefined
  /** Resolves when the connection has ended. */
  readonly ended: Promise<CloseNotice>
  release (): void
  cut (): void
}

/** Connects once; rejects with a `CloseNotice` of the other side, or with an error. */
export type Connector = (request: DialRequest) => Promise<OutboundConnection>

/** How to connect to the URLs of a protocol, and the codec where the options name none. */
interface DialTarget {
  connect: Connector
  codec: Codec
}

/** After a connection that lasted this many times `minDelay`, the delays start over. */
const STABLE_AFTER_MIN_DELAYS = 5
const POLL_INTERVAL_MS = 10

/** The connections that the application opens itself. */
export class Dialer implements Transport {
  readonly #targets: Record<string, DialTarget>
  readonly #connections = new Set<DialedConnection>()
  #context: TransportContext | undefined

  /** `targets` has an entry for each protocol of a URL, such as `wss:`. */
  constructor (targets: Record<string, DialTarget>) {
    this.#targets = targets
  }

  async open (context: TransportContext): Promise<void> {
    this.#context = context
  }

  dial (url: string, options: DialOptions): DialConnection {
    const { protocol, port } = new URL(url)
    const target = this.#targets[protocol]
    if (!target) throw new TypeError(`Cannot dial "${protocol}": only ${Object.keys(this.#targets).join(' ')}`)
    if (protocol === 'tcp:' && port === '') throw new TypeError(`Cannot dial "${url}": it has no port`)
    if (!isDeviceId(options.deviceId)) throw new Failure('bad-id')
    if (this.#context!.gateway.isDraining) throw new Failure('draining')
    const settings = complete('dial()', DialOptionsSchema, options)
    const connection = new DialedConnection(target.connect, url, { codec: target.codec, ...settings }, this.#context!, () => this.#connections.delete(connection))
    this.#connections.add(connection)
    connection.open()
    return connection
  }

  async close (deadline: number): Promise<void> {
    for (const connection of this.#connections) connection.stop()
    while (this.#connections.size > 0 && Date.now() < deadline) await sleep(POLL_INTERVAL_MS)
    for (const connection of this.#connections) connection.cut()
  }
}

class DialedConnection implements DialConnection {
  status: DialStatus = { state: 'connecting' }
  readonly ready: Promise<void>
  #onReady!: () => void
  #onNeverReady!: (failure: Failure) => void
  readonly #connector: Connector
  readonly #url: string
  readonly #settings: DialSettings
  readonly #context: TransportContext
  readonly #onStopped: () => void
  /** Aborts the attempt in progress. */
  #attempt = new AbortController()
  #isWanted = true
  #outbound: OutboundConnection | undefined
  #retryTimer: NodeJS.Timeout | undefined
  #failedAttempts = 0

  constructor (connector: Connector, url: string, settings: DialSettings, context: TransportContext, onStopped: () => void) {
    this.#connector = connector
    this.#url = url
    this.#settings = settings
    this.#context = context
    this.#onStopped = onStopped
    this.ready = new Promise((resolve, reject) => {
      this.#onReady = resolve
      this.#onNeverReady = reject
    })
    this.ready.catch(() => {}) // the application need not wait for it
  }

  get deviceId (): string {
    return this.#settings.deviceId
  }

  open (): void {
    this.status = { state: 'connecting' }
    const openedAt = Date.now()
    this.#connect().catch(closeNoticeOf).then(notice => this.#ended(notice, Date.now() - openedAt))
  }

  close (): void {
    this.stop()
    this.#outbound?.socket.session?.end('done')
  }

  /** Stops reconnecting and gives up an attempt in progress. An open connection stays until it ends. */
  stop (): void {
    this.#isWanted = false
    if (this.#outbound) return
    clearTimeout(this.#retryTimer)
    this.#attempt.abort(new Failure('dropped'))
    this.#stopped({ state: 'stopped' })
  }

  cut (): void {
    this.#outbound?.cut()
  }

  /** Resolves with how the connection ended. */
  async #connect (): Promise<CloseNotice> {
    const { deviceId, codec } = this.#settings
    const { gateway } = this.#context
    const { address, localAddress, socket, ended, release } = this.#outbound = await this.#reachInTime()
    const session = socket.session = gateway.open({ deviceId, address, localAddress, credentials: {}, codec }, socket)
    await gateway.enter(session)
    if (!session.left) {
      this.status = { state: 'connected' }
      this.#onReady()
    }
    release()
    await ended
    return session.left!
  }

  /** Covers a token function that never resolves, and a server that keeps sending without finishing the handshake. */
  #reachInTime (): Promise<OutboundConnection> {
    const attempt = this.#attempt = new AbortController()
    return withDeadline(this.#reach(attempt.signal), this.#context.limits.admissionTimeout, () => new Error('No answer in time'), attempt)
  }

  async #reach (signal: AbortSignal): Promise<OutboundConnection> {
    const { as, codec, tls } = this.#settings
    const token = await this.#token()
    signal.throwIfAborted()
    return await this.#connector({ url: new URL(this.#url), as, token, codec, tls, context: this.#context, signal })
  }

  /** Rejects with an `Error` whatever the function of the application returned or threw. */
  async #token (): Promise<string | undefined> {
    const { token: source } = this.#settings
    try {
      const token: unknown = typeof source === 'function' ? await source() : source
      if (token === undefined || typeof token === 'string') return token
      throw new TypeError(`a ${typeof token} is not a token`)
    } catch (error) {
      this.#context.log.error({ err: error, deviceId: this.deviceId }, 'dial token failed')
      throw new Error(`No token: ${describeThrown(error)}`, { cause: error })
    }
  }

  #ended ({ code, reason }: CloseNotice, duration: number): void {
    this.#outbound = undefined
    if (this.status.state === 'stopped') return
    if (duration >= STABLE_AFTER_MIN_DELAYS * this.#settings.minDelay) this.#failedAttempts = 0
    const retryIn = this.#isWanted ? reconnectDelay(code, reason, this.#failedAttempts++, this.#settings) : undefined
    this.#context.log.info({ deviceId: this.deviceId, code, reason, retryIn }, 'dialled connection ended')
    if (retryIn === undefined) return this.#stopped({ state: 'stopped', code, reason })
    this.status = { state: 'waiting', code, reason, retryIn }
    this.#retryTimer = setTimeout(() => this.open(), retryIn)
  }

  #stopped (status: DialStatus): void {
    this.status = status
    const { code, reason } = status
    this.#onNeverReady(new Failure('dropped', { message: `No connection to "${this.deviceId}": ${code === undefined ? 'dialling was stopped' : `${code} ${reason}`}` }))
    this.#onStopped()
  }
}

/** The close notice of the other side, or, for an error on this side, one that describes it. */
function closeNoticeOf (thrown: unknown): CloseNotice {
  try {
    const { code, reason } = thrown as CloseNotice
    if (!(thrown instanceof Error) && Number.isInteger(code)) return { code, reason: typeof reason === 'string' ? reason : '' }
  } catch {} // a codec of the application may throw a value whose members throw in turn
  return { code: closeCodes.lost.code, reason: describeThrown(thrown) }
}
