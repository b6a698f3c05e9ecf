import type { Backplane } from '../cluster/backplane.ts'
import { Failure } from '../protocol/errors.ts'
import type { Events } from '../messaging/events.ts'
import { protect, refuseForeign } from './access.ts'
import type { Authenticate, ConnectRequest } from './connect-request.ts'
import type { Letters } from '../messaging/letters.ts'
import { withDeadline } from '../protocol/deadline.ts'
import type { Codec } from '../protocol/message.ts'
import type { Settings } from './options.ts'
import { SessionOwner } from '../messaging/session-owner.ts'
import type { Registry } from '../connection/registry.ts'
import type { Credentials } from '../connection/device.ts'
import { isDeviceId } from '../protocol/device-id.ts'
import type { Gateway } from './transport.ts'
import { Session, type AdmittedDevice, type SessionHost, type Socket } from '../connection/session.ts'
import type { Subscriptions } from '../messaging/subscriptions.ts'
import { flatString } from '../connection/flat-string.ts'

/** A device on its way in. */
interface PendingAdmission {
  readonly introduction: ConnectRequest
  /** Aborts when the device leaves meanwhile. */
  readonly departure: AbortController
  /** What is spoken at its door where nothing is offered. */
  readonly usual: Codec | undefined
  deviceId: string
  codec: Codec
  credentials: Credentials | undefined
  /** When they end, in milliseconds since 1970. */
  expiresAt: number | undefined
}

type Step = (entrant: PendingAdmission) => void | false | Promise<void>

type Rules = Pick<Settings, 'authenticate' | 'origins' | 'admissionTimeout' | 'pingInterval'>

interface AdmissionParts {
  home: SessionHost
  codecs: Codec[]
  rules: Rules
  /** The longest id that REST can route. */
  maxIdLength: number
  isDraining: () => boolean
  registry: Registry
  backplane: Backplane
  subscriptions: Subscriptions
  letters: Letters
  events: Events
}

/** The way in: what a device must pass before its connection opens, and what happens then. */
export class Admission implements Gateway {
  readonly #parts: AdmissionParts

  constructor (parts: AdmissionParts) {
    this.#parts = parts
  }

  /** The order is the documentation. */
  readonly #steps: Step[] = [
    () => { if (this.#parts.isDraining()) throw new Failure('draining') },
    ({ departure }) => departure.signal.throwIfAborted(),
    ({ introduction }) => { if (this.#parts.rules.authenticate === undefined) protect(introduction, 'authenticate') },
    ({ introduction }) => refuseForeign(introduction, this.#parts.rules.origins, this.#parts.home.log),
    entrant => this.#identify(entrant),
    entrant => this.#choose(entrant),
    entrant => this.#parts.rules.authenticate && this.#authenticate(entrant, this.#parts.rules.authenticate)
  ]

  /** Rejects with a `Failure` when the device may not come in. `usual` is for those who offer no protocol. */
  async admit (introduction: ConnectRequest, departure: AbortController, usual?: Codec): Promise<AdmittedDevice> {
    const entrant: PendingAdmission = { introduction, departure, usual, deviceId: '', codec: this.#parts.codecs[0]!, credentials: undefined, expiresAt: undefined }
    try {
      for (const step of this.#steps) {
        const asked = step(entrant)
        if (asked) await asked
      }
    } catch (error) {
      throw this.#refused(entrant, error)
    }
    const { address, localAddress } = introduction
    const { deviceId, credentials, expiresAt, codec } = entrant
    return { deviceId, credentials, expiresAt, codec, address, localAddress }
  }

  get isDraining (): boolean {
    return this.#parts.isDraining()
  }

  /** Somebody is kept out; of most who do not say who they are, the address is all that is known. */
  refused (reason: string, who: { deviceId?: string, address: string | undefined }): void {
    const { home } = this.#parts
    home.stats.count('refusals', reason)
    home.log.info({ ...who, reason }, 'device refused')
  }

  open (arrival: AdmittedDevice, socket: Socket): Session {
    const { home, registry, subscriptions } = this.#parts
    const session = new Session(home, socket, arrival, registry.bucketOf(arrival.deviceId))
    session.owner = new SessionOwner(session, subscriptions)
    return session
  }

  /** The connection is open: the session takes the device over, is welcomed, and gets its letters. */
  async enter (session: Session): Promise<void> {
    const { home, letters, rules, backplane, registry, isDraining } = this.#parts
    const late = setTimeout(() => session.end('overloaded'), rules.admissionTimeout)
    try {
      const waiting = await letters.waitingIfKnown(session.id)
      if (session.left) return // that took too long: somewhere else it may be entered by now
      session.own(await backplane.own(session.id, session.owner!))
      if (isDraining()) session.end('leaving')
      // in one go: who is in the registry may be sent something, and the welcome comes first
      if (!session.left) registry.enter(session)
      if (!session.left) this.#welcome(session, waiting)
    } catch (error) {
      if (session.left) return // a handshake that was given up takes nothing
      home.log.error({ err: error, deviceId: session.id }, 'a device could not be taken over')
      session.end('overloaded')
    } finally {
      clearTimeout(late)
    }
  }

  #welcome (session: Session, waiting: number): void {
    const { home, rules, events } = this.#parts
    const { id: deviceId, generation } = session
    home.stats.admitted()
    home.log.info({ deviceId, generation, address: session.address }, 'device connected')
    session.welcome({ deviceId, generation, heartbeat: rules.pingInterval, now: Date.now(), waiting })
    if (session.left) return
    session.enter()
    events.emit('connected', session)
    session.wake()
  }

  #identify (entrant: PendingAdmission): void {
    const { deviceId } = entrant.introduction
    if (!isDeviceId(deviceId)) throw new Failure('bad-id')
    if (deviceId.length > this.#parts.maxIdLength) {
      throw new Failure('bad-id', { message: `REST cannot reach an id this long: set Fastify's routerOptions.maxParamLength to ${deviceId.length} or more` })
    }
    entrant.deviceId = flatString(deviceId)
  }

  #choose (entrant: PendingAdmission): void {
    const { protocols, path } = entrant.introduction
    const spoken = this.#parts.codecs.filter(codec => codec.path === path)
    const offered = protocols.map(name => spoken.find(({ subprotocol }) => subprotocol === name))
    // a protocol with a path of its own is not spoken unasked
    const codec = protocols.length === 0 && path === undefined ? entrant.usual ?? spoken[0] : offered.find(one => one !== undefined)
    if (!codec) throw new Failure('bad-protocol')
    entrant.codec = codec
  }

  async #authenticate (entrant: PendingAdmission, authenticate: Authenticate): Promise<void> {
    const { admissionTimeout } = this.#parts.rules
    const { introduction, deviceId, departure } = entrant
    const late = () => new Failure('unauthenticated', { message: 'Admission took too long', mayPass: true })
    const proof = await withDeadline(authenticate({ ...introduction, deviceId }, { signal: departure.signal }), admissionTimeout, late, departure)
    const credentials = proof === true ? {} : proof
    if (credentials instanceof Error) throw credentials
    // a list is no credentials: it may be the empty one of a search that found nobody
    if (typeof credentials !== 'object' || credentials === null || Array.isArray(credentials)) throw new Failure('unauthenticated')
    const { expiresAt } = credentials
    if (expiresAt !== undefined && !(Number(expiresAt) > Date.now())) throw new Failure('unauthenticated')
    entrant.credentials = credentials
    entrant.expiresAt = expiresAt === undefined ? undefined : Number(expiresAt)
  }

  /** Fails closed: what `authenticate` threw is logged, and outside it is one more wrong credential. */
  #refused ({ introduction, deviceId }: PendingAdmission, error: unknown): Failure {
    const { home } = this.#parts
    const failure = error instanceof Failure ? error : new Failure('unauthenticated', { mayPass: true })
    if (failure !== error) home.log.error({ err: error, deviceId }, 'authenticate failed')
    this.refused(failure.reason, { deviceId, address: introduction.address })
    return failure
  }
}
