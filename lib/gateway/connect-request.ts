import { isUtf8 } from 'node:buffer'
import type { PeerCertificate } from 'node:tls'
import type { FastifyRequest } from 'fastify'
import type { Caller } from './access.ts'
import type { Credentials } from '../connection/device.ts'
import { isDeviceId } from '../protocol/device-id.ts'

/** How a device introduces itself, over whichever transport. */
export interface ConnectRequest extends Caller {
  deviceId: unknown
  /** From `Authorization: Bearer`, from the subprotocol `bearer.<token>`, or from `connect {token}` over TCP. */
  token: string | undefined
  /** From `Authorization: Basic`. */
  username?: string | undefined
  password?: string | undefined
  /** The subprotocols it offers. */
  protocols: string[]
  /** The path of the protocols that it came for, where they have one of their own. */
  path?: string | undefined
  /** Where it has come to; undefined on a Unix socket. */
  localAddress: string | undefined
  /** The upgrade request, where there was one. */
  request?: FastifyRequest
  /** What a device that came over TLS showed, if the door asked for it and could verify it. */
  certificate?: PeerCertificate
}

/** Who is this device: its credentials, or `true` for none in particular. Anything else, or an error, keeps it out. */
export type Authenticate = (
  introduction: ConnectRequest & { deviceId: string },
  context: { signal: AbortSignal }
) => Credentials | boolean | null | undefined | void | Promise<Credentials | boolean | null | undefined | void>

/** The name ends at the first colon, unless it is the device id, which may hold one. */
export function basicOf (authorization: string | undefined, deviceId: unknown): { username?: string, password?: string } {
  const [, encoded] = authorization?.match(/^Basic +(\S+)$/i) ?? []
  if (encoded === undefined) return {}
  const bytes = Buffer.from(encoded, 'base64')
  // a key may be any bytes, and no two may look the same
  const text = isUtf8(bytes) ? bytes.toString() : bytes.toString('latin1')
  const end = isDeviceId(deviceId) && text.startsWith(`${deviceId}:`) ? deviceId.length : text.indexOf(':')
  return end === -1 ? {} : { username: text.slice(0, end), password: text.slice(end + 1) }
}

export function tokenOf (authorization: string | undefined): string | undefined {
  return authorization?.match(/^Bearer +(\S+)$/i)?.[1]
}
