import type { FastifyBaseLogger } from 'fastify'
import type { Answer, Owner, SessionRequest } from '../cluster/backplane.ts'
import type { Call, Codec, Notice } from '../protocol/message.ts'
import type { InboundCall, PeerLimits } from '../protocol/peer.ts'
import type { Credentials } from './device.ts'
import type { FlushScheduler } from './flush-scheduler.ts'
import type { HeartbeatLimits, HeartbeatSocket } from './heartbeat.ts'
import type { Stats } from './stats.ts'
import type { OutboundChecks } from './outbound-checks.ts'
import type { RateLimit } from './token-bucket.ts'
import type { WriteTarget } from './write-queue.ts'

/** One open connection, as a transport provides it. */
export interface Socket extends HeartbeatSocket, WriteTarget {
  /** False from the first close notice on, although the connection may not be down yet. */
  readonly isOpen: boolean
  /** The name of its transport; without it, `other`. */
  readonly transport?: string
  /** Pings, and calls back at the first sign of life after the ping. Messages that arrive before the welcome are held back all the same. */
  probe? (onAlive: () => void): void
  close (code: number, reason: string): void
}

export interface SessionLimits extends HeartbeatLimits, RateLimit {
  maxBuffered: number
  maxCalls: number
  callTimeout: number
}

/** What a session needs of its node. `Session` is a parameter, so that this file does not import the one that imports it. */
export interface SessionHost<Session> {
  readonly node: string
  readonly limits: SessionLimits
  readonly stats: Stats
  readonly flushScheduler: FlushScheduler
  readonly log: FastifyBaseLogger
  /** Checks what the application sends to a device, if there is a contract. */
  readonly checks?: OutboundChecks | undefined
  /** Those of all sessions with this codec. */
  peerLimits (codec: Codec): PeerLimits
  answer (session: Session, request: Call | Notice, inbound: InboundCall): unknown
  onClosed (session: Session): void
  /** Delivers the letters that wait for the device, if there are any. */
  wake (session: Session): void
}

/** Answers requests for a session. */
export interface SessionServer extends Owner {
  /** Answers a request of this node; `answer` is for other nodes. */
  serve (request: SessionRequest, signal?: AbortSignal): Promise<Answer>
}

/** A device that admission has accepted, before its session opens. */
export interface AdmittedDevice {
  deviceId: string
  address: string | undefined
  localAddress: string | undefined
  /** Undefined where the application does not authenticate devices. */
  credentials?: Credentials | undefined
  /** When the credentials expire, in milliseconds since 1970. */
  expiresAt?: number | undefined
  codec: Codec
}
