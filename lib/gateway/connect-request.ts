import { isUtf8 } from 'node:buffer'
import type { PeerCertificate } from 'node:tls'
import type { FastifyRequest } from 'fastify'
import type { Caller } from './caller.ts'
import type { Credentials } from '../connection/device.ts'
import { isDeviceId } from '../protocol/device-id.ts'

/** What a device sends to connect, over any transport. */
export interface ConnectRequest extends Caller {
  deviceId: unknown
  /** From `Authorization: Bearer`, from the subprotocol `bearer.<token>`, or from `connect {token}` over TCP. */
  token: string | undefined
  /** From `Authorization: Basic`. */
  username?: string | undefined
  password?: string | undefined
  /** The subprotocols that the device offers. */
  protocols: string[]
  /** The path of the codec, if the device connected to a codec with a path of its own. */
  path?: string | undefined
  /** The device asked for trace context: its frames carry `traceparent` and `tracestate`. */
  trace?: boolean
  /** The local address of the connection; undefined on a Unix socket. */
  localAddress: string | undefined
  /** The upgrade request, over WebSocket. */
  request?: FastifyRequest
  /** The client certificate, if the transport asked for one and verified it. */
  certificate?: PeerCertificate
}

/** Returns the credentials of a device, or `true` to admit it without any. Any other result, or an error, refuses it. */
export type Authenticate = (
  connectRequest: ConnectRequest & { deviceId: string },
  context: { signal: AbortSignal }
) => Credentials | boolean | null | undefined | void | Promise<Credentials | boolean | null | undefined | void>

/** The user name ends at the first colon, unless it is the device id: that may contain colons. */
export function basicOf (authorization: string | undefined, deviceId: unknown): { username?: string, password?: string } {
  const [, encoded] = authorization?.match(/^Basic +(\S+)$/i) ?? []
  if (encoded === undefined) return {}
  const bytes = Buffer.from(encoded, 'base64')
  // a password may be arbitrary bytes: latin1 keeps different ones different, where UTF-8 would replace invalid bytes
  const text = isUtf8(bytes) ? bytes.toString() : bytes.toString('latin1')
  const end = isDeviceId(deviceId) && text.startsWith(`${deviceId}:`) ? deviceId.length : text.indexOf(':')
  return end === -1 ? {} : { username: text.slice(0, end), password: text.slice(end + 1) }
}

export function tokenOf (authorization: string | undefined): string | undefined {
  return authorization?.match(/^Bearer +(\S+)$/i)?.[1]
}
