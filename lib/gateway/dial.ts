import { setTimeout as sleep } from 'node:timers/promises'
import type { ConnectionOptions } from 'node:tls'
import { Type, type Static } from '@sinclair/typebox'
import type { Door, Ground } from './transport.ts'
import { Failure, goodbyes } from '../protocol/errors.ts'
import type { Farewell } from '../protocol/close-notice.ts'
import { isDeviceId } from '../protocol/device-id.ts'
import type { Codec } from '../protocol/message.ts'
import { complete, Milliseconds, Part } from './options.ts'
import { waitOf } from '../protocol/reconnect.ts'
import type { Session, Socket } from '../connection/session.ts'
import { wordsOf } from '../protocol/user-code.ts'
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
  first: Milliseconds(1_000, 'The most to wait before the first try; it doubles with each'),
  most: Milliseconds(30_000, 'The most to wait before any try')
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
export interface Dialled {
  readonly deviceId: string
  readonly status: DialStatus
  close (): void
}

/** A way out, and what goes with it. */
export interface Errand {
  url: URL
  as: string | undefined
  token: string | undefined
  codec: Codec
  tls: ConnectionOptions | undefined
  ground: Ground
  /** Aborts when nobody wants it any more. */
  signal: AbortSignal
}

/** A connection that the other side has accepted. */
export interface Outward {
  readonly line: Socket & { session: Session | undefined }
  readonly address: string | undefined
  readonly localAddress: string | undefined
  /** Resolves when it has ended. */
  readonly over: Promise<Farewell>
  /** What came meanwhile may come in. */
  release (): void
  cut (): void
}

/** Connects once; rejects with a `Farewell`, or with an error. */
export type Way = (errand: Errand) => Promise<Outward>

/** A connection that lasted so many times the first wait was a good one. */
const GOOD = 5
const LOOK_AGAIN = 10

/** The connections that the application makes itself. */
export class Dials implements Door {
  readonly #ways: Record<string, { way: Way, codec: Codec }>
  readonly #dials = new Set<Dial>()
  #ground: Ground | undefined

  /** A way for each protocol of a URL, and what is spoken there. */
  constructor (ways: Record<string, { way: Way, codec: Codec }>) {
    this.#ways = ways
  }

  async open (ground: Ground): Promise<void> {
    this.#ground = ground
  }

  dial (url: string, options: DialOptions): Dialled {
    const { protocol, port } = new URL(url)
    const to = this.#ways[protocol]
    if (!to) throw new TypeError(`Cannot dial "${protocol}": only ${Object.keys(this.#ways).join(' ')}`)
    if (protocol === 'tcp:' && port === '') throw new TypeError(`Cannot dial "${url}": it has no port`)
    if (!isDeviceId(options.deviceId)) throw new Failure('bad-id')
    if (this.#ground!.entrance.isDraining) throw new Failure('draining')
    const settings = complete('dial()', DialOptionsSchema, options)
    const dial = new Dial(to.way, url, { codec: to.codec, ...settings }, this.#ground!, () => this.#dials.delete(dial))
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

class Dial implements Dialled {
  status: DialStatus = { state: 'connecting' }
  readonly #way: Way
  readonly #url: string
  readonly #options: DialSettings & { codec: Codec }
  readonly #ground: Ground
  readonly #stopped: () => void
  /** Aborts an attempt that is under way. */
  #attempt = new AbortController()
  #isWanted = true
  #outward: Outward | undefined
  #timer: NodeJS.Timeout | undefined
  #tries = 0

  constructor (way: Way, url: string, options: DialSettings & { codec: Codec }, ground: Ground, stopped: () => void) {
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
    this.#connect().catch(farewellOf).then(farewell => this.#ended(farewell, Date.now() - openedAt))
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
  async #connect (): Promise<Farewell> {
    const { deviceId, codec } = this.#options
    const { entrance } = this.#ground
    const { address, localAddress, line, over, release } = this.#outward = await this.#reachInTime()
    const session = line.session = entrance.open({ deviceId, address, localAddress, credentials: {}, codec }, line)
    await entrance.enter(session)
    if (!session.left) this.status = { state: 'connected' }
    release()
    await over
    return session.left!
  }

  /** However slowly the other side speaks, or the token comes. */
  async #reachInTime (): Promise<Outward> {
    const attempt = this.#attempt = new AbortController()
    const { signal } = attempt
    const timer = setTimeout(() => attempt.abort(new Error('No answer in time')), this.#ground.limits.admissionTimeout)
    const aborted = new Promise<never>((_resolve, reject) => {
      signal.addEventListener('abort', () => reject(signal.reason as Error), { once: true })
    })
    try {
      return await Promise.race([this.#reach(signal), aborted])
    } finally {
      clearTimeout(timer)
    }
  }

  async #reach (signal: AbortSignal): Promise<Outward> {
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
      throw new Error(`No token: ${wordsOf(error)}`, { cause: error })
    }
  }

  #ended ({ code, reason }: Farewell, lasted: number): void {
    this.#outward = undefined
    if (this.status.state === 'stopped') return
    if (lasted >= GOOD * this.#options.first) this.#tries = 0
    const retryIn = this.#isWanted ? waitOf(code, reason, this.#tries++, this.#options) : undefined
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
function farewellOf (thrown: unknown): Farewell {
  try {
    const { code, reason } = thrown as Farewell
    if (!(thrown instanceof Error) && Number.isInteger(code)) return { code, reason }
  } catch {} // nothing that can be read, from a codec that is not ours
  return { code: goodbyes.vanished.code, reason: wordsOf(thrown) }
}
