import type { IncomingHttpHeaders } from 'node:http'
import { isIPv4, type Server, type Socket } from 'node:net'
import type { FastifyBaseLogger, FastifyRequest } from 'fastify'
import { Failure } from '../protocol/errors.ts'
import { isThenable } from '../protocol/peer.ts'
import { invoke } from '../protocol/user-code.ts'

/** The other side of a request. */
export interface Caller {
  /** Undefined where there is none (see `isLocal`), and once the connection was reset. */
  address: string | undefined
  /** The connection cannot come from another machine: a Unix socket, or a request injected in this process. */
  isLocal?: boolean
  headers: IncomingHttpHeaders
}

/** Headers that proxies and CDNs add; one that ends with `*` stands for all that begin like it. */
export const proxyHeaders = [
  'forwarded', 'forwarded-for', 'via', 'x-forwarded*', 'x-original-*', 'x-real-ip', 'x-client-ip', 'x-cluster-client-ip', 'x-remote-ip', 'client-ip',
  'true-client-ip', 'cdn-loop', 'cf-*', 'cloudfront-*', 'x-amz-cf-id', 'x-amzn-trace-id', 'x-azure-*', 'x-appengine-*', 'x-cloud-trace-context',
  'x-envoy-*', 'fastly-*', 'fly-*', 'x-akamai-*', 'akamai-*', 'x-vercel-*', 'x-nf-*', 'do-connecting-ip', 'incap-client-ip', 'ali-cdn-real-ip'
]

const exact = new Set(proxyHeaders.filter(name => !name.endsWith('*')))
const beginnings = proxyHeaders.filter(name => name.endsWith('*')).map(name => name.slice(0, -1))

/** The caller behind an HTTP request. */
export function callerOf (request: FastifyRequest): Caller {
  const { headers, raw } = request
  const socket = raw.socket as Connection | undefined
  if (!socket) return { address: undefined, isLocal: true, headers } // `injectWS` makes requests without one
  const address = request.ip
  // neither a Unix socket nor a connection that was reset has an address; only the server of the former is bound to a path
  return { address, isLocal: address === undefined && typeof socket.server?.address() === 'string', headers }
}

/**
 * Protected mode: nothing but this machine. The host name must be one of this machine too, or a page could reach us from
 * a browser here by pointing a name of its own at 127.0.0.1.
 */
export function protect (caller: Caller, option: 'authenticate' | 'guard'): void {
  const { headers } = caller
  if (isFromThisMachine(caller) && isOurName(hostIn(headers) ?? 'localhost') && !Object.keys(headers).some(isOfProxy)) return
  throw new Failure('protected', {
    message: `Protected mode: only this machine may come in here. Set the option "${option}" to a function, or to false to leave this door open`
  })
}

/** Foreign origins that may come in: a list, or what says so of each. */
export type Origins = string[] | ((origin: string, headers: IncomingHttpHeaders) => boolean)

/** Browsers tell where a page came from; a page of another host has no business here unless it is listed. */
export function refuseForeign ({ headers }: Caller, origins: Origins, log: FastifyBaseLogger): void {
  const { origin } = headers
  const host = hostIn(headers)
  if (origin === undefined || (host !== undefined && hostOf(origin) === host)) return
  if (typeof origins === 'function' ? allows(() => origins(origin, headers), log) : origins.includes(origin)) return
  throw new Failure('foreign-origin')
}

/** Only `true` lets a page in. A promise is not waited for: it is a mistake of the application, and logged. */
function allows (ask: () => unknown, log: FastifyBaseLogger): boolean {
  const failed = (error: unknown) => log.error({ err: error }, 'origins failed')
  try {
    const answer = ask()
    if (!isThenable(answer)) return answer === true
    invoke(() => answer).catch(failed)
    failed(new TypeError('The function "origins" must return a boolean: a promise is not waited for'))
  } catch (error) {
    failed(error)
  }
  return false
}

/** With the server that accepted it, which the types of Node leave out. */
type Connection = Socket & { server?: Pick<Server, 'address'> }

/** An undefined address alone proves nothing: a connection that was reset has none either. */
function isFromThisMachine ({ address, isLocal = false }: Caller): boolean {
  return address === undefined ? isLocal : isLoopback(address)
}

function isOfProxy (header: string): boolean {
  return exact.has(header) || beginnings.some(beginning => header.startsWith(beginning))
}

/** HTTP/2 has `:authority` in place of `Host`; where both came, it counts. */
function hostIn (headers: IncomingHttpHeaders): string | undefined {
  return headers[':authority'] as string | undefined ?? headers.host
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
