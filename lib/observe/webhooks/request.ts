import { createHmac, type KeyObject } from 'node:crypto'
import { request as requestHttp, type Agent, type IncomingMessage, type OutgoingHttpHeaders } from 'node:http'
import { request as requestHttps } from 'node:https'

export interface WebhookRequest {
  url: URL
  keys: KeyObject[]
  id: string
  body: Uint8Array
  /** The node that sends. */
  node: string
  agent: Agent
  /** Milliseconds since 1970. */
  now: number
  signal: AbortSignal
}

export interface WebhookResponse {
  status: number
  /** Milliseconds until the endpoint wants to be asked again; undefined if it does not say, or names no time in the future. */
  retryAfter: number | undefined
}

/** A longer response is cut off: only its status and headers are used. */
const MAX_RESPONSE_BYTES = 16_384

/** Posts an event. Rejects if there is no response. */
export function postWebhook ({ url, keys, id, body, node, agent, now, signal }: WebhookRequest): Promise<WebhookResponse> {
  const headers = { ...signedHeaders(keys, id, body), 'content-type': 'application/cloudevents+json', 'content-length': body.length, 'user-agent': `fastify-devices (${node})` }
  const send = url.protocol === 'https:' ? requestHttps : requestHttp
  return new Promise((resolve, reject) => {
    let response: WebhookResponse | undefined
    let failure: unknown
    const request = send(url, { method: 'POST', headers, agent, signal })
    request.on('response', incoming => {
      response = { status: incoming.statusCode!, retryAfter: retryAfterOf(incoming.headers['retry-after'], now) }
      discard(incoming)
    })
    request.on('upgrade', (incoming, socket) => { // nobody has asked for it
      response = { status: incoming.statusCode!, retryAfter: undefined }
      socket.destroy()
    })
    request.on('error', error => { failure = error })
    request.on('close', () => response ? resolve(response) : reject(failure))
    request.end(body)
  })
}

/** Reads the body to its end, so that the connection can be used again; a long body ends the connection. */
function discard (response: IncomingMessage): void {
  let bytes = 0
  response.on('error', () => {}) // the request closes, too
  response.on('data', (chunk: Buffer) => {
    bytes += chunk.length
    if (bytes > MAX_RESPONSE_BYTES) response.destroy()
  })
}

/** The headers of Standard Webhooks, with a signature for each key. */
function signedHeaders (keys: KeyObject[], id: string, body: Uint8Array): OutgoingHttpHeaders {
  const timestamp = String(Math.floor(Date.now() / 1_000))
  const signatures = keys.map(key => `v1,${createHmac('sha256', key).update(`${id}.${timestamp}.`).update(body).digest('base64')}`)
  return { 'webhook-id': id, 'webhook-timestamp': timestamp, 'webhook-signature': signatures.join(' ') }
}

/** The header is a number of seconds, or a date. */
function retryAfterOf (header: string | undefined, now: number): number | undefined {
  const delay = /^\d+$/.test(header ?? '') ? Number(header) * 1_000 : Date.parse(header ?? '') - now
  return delay > 0 ? delay : undefined
}
