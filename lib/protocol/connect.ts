import { connect, isIP, type Socket } from 'node:net'
import { connect as connectTls, type ConnectionOptions } from 'node:tls'

/** Connects to `tcp://host:port`, with TLS if so told, or to `unix:/path`. */
export function connectTo (url: URL, tls?: ConnectionOptions): Socket {
  if (url.protocol === 'unix:') return connect({ path: decodeURIComponent(url.pathname), noDelay: true })
  const host = url.hostname.replace(/^\[(.*)\]$/, '$1')
  const port = Number(url.port)
  // the name says which certificate is wanted; an address is none
  return tls ? connectTls({ host, port, ...(!isIP(host) && { servername: host }), ...tls }) : connect({ host, port, noDelay: true })
}
