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
import type { Session, Socket } from '../connection/session.ts'
import { describeThrown } from '../protocol/user-code.ts'
import { safeLog } from './log.ts'

type Token = string | (() => string | undefined | Promise<string | undefined>)

const DialOptionsSchema = Type.Object({
  deviceId: Type.String({ description: 'Who the other side is here' }),
  as: Type.Optional(Type.String({ description: 'Who this side is there; without it, it does not introduce itself' })),
  token: Type.Optional(Type.Unsafe<Token>(Type.Union([Type.String(), Type.Function([], Type.Unknown())], {
    description: 'A token, or what gives one; it is asked anew before each connection'
  }))),
  codec: Type.Optional(Part<Codec>('What the other side speaks; JSON-RPC unless told. Over TCP it must be text without newlines')),
  tls: Type.Optional(Part<ConnectionOptions>('For `wss:`, and for `tcp:` that is to be TLS')),
  minDelay: Milliseconds(1_000, 'The most to wait before the first try; it doubles with each'),
  maxDelay: Milliseconds(30_000, 'The most to wait before any try')
}, { additionalProperties: false })

type DialSettings = Static<typeof DialOptionsSchema>
export type DialOptions = Pick<DialSettings, 'deviceId'> & Partial<DialSettings>

/** `stopped` is for good: `close` was called, or the other side said not to come back. */
export interface DialStatus {
  state: 'connecting' | 'connected' | 'waiting' | 'stopped'
  /** How the last connection ended. */
  code?: number
  reason?: string
  /** Milliseconds until the next try. */
  retryIn?: number
}

/** A connection from the server to a device, kept until it is closed or told not to come back. */
export interface DialConnection {
  readonly deviceId: string
  readonly status: DialStatus
  close (): void
}

/** A way out, and what goes with it. */
export interface DialRequest {
  url: URL
  as: string | undefined
  token: string | undefined
  codec: Codec
  tls: ConnectionOptions | undefined
  ground: TransportContext
  /** Aborts when nobody wants it any more. */
  signal: AbortSignal
}

/** A connection that the other side has accepted. */
export interface OutboundConnection {
  readonly line: Socket & { session: Session | undefined }
  readonly address: string | undefined
  readonly localAddress: string | undefined
  /** Resolves when it has ended. */
  readonly over: Promise<CloseNotice>
  /** What came meanwhile may come in. */
  release (): void
  cut (): void
}

/** Connects once; rejects with a `Farewell`, or with an error. */
export type Connector = (errand: DialRequest) => Promise<OutboundConnection>

/** A connection that lasted so many times the first wait was a good one. */
const GOOD = 5
const LOOK_AGAIN = 10

/** The connections that the application makes itself. */
export class Dialer implements Transport {
  readonly #ways: Record<string, { way: Connector, codec: Codec }>
  readonly #dials = new Set<DialedConnection>()
  #ground: TransportContext | undefined

  /** A way for each protocol of a URL, and what is spoken there. */
  constructor (ways: Record<string, { way: Connector, codec: Codec }>) {
    this.#ways = ways
  }

  async open (ground: TransportContext): Promise<void> {
    this.#ground = ground
  }

  dial (url: string, options: DialOptions): DialConnection {
    const { protocol, port } = new URL(url)
    const to = this.#ways[protocol]
    if (!to) throw new TypeError(`Cannot dial "${protocol}": only ${Object.keys(this.#ways).join(' ')}`)
    if (protocol === 'tcp:' && port === '') throw new TypeError(`Cannot dial "${url}": it has no port`)
    if (!isDeviceId(options.deviceId)) throw new Failure('bad-id')
    if (this.#ground!.gateway.isDraining) throw new Failure('draining')
    const settings = complete('dial()', DialOptionsSchema, options)
    const dial = new DialedConnection(to.way, url, { codec: to.codec, ...settings }, this.#ground!, () => this.#dials.delete(dial))
    this.#dials.add(dial)
    dial.open()
    return dial
  }

  async close (deadline: number): Promise<void> {
    for (const dial of this.#dials) dial.stop()
    while (this.#dials.size > 0 && Date.now() < deadline) await sleep(LOOK_AGAIN)
    for (const dial of this.#dials) dial.cut()
  }
}

class DialedConnection implements DialConnection {
  status: DialStatus = { state: 'connecting' }
  readonly #way: Connector
  readonly #url: string
  readonly #options: DialSettings & { codec: Codec }
  readonly #ground: TransportContext
  readonly #stopped: () => void
  /** Aborts an attempt that is under way. */
  #attempt = new AbortController()
  #isWanted = true
  #outward: OutboundConnection | undefined
  #timer: NodeJS.Timeout | undefined
  #tries = 0

  constructor (way: Connector, url: string, options: DialSettings & { codec: Codec }, ground: TransportContext, stopped: () => void) {
    this.#way = way
    this.#url = url
    this.#options = options
    this.#ground = ground
    this.#stopped = stopped
  }

  get deviceId (): string {
    return this.#options.deviceId
  }

  open (): void {
    this.status = { state: 'connecting' }
    const openedAt = Date.now()
    this.#connect().catch(closeNoticeOf).then(farewell => this.#ended(farewell, Date.now() - openedAt))
  }

  close (): void {
    this.stop()
    this.#outward?.line.session?.end('done')
  }

  /** It does not come back; what there is may end in its own time. */
  stop (): void {
    this.#isWanted = false
    if (this.#outward) return
    clearTimeout(this.#timer)
    this.#attempt.abort(new Failure('dropped'))
    this.#stop({ state: 'stopped' })
  }

  cut (): void {
    this.#outward?.cut()
  }

  /** Resolves with how it ended. */
  async #connect (): Promise<CloseNotice> {
    const { deviceId, codec } = this.#options
    const { gateway } = this.#ground
    const { address, localAddress, line, over, release } = this.#outward = await this.#reachInTime()
    const session = line.session = gateway.open({ deviceId, address, localAddress, credentials: {}, codec }, line)
    await gateway.enter(session)
    if (!session.left) this.status = { state: 'connected' }
    release()
    await over
    return session.left!
  }

  /** However slowly the other side speaks, or the token comes. */
  #reachInTime (): Promise<OutboundConnection> {
    const attempt = this.#attempt = new AbortController()
    return withDeadline(this.#reach(attempt.signal), this.#ground.limits.admissionTimeout, () => new Error('No answer in time'), attempt)
  }

  async #reach (signal: AbortSignal): Promise<OutboundConnection> {
    const { as, codec, tls } = this.#options
    const bearer = await this.#token()
    signal.throwIfAborted()
    return await this.#way({ url: new URL(this.#url), as, token: bearer, codec, tls, ground: this.#ground, signal })
  }

  /** Throws an `Error` where there is none to be had, whatever the application gave or threw. */
  async #token (): Promise<string | undefined> {
    const { token } = this.#options
    try {
      const given: unknown = typeof token === 'function' ? await token() : token
      if (given === undefined || typeof given === 'string') return given
      throw new TypeError(`a ${typeof given} is no token`)
    } catch (error) {
      safeLog(this.#ground.app.log).error({ err: error, deviceId: this.deviceId }, 'the token for a dialled connection failed')
      throw new Error(`No token: ${describeThrown(error)}`, { cause: error })
    }
  }

  #ended ({ code, reason }: CloseNotice, lasted: number): void {
    this.#outward = undefined
    if (this.status.state === 'stopped') return
    if (lasted >= GOOD * this.#options.minDelay) this.#tries = 0
    const retryIn = this.#isWanted ? reconnectDelay(code, reason, this.#tries++, this.#options) : undefined
    this.#ground.app.log.info({ deviceId: this.deviceId, code, reason, retryIn }, 'dialled connection ended')
    if (retryIn === undefined) return this.#stop({ state: 'stopped', code, reason })
    this.status = { state: 'waiting', code, reason, retryIn }
    this.#timer = setTimeout(() => this.open(), retryIn)
  }

  #stop (status: DialStatus): void {
    this.status = status
    this.#stopped()
  }
}

/** What went wrong before there was a session: the goodbye of the other side, or words for what happened here. */
function closeNoticeOf (thrown: unknown): CloseNotice {
  try {
    const { code, reason } = thrown as CloseNotice
    if (!(thrown instanceof Error) && Number.isInteger(code)) return { code, reason }
  } catch {} // nothing that can be read, from a codec that is not ours
  return { code: closeCodes.vanished.code, reason: describeThrown(thrown) }
}
