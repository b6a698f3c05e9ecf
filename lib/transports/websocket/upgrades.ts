import type { IncomingMessage, Server, ServerResponse } from 'node:http'
import type { Socket } from 'node:net'
import type { Duplex } from 'node:stream'
import { Server as TlsServer } from 'node:tls'
import type { FastifyInstance } from 'fastify'

export type UpgradeListener = (request: IncomingMessage, socket: Duplex, head: Buffer) => void

/** A socket of Node, with the response that is being written to it. */
type HttpSocket = Socket & { _httpMessage?: ServerResponse | null }

const kWebSocketOnly = Symbol('WebSocket upgrades only')
/** Default of `server.maxHeadersCount`; Node drops headers beyond it. */
const MAX_HEADERS = 1_000
const TOO_MANY_HEADERS = 'HTTP/1.1 431 Request Header Fields Too Large\r\nConnection: close\r\n\r\n'

/** Restricts a listener to WebSocket upgrades. It is wrapped as by `once`, so that `removeListener` finds it by the original. */
export function forWebSocketOnly (listener: UpgradeListener): UpgradeListener {
  const wrapper: UpgradeListener = (request, socket, head) => { if (isToWebSocket(request)) listener(request, socket, head) }
  return Object.assign(wrapper, { listener, [kWebSocketOnly]: true })
}

/** Treats requests for other upgrades than WebSocket as plain requests, from when the application is ready until it closes. */
export function ignoreOtherUpgrades (app: FastifyInstance): void {
  const { server } = app
  app.addHook('onReady', async () => {
    const listeners = server.rawListeners('upgrade') as UpgradeListener[]
    if (listeners.includes(ignoreUpgrade)) return
    server.removeAllListeners('upgrade')
    // the listener of @fastify/websocket, whoever registered the plugin, handles every upgrade
    for (const listener of listeners) server.on('upgrade', listener.name === 'onUpgrade' ? forWebSocketOnly(listener) : listener)
    server.on('upgrade', ignoreUpgrade)
  })
  // without a listener, Node treats upgrades as plain requests
  app.addHook('preClose', async () => { server.removeListener('upgrade', ignoreUpgrade) })
}

/**
 * Ignores the `Upgrade` header of a request for any other protocol, as a server may (RFC 9110, 7.8). As soon as there is an `upgrade`
 * listener, Node stops parsing at every such request and leaves the connection to the listeners.
 */
function ignoreUpgrade (this: Server, request: IncomingMessage, socket: Duplex, head: Buffer): void {
  const isUnclaimed = !isToWebSocket(request) && this.rawListeners('upgrade').every(listener => listener === ignoreUpgrade || kWebSocketOnly in listener)
  if (!isUnclaimed) return
  socket.on('error', destroy)
  parseAgain(this, request, socket as HttpSocket, head)
}

/** Gives the connection back to the server, and the request again before the rest, without its `Upgrade` header. */
function parseAgain (server: Server, request: IncomingMessage, socket: HttpSocket, head: Buffer): void {
  if (socket.destroyed) return
  // an earlier request on this connection is still being answered: wait for its response
  if (socket._httpMessage) return void socket._httpMessage.once('close', () => parseAgain(server, request, socket, head))
  // Node has dropped headers of this request; without its `Content-Length` the body could pass for another request
  if (request.rawHeaders.length >= 2 * (server.maxHeadersCount ?? MAX_HEADERS)) return void socket.end(TOO_MANY_HEADERS)
  socket.removeListener('error', destroy)
  socket.setTimeout(0) // the keep-alive timeout may be running
  socket.unshift(Buffer.concat([encodeHead(request), head]))
  server.emit(server instanceof TlsServer ? 'secureConnection' : 'connection', socket)
}

function encodeHead ({ method, url, httpVersion, rawHeaders }: IncomingMessage): Buffer {
  const lines = [`${method} ${url} HTTP/${httpVersion}`]
  for (let at = 0; at < rawHeaders.length; at += 2) {
    if (rawHeaders[at]!.toLowerCase() !== 'upgrade') lines.push(`${rawHeaders[at]}: ${rawHeaders[at + 1]}`)
  }
  return Buffer.from(`${lines.join('\r\n')}\r\n\r\n`, 'latin1')
}

function isToWebSocket ({ headers: { upgrade } }: IncomingMessage): boolean {
  return upgrade?.toLowerCase() === 'websocket'
}

function destroy (this: Duplex): void {
  this.destroy()
}
