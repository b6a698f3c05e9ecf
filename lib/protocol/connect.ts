import { connect, isIP, type Socket } from 'node:net'
import { connect as connectTls, type ConnectionOptions } from 'node:tls'

/** Connects to `tcp://host:port`, over TLS if `tls` is given, or to `unix:/path`. */
export function connectTo (url: URL, tls?: ConnectionOptions): Socket {
  if (url.protocol === 'unix:') return connect({ path: decodeURIComponent(url.pathname), noDelay: true })
  const host = url.hostname.replace(/^\[(.*)\]$/, '$1')
  const port = Number(url.port)
  // SNI allows a host name only, not an IP address
  return tls ? connectTls({ host, port, ...(!isIP(host) && { servername: host }), ...tls }) : connect({ host, port, noDelay: true })
}
