import type { Failed } from './message.ts'

/** What may be asked of the owner of a device. */
export type Request =
  | { kind: 'send', id: string, data: unknown }
  | { kind: 'confirm', id: string, data: unknown, timeout: number }
  | { kind: 'call', method: string, params: unknown, timeout: number }
  | { kind: 'ring' }
  | { kind: 'describe' }
  | { kind: 'end' }
  | { kind: 'join' | 'leave', topic: string }

/** Its answer: a value, or why there is none. */
export type Answer =
  | { ok: true, value: unknown }
  | { ok: false, message?: string } & Pick<Failed, 'reason' | 'detail'>

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
  /** A newer connection owns the device now. */
  yield (): void
}

export interface Ownership {
  readonly generation: number
  /** May be called again. */
  release (): Promise<void>
}

/** How many devices a message was handed to, and how many nodes heard it. */
export interface Reach {
  sent: number
  nodes: number
}

/** What is published: to those who listen to its topic, or between nodes. */
export interface Publication {
  id: string
  topic: string
  data: unknown
}

/** Answers how many devices it handed the publication to. */
export type Listener = (publication: Publication) => number
export type Unwatch = () => void

/** A device came or went, on whichever node. The generation tells which of two is the later. */
export interface Change {
  kind: 'connected' | 'disconnected'
  presence: Presence
}

export interface Page {
  limit: number
  /** The device id behind which the page begins. */
  after?: string | undefined
  topic?: string | undefined
}

/** Joins nodes. Rejects with the failure `unreachable` when it cannot. */
export interface Backplane {
  /** Whether it joins more than one machine. */
  readonly remote: boolean
  /** The device is here now; older owners are told to let go. */
  own (deviceId: string, owner: Owner): Promise<Ownership>
  /** Undefined: nobody owns the device. */
  ask (deviceId: string, request: Request, signal?: AbortSignal): Promise<Answer | undefined>
  /** A listener that watches several filters which match hears a publication once. */
  watch (filter: string, listener: Listener): Unwatch
  publish (publication: Publication): Promise<Reach>
  /** In the order of device ids. */
  list (page: Page): Promise<Presence[]>
  /** Tells who comes and goes, on all nodes. */
  follow (listener: (change: Change) => void): Unwatch
  /** Resolves once what is watched is heard from everywhere. */
  flush? (): Promise<void>
  /** Tells when the other nodes cannot be reached, and when they can again. */
  onLink? (listener: (up: boolean) => void): void
  /** Tells what went wrong where nobody waits. */
  onTrouble? (listener: (error: unknown) => void): void
  close? (): Promise<void>
}

/** The topics that begin with `$` are for the nodes themselves. */
export const EVERYONE = '$everyone'
export const lettersOf = (node: string): string => `$letters/${node}`
