import type { IncomingHttpHeaders } from 'node:http'
import type { Server, Socket } from 'node:net'
import type { FastifyRequest } from 'fastify'

/** The client of a request or connection. */
export interface Caller {
  /** Undefined for a local connection without an address (see `isLocal`), and once the connection was reset. */
  address: string | undefined
  /** The connection cannot come from another machine: it is a Unix socket, or a request injected in this process. */
  isLocal?: boolean
  headers: IncomingHttpHeaders
}

/** A socket with the server that accepted it, which the types of Node leave out. */
type Connection = Socket & { server?: Pick<Server, 'address'> }

/** The client of an HTTP request. */
export function callerOf (request: FastifyRequest): Caller {
  const { headers, raw } = request
  const socket = raw.socket as Connection | undefined
  if (!socket) return { address: undefined, isLocal: true, headers } // `injectWS` makes requests without a socket
  const address = request.ip
  // Unix sockets and reset connections both lack an address, but only the server of a Unix socket is bound to a path
  return { address, isLocal: address === undefined && typeof socket.server?.address() === 'string', headers }
}

/** HTTP/2 has `:authority` in place of `Host`; if a request has both, `:authority` counts. */
export function hostIn (headers: IncomingHttpHeaders): string | undefined {
  return headers[':authority'] as string | undefined ?? headers.host
}
