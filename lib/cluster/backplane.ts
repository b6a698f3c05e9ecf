import { Failure } from '../protocol/errors.ts'
import type { Health } from '../protocol/health.ts'
import { failureMessage, type FailureMessage } from '../protocol/message.ts'
import type { RequestContext } from '../protocol/request-context.ts'

/** What a node asks the owner of a device: its session. */
export type SessionRequest =
  | { kind: 'send', id: string, data: unknown, context?: RequestContext | undefined }
  | { kind: 'confirm', id: string, data: unknown, timeout: number, context?: RequestContext | undefined }
  | { kind: 'call', method: string, params: unknown, timeout: number, context?: RequestContext | undefined }
  | WakeRequest
  | { kind: 'describe' }
  | { kind: 'end' }
  | { kind: 'join' | 'leave', topic: string }
  | { kind: 'renew', generation: number, expiresAt: number }

/** What a node asks a worker: to answer a method for a device, or to confirm that all earlier requests have arrived. */
export type WorkerRequest =
  | { kind: 'answer', method: string, params: unknown, connection: DeviceConnection, turn: number, context?: RequestContext | undefined }
  | { kind: 'reached' }
  | WakeRequest

/** Letters may be waiting. A backplane may send it to everything it owns, once its connection is back; a worker has none and ignores it. */
interface WakeRequest {
  kind: 'wake'
}

/** What a backplane carries to an owner. Sessions own device ids and get a `SessionRequest`; workers own names with `$` and get a `WorkerRequest`. */
export type Request = SessionRequest | WorkerRequest

/** The connection of the device that called. */
export interface DeviceConnection {
  id: string
  node: string
  generation: number
  since: number
  address?: string | undefined
  localAddress?: string | undefined
  protocol: string
  topics: string[]
  credentials: Record<string, unknown>
}

/** The answer to a request: a value, or the reason of the failure. */
export type Answer =
  | { ok: true, value: unknown }
  | { ok: false, message?: string } & Pick<FailureMessage, 'reason' | 'detail'>

/** A connected device, as announced to all nodes. */
export interface Presence {
  deviceId: string
  node: string
  generation: number
  since: number
}

/** The connection that owns a device. */
export interface Owner {
  readonly presence: Omit<Presence, 'generation'>
  answer (request: Request, signal?: AbortSignal): Promise<Answer>
  listensTo (topic: string): boolean
  /**
   * Resolves once the device has answered a ping; rejects if it has left. A backplane waits for it before it takes the device from an
   * older owner: a handshake that the device has abandoned must not end its connection.
   */
  confirmAlive? (): Promise<void>
  /** A newer connection owns the device now. */
  yield (): void
}

export interface Ownership {
  readonly generation: number
  /** Idempotent. */
  release (): Promise<void>
}

/** Number of devices that a message was sent to, and of nodes that received it. */
export interface PublishResult {
  sent: number
  nodes: number
}

/** A message to the listeners of a topic, or between nodes. */
export interface Publication {
  id: string
  topic: string
  data: unknown
  /** The request that caused it. */
  context?: RequestContext | undefined
  /** Milliseconds since it was published, if it was delayed. Devices that connected since then do not get it: they may have got it on another node. */
  age?: number | undefined
}

/** Returns the number of devices that it sent the publication to; `undefined` if none listens to the topic, so that the node is not counted. */
export type Listener = (publication: Publication) => number | undefined
export type Unwatch = () => void

/** A device connected to or left a node. Of two changes the one with the higher generation is the later. */
export interface PresenceChange {
  kind: 'connected' | 'disconnected'
  presence: Presence
}

export interface ListPage {
  limit: number
  /** The device id behind which the page begins. */
  after?: string | undefined
  /** Only devices whose ids begin with it. */
  prefix?: string | undefined
  topic?: string | undefined
}

/**
 * Joins nodes. Rejects with the failure `unreachable` if other nodes cannot be reached. Names that begin with `$` are owned and asked like devices,
 * but never listed.
 */
export interface Backplane {
  /** Whether it joins more than one machine. */
  readonly remote: boolean
  /** Takes the device. Older owners yield once the new one has confirmed that it is alive. */
  own (deviceId: string, owner: Owner): Promise<Ownership>
  /** Undefined: the device has no owner, and none was asked. Requests of one node reach an owner in order. */
  ask (deviceId: string, request: Request, signal?: AbortSignal): Promise<Answer | undefined>
  /** A listener with several matching filters gets a publication once. */
  watch (filter: string, listener: Listener): Unwatch
  publish (publication: Publication): Promise<PublishResult>
  /** In the order of device ids. */
  list (page: ListPage): Promise<Presence[]>
  /** Reports devices that connect and disconnect, on all nodes. */
  follow (listener: (change: PresenceChange) => void): Unwatch
  /** Resolves once all nodes know the filters that are watched here. */
  flush? (): Promise<void>
  /** Reports when the other nodes become unreachable, and reachable again. */
  onLink? (listener: (up: boolean) => void): void
  /** Reports errors that no caller waits for. */
  onTrouble? (listener: (error: unknown) => void): void
  /** Whether the other nodes can be reached now; a backplane without it always can. Called by readiness probes, so it must be cheap. */
  health? (): Promise<Health>
  close? (): Promise<void>
}

/** Topics that begin with `$` are used between nodes. */
export const EVERYONE_TOPIC = '$everyone'
export const lettersTopic = (node: string): string => `$letters/${node}`

/** Nodes publish their events on the first topic, while a node with readers asks for them on the second. */
export const EVENTS_TOPIC = '$events'
export const EVENTS_INTEREST_TOPIC = '$events/interest'

/** Workers announce their methods on the first topic; a new node asks for announcements on the second. */
export const WORKERS_TOPIC = '$workers'
export const WORKER_DISCOVERY_TOPIC = '$workers/discovery'
/** Interval of announcements, and how many a worker may miss before it is taken for dead. */
export const WORKER_ANNOUNCE_INTERVAL_MS = 1_000
export const MAX_MISSED_ANNOUNCEMENTS = 5

/** A worker's announcement. */
export interface WorkerAnnouncement {
  /** The name it owns. */
  name: string
  /** The methods it answers; `message` is one of them if it listens to messages. */
  methods: string[]
  /** It accepts no new requests. */
  leaving: boolean
}

/** Starts work at once, and turns its outcome into an answer. */
export async function answerOf (work: () => unknown): Promise<Answer> {
  try {
    return { ok: true, value: await work() }
  } catch (error) {
    const { reason, detail } = failureMessage(null, error)
    return { ok: false, reason, detail, ...(error instanceof Failure && { message: error.message }) }
  }
}

/** What a node answers if the owner has failed. `bad-params` means that the answer cannot be encoded, which is not the fault of the caller. */
export function failedAnswer (error: unknown): Answer {
  const { reason } = failureMessage(null, error)
  return { ok: false, reason: reason === 'bad-params' ? 'internal' : reason }
}

/** The value of an answer; throws its failure. */
export function valueOf (answer: Answer): unknown {
  if (!answer.ok) throw new Failure(answer.reason, answer)
  return answer.value
}

/** False for names that begin with `$`: they are owned and asked like devices, but are none. */
export function isListed (name: string): boolean {
  return !name.startsWith('$')
}
