import type { CallOptions } from '../protocol/peer.ts'

/** What `authenticate` returned for a device. */
export interface Credentials {
  /** Milliseconds since 1970; the session ends at that time unless it is renewed. */
  expiresAt?: number
  [name: string]: unknown
}

/** How a connection ended. */
export interface Disconnect {
  code: number
  reason: string
  at: number
}

/** A connected device, as handlers and listeners get it. */
export interface Device {
  readonly id: string
  /** The node that the device is connected to. */
  readonly node: string
  /** Fencing token; grows with every connection of the device. */
  readonly generation: number
  /** When the device connected, in milliseconds since 1970. */
  readonly since: number
  readonly address: string | undefined
  /** The address that the device connected to; undefined on a Unix socket. */
  readonly localAddress: string | undefined
  readonly protocol: string
  readonly credentials: Credentials
  /** The topic filters that the device subscribes to. */
  readonly topics: ReadonlySet<string>
  /** Set once its connection has ended. */
  readonly left: Disconnect | undefined
  /** Sends a message to this connection only; the message is lost if the connection ends first. */
  send (data: unknown): void
  /** Calls a method of the device. */
  call (method: string, params?: unknown, options?: CallOptions): Promise<unknown>
  /** Changes when the credentials expire. */
  renew (expiresAt: number): void
}

/** A connected device, as its node describes it to other nodes. */
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

/** Throws unless the time is a finite number. */
export function assertTimestamp (expiresAt: number): void {
  if (!Number.isFinite(expiresAt)) throw new TypeError('expiresAt is a number of milliseconds since 1970')
}
