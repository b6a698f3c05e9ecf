import type { CallOptions } from '../protocol/peer.ts'

/** Who a device proved to be. */
export interface Credentials {
  /** Milliseconds since 1970; the session ends then unless renewed. */
  expiresAt?: number
  [name: string]: unknown
}

/** How a connection ended. */
export interface Disconnect {
  code: number
  reason: string
  at: number
}

/** A device that is here, as handlers and listeners see it. */
export interface Device {
  readonly id: string
  /** The node that it is connected to. */
  readonly node: string
  /** Grows with every connection of the device. */
  readonly generation: number
  /** Milliseconds since 1970. */
  readonly since: number
  readonly address: string | undefined
  /** Where it has come to; undefined on a Unix socket. */
  readonly localAddress: string | undefined
  readonly protocol: string
  readonly credentials: Credentials
  /** The filters it listens to. */
  readonly topics: ReadonlySet<string>
  /** Set once its connection has ended. */
  readonly left: Disconnect | undefined
  /** Hands it a message, now or never. */
  send (data: unknown): void
  /** Calls a method of it. */
  call (method: string, params?: unknown, options?: CallOptions): Promise<unknown>
  /** Moves the end of its credentials. */
  renew (expiresAt: number): void
}

/** What one node tells another about a device that is here. */
export interface DeviceDescription {
  connected: true
  node: string
  generation: number
  since: number
  address: string | undefined
  localAddress?: string | undefined
  protocol: string
  topics: string[]
  inFlight: number
}

/** Throws unless credentials can end then. */
export function assertTimestamp (expiresAt: number): void {
  if (!Number.isFinite(expiresAt)) throw new TypeError('expiresAt is a number of milliseconds since 1970')
}
