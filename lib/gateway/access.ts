import type { IncomingHttpHeaders } from 'node:http'
import { isIPv4, type Server, type Socket } from 'node:net'
import type { FastifyBaseLogger, FastifyRequest } from 'fastify'
import { Failure } from '../protocol/errors.ts'
import { isThenable } from '../protocol/peer.ts'
import { invoke } from '../protocol/user-code.ts'

/** The client of a request or connection. */
export interface Caller {
  /** Undefined for a local connection without an address (see `isLocal`), and once the connection was reset. */
  address: string | undefined
  /** The connection cannot come from another machine: it is a Unix socket, or a request injected in this process. */
  isLocal?: boolean
  headers: IncomingHttpHeaders
}

/** Headers that proxies and CDNs add; a name that ends with `*` is a prefix. */
export const proxyHeaders = [
  'forwarded', 'forwarded-for', 'via', 'x-forwarded*', 'x-original-*', 'x-real-ip', 'x-client-ip', 'x-cluster-client-ip', 'x-remote-ip', 'client-ip',
  'true-client-ip', 'cdn-loop', 'cf-*', 'cloudfront-*', 'x-amz-cf-id', 'x-amzn-trace-id', 'x-azure-*', 'x-appengine-*', 'x-cloud-trace-context',
  'x-envoy-*', 'fastly-*', 'fly-*', 'x-akamai-*', 'akamai-*', 'x-vercel-*', 'x-nf-*', 'do-connecting-ip', 'incap-client-ip', 'ali-cdn-real-ip'
]

const exactHeaders = new Set(proxyHeaders.filter(name => !name.endsWith('*')))
const headerPrefixes = proxyHeaders.filter(name => name.endsWith('*')).map(name => name.slice(0, -1))

/** The client of an HTTP request. */
export function callerOf (request: FastifyRequest): Caller {
  const { headers, raw } = request
  const socket = raw.socket as Connection | undefined
  if (!socket) return { address: undefined, isLocal: true, headers } // `injectWS` makes requests without a socket
  const address = request.ip
  // Unix sockets and reset connections both lack an address, but only the server of a Unix socket is bound to a path
  return { address, isLocal: address === undefined && typeof socket.server?.address() === 'string', headers }
}

/**
 * Protected mode: refuses clients of other machines. The host name must be local too: otherwise a web page, opened in a browser on this machine,
 * could connect through a domain of its own that resolves to 127.0.0.1 (DNS rebinding).
 */
export function protect (caller: Caller, option: 'authenticate' | 'guard'): void {
  const { headers } = caller
  if (isFromThisMachine(caller) && isLocalHost(hostIn(headers) ?? 'localhost') && !Object.keys(headers).some(isProxyHeader)) return
  throw new Failure('protected', {
    message: `Protected mode: only this machine may connect. Set the option "${option}" to a function, or to false to admit everyone`
  })
}

/** Foreign origins whose pages may connect: a list, or a function that decides. */
export type Origins = string[] | ((origin: string, headers: IncomingHttpHeaders) => boolean)

/** Browsers send the origin of a page. A page of another host is refused unless its origin is listed. */
export function refuseForeign ({ headers }: Caller, origins: Origins, log: FastifyBaseLogger): void {
  const { origin } = headers
  const host = hostIn(headers)
  if (origin === undefined || (host !== undefined && hostOf(origin) === host)) return
  if (typeof origins === 'function' ? allows(() => origins(origin, headers), log) : origins.includes(origin)) return
  throw new Failure('foreign-origin')
}

/** Only `true` admits a page. The function must answer at once: a promise is refused and logged as an error. */
function allows (decide: () => unknown, log: FastifyBaseLogger): boolean {
  const fail = (error: unknown) => log.error({ err: error }, 'origins failed')
  try {
    const answer = decide()
    if (!isThenable(answer)) return answer === true
    invoke(() => answer).catch(fail)
    fail(new TypeError('The function "origins" must return a boolean, not a promise'))
  } catch (error) {
    fail(error)
  }
  return false
}

/** A socket with the server that accepted it, which the types of Node leave out. */
type Connection = Socket & { server?: Pick<Server, 'address'> }

/** A missing address alone does not prove that the client is local: a reset connection has none either. */
function isFromThisMachine ({ address, isLocal = false }: Caller): boolean {
  return address === undefined ? isLocal : isLoopback(address)
}

function isProxyHeader (header: string): boolean {
  return exactHeaders.has(header) || headerPrefixes.some(prefix => header.startsWith(prefix))
}

/** HTTP/2 has `:authority` in place of `Host`; if a request has both, `:authority` counts. */
function hostIn (headers: IncomingHttpHeaders): string | undefined {
  return headers[':authority'] as string | undefined ?? headers.host
}

function isLoopback (address: string): boolean {
  const plain = address.startsWith('::ffff:') ? address.slice(7) : address
  return plain === '::1' || (isIPv4(plain) && plain.startsWith('127.'))
}

function isLocalHost (host: string): boolean {
  const name = host.replace(/:\d+$/, '')
  return name === 'localhost' || name === '[::1]' || name.endsWith('.localhost') || isLoopback(name)
}

function hostOf (origin: string): string | undefined {
  return URL.canParse(origin) ? new URL(origin).host : undefined
}
