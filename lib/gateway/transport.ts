import type { FastifyInstance } from 'fastify'
import type { ConnectRequest } from './connect-request.ts'
import type { Codec } from '../protocol/message.ts'
import type { Session } from '../connection/session.ts'
import type { AdmittedDevice, Socket } from '../connection/session-host.ts'

/** The way in, as a door sees it. */
export interface Gateway {
  /** Rejects with a `Failure` when the device may not come in. */
  admit (introduction: ConnectRequest, departure: AbortController, codec?: Codec): Promise<AdmittedDevice>
  open (arrival: AdmittedDevice, socket: Socket): Session
  enter (session: Session): Promise<void>
  /** Counts and logs somebody whom the door itself keeps out. */
  refused (reason: string, who: { address: string | undefined }): void
  readonly isDraining: boolean
}

export interface TransportLimits {
  maxMessage: number
  admissionTimeout: number
  pongTimeout: number
  closeTimeout: number
  retrySpread: number
}

/** What a door is built on. */
export interface TransportContext {
  app: FastifyInstance
  gateway: Gateway
  limits: TransportLimits
  /** For lines of text, which cannot hold bytes. */
  codec: Codec
}

/** Where devices come in. */
export interface Transport {
  /** Takes what it needs of the application, while that is still being put together. */
  open (ground: TransportContext): Promise<void>
  /** Resolves when every connection has ended; those that linger are cut at the deadline. */
  close (deadline: number): Promise<void>
}
