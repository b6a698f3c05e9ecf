import type { Backplane } from '../cluster/backplane.ts'
import { Failure, type Reason } from '../protocol/errors.ts'
import type { Events } from '../messaging/events.ts'
import { refuseForeign } from './origins.ts'
import { protect } from './protected-mode.ts'
import type { Authenticate, ConnectRequest } from './connect-request.ts'
import type { Letters } from '../messaging/letters.ts'
import { withDeadline } from '../protocol/deadline.ts'
import type { Codec } from '../protocol/message.ts'
import type { Settings } from './options.ts'
import { SessionOwner } from '../messaging/session-owner.ts'
import type { Registry } from '../connection/registry.ts'
import type { Credentials } from '../connection/device.ts'
import { isDeviceId } from '../protocol/device-id.ts'
import { refusalStatusOf } from '../protocol/user-code.ts'
import type { Gateway } from './transport.ts'
import { Session } from '../connection/session.ts'
import type { AdmittedDevice, SessionHost, Socket } from '../connection/session-host.ts'
import type { Subscriptions } from '../messaging/subscriptions.ts'
import { flatString } from '../connection/flat-string.ts'

/** A device that is being admitted. */
interface PendingAdmission {
  readonly connectRequest: ConnectRequest
  /** Aborts when the device disconnects during admission. */
  readonly departure: AbortController
  /** The codec of the transport, for a device that offers no subprotocol. */
  readonly defaultCodec: Codec | undefined
  deviceId: string
  codec: Codec
  credentials: Credentials | undefined
  /** When the credentials expire, in milliseconds since 1970. */
  expiresAt: number | undefined
}

type Step = (pending: PendingAdmission) => void | false | Promise<void>

type Rules = Pick<Settings, 'authenticate' | 'origins' | 'admissionTimeout' | 'pingInterval'>

interface AdmissionParts {
  host: SessionHost<Session>
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

/** Checks devices before their connections open, then registers and welcomes their sessions. */
export class Admission implements Gateway {
  readonly #parts: AdmissionParts

  constructor (parts: AdmissionParts) {
    this.#parts = parts
  }

  /** The checks, in order. */
  readonly #steps: Step[] = [
    () => { if (this.#parts.isDraining()) throw new Failure('draining') },
    ({ departure }) => departure.signal.throwIfAborted(),
    ({ connectRequest }) => { if (this.#parts.rules.authenticate === undefined) protect(connectRequest, 'authenticate') },
    ({ connectRequest }) => refuseForeign(connectRequest, this.#parts.rules.origins, this.#parts.host.log),
    pending => this.#identify(pending),
    pending => this.#chooseCodec(pending),
    pending => this.#parts.rules.authenticate && this.#authenticate(pending, this.#parts.rules.authenticate)
  ]

  async admit (connectRequest: ConnectRequest, departure: AbortController, defaultCodec?: Codec): Promise<AdmittedDevice> {
    const pending: PendingAdmission = { connectRequest, departure, defaultCodec, deviceId: '', codec: this.#parts.codecs[0]!, credentials: undefined, expiresAt: undefined }
    try {
      for (const step of this.#steps) {
        const outcome = step(pending)
        if (outcome) await outcome
      }
    } catch (error) {
      throw this.#refused(pending, error)
    }
    const { address, localAddress } = connectRequest
    const { deviceId, credentials, expiresAt, codec } = pending
    return { deviceId, credentials, expiresAt, codec, address, localAddress }
  }

  get isDraining (): boolean {
    return this.#parts.isDraining()
  }

  /** Counts and logs a refusal. The device id may be unknown. */
  refused (reason: string, client: { deviceId?: string, address: string | undefined }): void {
    const { host } = this.#parts
    host.stats.count('refusals', reason)
    host.log.info({ ...client, reason }, 'device refused')
  }

  open (device: AdmittedDevice, socket: Socket): Session {
    const { host, registry, subscriptions } = this.#parts
    const session = new Session(host, socket, device, registry.bucketOf(device.deviceId))
    session.owner = new SessionOwner(session, subscriptions, host.log, host.checks)
    return session
  }

  /** Takes the device over from an older connection, registers the session, welcomes the device, and wakes the delivery of its letters. */
  async enter (session: Session): Promise<void> {
    const { host, letters, rules, backplane, registry, isDraining } = this.#parts
    const timer = setTimeout(() => session.end('overloaded'), rules.admissionTimeout)
    try {
      const waiting = await letters.waitingIfKnown(session.id)
      if (session.left) return // timed out: the device may have connected elsewhere by now
      session.own(await backplane.own(session.id, session.owner!))
      if (isDraining()) session.end('leaving')
      // synchronously: once registered, a session may be sent messages, and the welcome must come first
      if (!session.left) registry.enter(session)
      if (!session.left) this.#welcome(session, waiting)
    } catch (error) {
      if (session.left) return // the device gave the handshake up, so there is nothing to report
      host.log.error({ err: error, deviceId: session.id }, 'device takeover failed')
      session.end('overloaded')
    } finally {
      clearTimeout(timer)
    }
  }

  #welcome (session: Session, waiting: number): void {
    const { host, rules, events } = this.#parts
    const { id: deviceId, generation } = session
    host.stats.admitted()
    host.log.info({ deviceId, generation, address: session.address }, 'device connected')
    session.welcome({ deviceId, generation, heartbeat: rules.pingInterval, now: Date.now(), waiting })
    if (session.left) return
    session.enter()
    events.emit('connected', session)
    session.wake()
  }

  #identify (pending: PendingAdmission): void {
    const { deviceId } = pending.connectRequest
    if (!isDeviceId(deviceId)) throw new Failure('bad-id')
    if (deviceId.length > this.#parts.maxIdLength) {
      throw new Failure('bad-id', { message: `The id is too long for the REST routes: set Fastify's routerOptions.maxParamLength to ${deviceId.length} or more` })
    }
    pending.deviceId = flatString(deviceId)
  }

  #chooseCodec (pending: PendingAdmission): void {
    const { protocols, path, trace } = pending.connectRequest
    const available = this.#parts.codecs.filter(codec => codec.path === path)
    const offered = protocols.map(name => available.find(({ subprotocol }) => subprotocol === name))
    // a codec with a path of its own must be asked for by name
    const codec = protocols.length === 0 && path === undefined ? pending.defaultCodec ?? available[0] : offered.find(codec => codec !== undefined)
    if (!codec) throw new Failure('bad-protocol')
    pending.codec = trace ? codec.traced ?? codec : codec
  }

  async #authenticate (pending: PendingAdmission, authenticate: Authenticate): Promise<void> {
    const { admissionTimeout } = this.#parts.rules
    const { connectRequest, deviceId, departure } = pending
    const late = () => new Failure('unauthenticated', { message: 'Admission took too long', mayPass: true })
    const result = await withDeadline(authenticate({ ...connectRequest, deviceId }, { signal: departure.signal }), admissionTimeout, late, departure)
    const credentials = result === true ? {} : result
    if (credentials instanceof Error) throw credentials
    // a list is refused: it may be the empty result of a database query
    if (typeof credentials !== 'object' || credentials === null || Array.isArray(credentials)) throw new Failure('unauthenticated')
    const { expiresAt } = credentials
    if (expiresAt !== undefined && !(Number(expiresAt) > Date.now())) throw new Failure('unauthenticated')
    pending.credentials = credentials
    pending.expiresAt = expiresAt === undefined ? undefined : Number(expiresAt)
  }

  /** Fails closed: an error of `authenticate` that is no refusal is logged, and the device is refused as for wrong credentials. */
  #refused ({ connectRequest, deviceId }: PendingAdmission, error: unknown): Failure {
    const { host } = this.#parts
    const refusal = refusalOf(error)
    if (!refusal) host.log.error({ err: error, deviceId }, 'authenticate failed')
    const failure = refusal ?? new Failure('unauthenticated', { mayPass: true })
    this.refused(failure.reason, { deviceId, address: connectRequest.address })
    return failure
  }
}

/** Other statuses below 500 may be those of a service that `authenticate` has asked: such an error is an accident, which may pass. */
const refusalReasons: Record<number, Reason> = { 400: 'unauthenticated', 401: 'unauthenticated', 403: 'forbidden' }

/** The refusal that an error means: a `Failure`, or an error with such a status, as those of `@fastify/jwt` have. */
function refusalOf (error: unknown): Failure | undefined {
  if (error instanceof Failure) return error
  const reason = refusalReasons[refusalStatusOf(error) ?? 0]
  return reason && new Failure(reason)
}
