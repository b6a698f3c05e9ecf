import type { IncomingHttpHeaders } from 'node:http'
import { isIPv4 } from 'node:net'
import { Failure } from './errors.ts'

/** Where a request comes from. */
export interface Caller {
  /** Undefined on a Unix socket, and for a request injected in this process. */
  address: string | undefined
  headers: IncomingHttpHeaders
}

const forwarding = ['forwarded', 'via', 'x-real-ip', 'x-forwarded-for', 'x-forwarded-host', 'x-forwarded-proto', 'x-forwarded-port']

/**
 * Protected mode: nothing but this machine. The host name must be one of this machine too, or a page could reach us from
 * a browser here by pointing a name of its own at 127.0.0.1.
 */
export function protect ({ address, headers }: Caller, option: 'authenticate' | 'guard'): void {
  const near = isLoopback(address ?? '127.0.0.1') && isOurName(headers.host ?? 'localhost')
  if (near && !forwarding.some(name => headers[name] !== undefined)) return
  throw new Failure('protected', {
    message: `Protected mode: only this machine may come in here. Set the option "${option}" to a function, or to false to leave this door open`
  })
}

/** Foreign origins that may come in: a list, or what says so of each. */
export type Origins = string[] | ((origin: string, headers: IncomingHttpHeaders) => boolean)

/** Browsers tell where a page came from; a page of another host has no business here unless it is listed. */
export function refuseForeign ({ headers }: Caller, origins: Origins): void {
  const { origin, host } = headers
  if (origin === undefined || (host !== undefined && hostOf(origin) === host)) return
  if (typeof origins === 'function' ? origins(origin, headers) === true : origins.includes(origin)) return
  throw new Failure('foreign-origin')
}

function isLoopback (address: string): boolean {
  const plain = address.startsWith('::ffff:') ? address.slice(7) : address
  return plain === '::1' || (isIPv4(plain) && plain.startsWith('127.'))
}

function isOurName (host: string): boolean {
  const name = host.replace(/:\d+$/, '')
  return name === 'localhost' || name === '[::1]' || name.endsWith('.localhost') || isLoopback(name)
}

function hostOf (origin: string): string | undefined {
  return URL.canParse(origin) ? new URL(origin).host : undefined
}
