import type { TlsOptions } from 'node:tls'
import { Type, type Static } from '@sinclair/typebox'
import { complete, Count, Part } from '../../gateway/options.ts'

/** Some systems silently truncate a longer path. */
const MAX_PATH_LENGTH = 103

export const TcpOptionsSchema = Type.Object({
  port: Type.Optional(Type.Integer({ minimum: 0, maximum: 65_535, description: 'Port to listen on; 0 takes a free one' })),
  host: Type.String({ default: '127.0.0.1', minLength: 1, description: 'Address to listen on; the default is loopback' }),
  path: Type.Optional(Type.String({ minLength: 1, maxLength: MAX_PATH_LENGTH, description: 'Unix socket to listen on, in place of `port` and `host`' })),
  tls: Type.Optional(Part<TlsOptions>('Options of `tls.createServer`; with `requestCert`, `authenticate` gets the certificate of the device')),
  maxUnknown: Count(1_000, 'Maximum number of connections that have not been admitted')
}, { additionalProperties: false })

export type TcpSettings = Static<typeof TcpOptionsSchema>

/** Options of `tcp()`. Exactly one of `port` and `path` is required. */
export interface TcpOptions {
  /**
   * Port to listen on; 0 takes a free one.
   *
   * @default undefined
   */
  port?: number
  /**
   * Address to listen on; the default is loopback.
   *
   * @default '127.0.0.1'
   */
  host?: string
  /**
   * Unix socket to listen on, in place of `port` and `host`.
   *
   * @default undefined
   */
  path?: string
  /**
   * Options of `tls.createServer`; with `requestCert`, `authenticate` gets the certificate of the device.
   *
   * @default undefined
   */
  tls?: TlsOptions
  /**
   * Maximum number of connections that have not been admitted.
   *
   * @default 1_000
   */
  maxUnknown?: number
}

/** The options with their defaults. Throws for a wrong or unknown option and names it. */
export function tcpSettingsOf (options: TcpOptions): TcpSettings {
  if ((options.port === undefined) === (options.path === undefined)) throw new Error('tcp() needs one of the options "port" and "path"')
  return complete('tcp()', TcpOptionsSchema, options)
}
