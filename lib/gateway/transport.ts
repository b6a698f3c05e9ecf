import type { FastifyBaseLogger, FastifyInstance } from 'fastify'
import type { ConnectRequest } from './connect-request.ts'
import type { Codec } from '../protocol/message.ts'
import type { Session } from '../connection/session.ts'
import type { AdmittedDevice, Socket } from '../connection/session-host.ts'

/** Admits devices and opens their sessions. A transport calls `admit`, then `open`, then `enter`. */
export interface Gateway {
  /** Rejects with a `Failure` if the device is refused. `codec` is used where the device offers no subprotocol. */
  admit (connectRequest: ConnectRequest, departure: AbortController, codec?: Codec): Promise<AdmittedDevice>
  /** Creates the session of an admitted device, over its socket. */
  open (device: AdmittedDevice, socket: Socket): Session
  /** Takes the device over from an older connection, welcomes it, and starts the delivery of its letters. */
  enter (session: Session): Promise<void>
  /** Counts and logs a connection that the transport itself refused. */
  refused (reason: string, client: { address: string | undefined }): void
  readonly isDraining: boolean
}

export interface TransportLimits {
  maxMessage: number
  admissionTimeout: number
  pongTimeout: number
  closeTimeout: number
  retrySpread: number
}

/** What the plugin gives to each transport. */
export interface TransportContext {
  app: FastifyInstance
  gateway: Gateway
  limits: TransportLimits
  /** JSON-RPC for transports of text lines, with bytes as base64. */
  codec: Codec
  /** The log of the plugin: it never throws. */
  log: FastifyBaseLogger
}

/** Accepts or opens connections of devices. */
export interface Transport {
  /** Called while the plugin is registered, so that routes and hooks can still be added. */
  open (context: TransportContext): Promise<void>
  /** Resolves when every connection has ended; at the deadline, the transport cuts those that remain. */
  close (deadline: number): Promise<void>
}
