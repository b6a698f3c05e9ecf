import { Failure } from '../protocol/errors.ts'
import { failureMessage, type FailureMessage } from '../protocol/message.ts'

/** What a node asks the owner of a device: its session. */
export type SessionRequest =
  | { kind: 'send', id: string, data: unknown }
  | { kind: 'confirm', id: string, data: unknown, timeout: number }
  | { kind: 'call', method: string, params: unknown, timeout: number }
  | WakeRequest
  | { kind: 'describe' }
  | { kind: 'end' }
  | { kind: 'join' | 'leave', topic: string }
  | { kind: 'renew', generation: number, expiresAt: number }

/** What a node asks a worker: to answer a method for a device, or to confirm that all earlier requests have arrived. */
export type WorkerRequest =
  | { kind: 'answer', method: string, params: unknown, connection: DeviceConnection, turn: number }
  | { kind: 'reached' }
  | WakeRequest

/** Letters may be waiting. A backplane may send it to everything it owns, once its connection is back; a worker has none and ignores it. */
interface WakeRequest {
  kind: 'ring'
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

/** Its answer: a value, or why there is none. */
export type Answer =
  | { ok: true, value: unknown }
  | { ok: false, message?: string } & Pick<FailureMessage, 'reason' | 'detail'>

/** Who is connected, as told to all nodes. */
export interface Presence {
  deviceId: string
  node: string
  generation: number
  since: number
}

/** The connection that holds a device. */
export interface Owner {
  readonly presence: Omit<Presence, 'generation'>
  answer (request: Request, signal?: AbortSignal): Promise<Answer>
  listensTo (topic: string): boolean
  /**
   * Resolves once the device has answered a ping; rejects if it has left. A backplane waits for it before it takes the device from an
   * older owner: a handshake that the device gave up must not end the connection it has.
   */
  confirmAlive? (): Promise<void>
  /** A newer connection owns the device now. */
  yield (): void
}

export interface Ownership {
  readonly generation: number
  /** May be called again. */
  release (): Promise<void>
}

/** How many devices a message was handed to, and how many nodes heard it. */
export interface PublishResult {
  sent: number
  nodes: number
}

/** What is published: to those who listen to its topic, or between nodes. */
export interface Publication {
  id: string
  topic: string
  data: unknown
  /** Milliseconds ago that it was published, where that is long. Devices that have connected since do not get it: they may have got it on another node. */
  age?: number | undefined
}

/** Returns how many devices it handed the publication to; `undefined` if none listens to the topic, and then the node is not counted. */
export type Listener = (publication: Publication) => number | undefined
export type Unwatch = () => void

/** A device came or went, on whichever node. The generation tells which of two is the later. */
export interface PresenceChange {
  kind: 'connected' | 'disconnected'
  presence: Presence
}

export interface ListPage {
  limit: number
  /** The device id behind which the page begins. */
  after?: string | undefined
  topic?: string | undefined
}

/**
 * Joins nodes. Rejects with the failure `unreachable` when it cannot. A name that begins with `$` is owned and asked like a device,
 * and never listed.
 */
export interface Backplane {
  /** Whether it joins more than one machine. */
  readonly remote: boolean
  /** The device is here now. Older owners are told to let go, once the new one has confirmed that it is alive. */
  own (deviceId: string, owner: Owner): Promise<Ownership>
  /** Undefined: nobody owns the device, and nobody was asked. What one node asks of an owner reaches it in the order asked. */
  ask (deviceId: string, request: Request, signal?: AbortSignal): Promise<Answer | undefined>
  /** A listener that watches several filters which match hears a publication once. */
  watch (filter: string, listener: Listener): Unwatch
  publish (publication: Publication): Promise<PublishResult>
  /** In the order of device ids. */
  list (page: ListPage): Promise<Presence[]>
  /** Tells who comes and goes, on all nodes. */
  follow (listener: (change: PresenceChange) => void): Unwatch
  /** Resolves once what is watched is heard from everywhere. */
  flush? (): Promise<void>
  /** Tells when the other nodes cannot be reached, and when they can again. */
  onLink? (listener: (up: boolean) => void): void
  /** Tells what went wrong where nobody waits. */
  onTrouble? (listener: (error: unknown) => void): void
  close? (): Promise<void>
}

/** The topics that begin with `$` are for the nodes themselves. */
export const EVERYONE_TOPIC = '$everyone'
export const lettersTopic = (node: string): string => `$letters/${node}`

/** Where workers tell what they answer, and where a node that comes asks them to. */
export const WORKERS_TOPIC = '$workers'
export const WORKER_DISCOVERY_TOPIC = '$workers/muster'
/** How often they tell, and how many times in a row one may not be heard before it is taken for gone. */
export const WORKER_ANNOUNCE_INTERVAL_MS = 1_000
export const MAX_MISSED_ANNOUNCEMENTS = 5

/** What a worker tells. */
export interface WorkerAnnouncement {
  /** The name it owns. */
  name: string
  /** What it answers; `message` stands among them when it listens to messages. */
  methods: string[]
  /** It takes nothing new. */
  leaving: boolean
}

/** What became of some work, as an answer. The work is begun at once. */
export async function answerOf (work: () => unknown): Promise<Answer> {
  try {
    return { ok: true, value: await work() }
  } catch (error) {
    const { reason, detail } = failureMessage(null, error)
    return { ok: false, reason, detail, ...(error instanceof Failure && { message: error.message }) }
  }
}

/** Throws the failure that an answer tells of. */
export function valueOf (answer: Answer): unknown {
  if (!answer.ok) throw new Failure(answer.reason, answer)
  return answer.value
}

/** A name that begins with `$` is owned and asked like a device, and is none. */
export function isListed (name: string): boolean {
  return !name.startsWith('$')
}
