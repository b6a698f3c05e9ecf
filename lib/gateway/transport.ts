import type { FastifyInstance } from 'fastify'
import type { Introduction } from './connect-request.ts'
import type { Codec } from '../protocol/message.ts'
import type { Arrival, Session, Socket } from '../connection/session.ts'

/** The way in, as a door sees it. */
export interface Entrance {
  /** Rejects with a `Failure` when the device may not come in. */
  admit (introduction: Introduction, departure: AbortController, codec?: Codec): Promise<Arrival>
  open (arrival: Arrival, socket: Socket): Session
  enter (session: Session): Promise<void>
  /** Counts and logs somebody whom the door itself keeps out. */
  refused (reason: string, who: { address: string | undefined }): void
  readonly isDraining: boolean
}

export interface DoorLimits {
  maxMessage: number
  admissionTimeout: number
  pongTimeout: number
  closeTimeout: number
  retrySpread: number
}

/** What a door is built on. */
export interface Ground {
  app: FastifyInstance
  entrance: Entrance
  limits: DoorLimits
  /** For lines of text, which cannot hold bytes. */
  codec: Codec
}

/** Where devices come in. */
export interface Door {
  /** Takes what it needs of the application, while that is still being put together. */
  open (ground: Ground): Promise<void>
  /** Resolves when every connection has ended; those that linger are cut at the deadline. */
  close (deadline: number): Promise<void>
}
