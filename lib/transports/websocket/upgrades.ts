import type { IncomingMessage, Server, ServerResponse } from 'node:http'
import type { Socket } from 'node:net'
import type { Duplex } from 'node:stream'
import { Server as TlsServer } from 'node:tls'
import type { FastifyInstance } from 'fastify'

export type Upgrade = (request: IncomingMessage, socket: Duplex, head: Buffer) => void

/** A connection as Node has it: with the answer that is being written to it. */
type Connection = Socket & { _httpMessage?: ServerResponse | null }

const kNarrowed = Symbol('only WebSockets')
/** Node's default: it drops those beyond. */
const MAX_HEADERS = 1_000
const TOO_MANY_HEADERS = 'HTTP/1.1 431 Request Header Fields Too Large\r\nConnection: close\r\n\r\n'

/** The same listener, for upgrades to WebSocket only. It can be removed by itself, as one that was added with `once`. */
export function narrowed (listener: Upgrade): Upgrade {
  const narrower: Upgrade = (request, socket, head) => { if (isToWebSocket(request)) listener(request, socket, head) }
  return Object.assign(narrower, { listener, [kNarrowed]: true })
}

/** Lets upgrades to anything but WebSocket be plain requests, from when the application is ready until it closes. */
export function onlyToWebSocket (app: FastifyInstance): void {
  const { server } = app
  app.addHook('onReady', async () => {
    const listeners = server.rawListeners('upgrade') as Upgrade[]
    if (listeners.includes(answerPlainly)) return
    server.removeAllListeners('upgrade')
    // the one of @fastify/websocket, whoever registered it, takes every upgrade for its own
    for (const listener of listeners) server.on('upgrade', listener.name === 'onUpgrade' ? narrowed(listener) : listener)
    server.on('upgrade', answerPlainly)
  })
  // without any listener, upgrades are plain requests anyway
  app.addHook('preClose', async () => { server.removeListener('upgrade', answerPlainly) })
}

/**
 * Answers a request for any other upgrade as if it had not asked for one, as a server may (RFC 9110, 7.8). As soon as anybody listens
 * for upgrades, Node takes each of them for one, stops parsing there, and leaves the connection to the listeners.
 */
function answerPlainly (this: Server, request: IncomingMessage, socket: Duplex, head: Buffer): void {
  const isOurs = !isToWebSocket(request) && this.rawListeners('upgrade').every(listener => listener === answerPlainly || kNarrowed in listener)
  if (!isOurs) return
  socket.on('error', hangUp)
  parseAgain(this, request, socket as Connection, head)
}

/** Gives the connection back to the server, with the same request in front, less the header that asks for the upgrade. */
function parseAgain (server: Server, request: IncomingMessage, socket: Connection, head: Buffer): void {
  if (socket.destroyed) return
  // an earlier request on this connection is still being answered
  if (socket._httpMessage) return void socket._httpMessage.once('close', () => parseAgain(server, request, socket, head))
  // one that is not known whole could be taken for another
  if (request.rawHeaders.length >= 2 * (server.maxHeadersCount ?? MAX_HEADERS)) return void socket.end(TOO_MANY_HEADERS)
  socket.removeListener('error', hangUp)
  socket.setTimeout(0) // the time of a connection that is kept alive may be running
  socket.unshift(Buffer.concat([headOf(request), head]))
  server.emit(server instanceof TlsServer ? 'secureConnection' : 'connection', socket)
}

function headOf ({ method, url, httpVersion, rawHeaders }: IncomingMessage): Buffer {
  const lines = [`${method} ${url} HTTP/${httpVersion}`]
  for (let at = 0; at < rawHeaders.length; at += 2) {
    if (rawHeaders[at]!.toLowerCase() !== 'upgrade') lines.push(`${rawHeaders[at]}: ${rawHeaders[at + 1]}`)
  }
  return Buffer.from(`${lines.join('\r\n')}\r\n\r\n`, 'latin1')
}

function isToWebSocket ({ headers: { upgrade } }: IncomingMessage): boolean {
  return upgrade?.toLowerCase() === 'websocket'
}

function hangUp (this: Duplex): void {
  this.destroy()
}
