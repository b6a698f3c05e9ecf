import { createServer, type IncomingHttpHeaders, type IncomingMessage, type ServerResponse } from 'node:http'
import type { AddressInfo } from 'node:net'
import { Webhook } from 'standardwebhooks'
import { until } from './fakes.ts'

/** A request that an endpoint got, with a valid signature. */
export interface ReceivedEvent {
  body: any
  headers: IncomingHttpHeaders
  /** `webhook-id`. */
  id: string
  deviceId: string
  /** Without the prefix. */
  type: string
}

export type Respond = (response: ServerResponse, event: ReceivedEvent) => void

export const SECRET = `whsec_${Buffer.alloc(32, 7).toString('base64')}`

const accept: Respond = response => response.writeHead(204).end()

/** An endpoint that verifies what it gets. */
export class WebhookReceiver {
  url = ''
  readonly events: ReceivedEvent[] = []
  /** Requests that were not signed as they must be. */
  readonly invalid: string[] = []
  respond: Respond = accept
  /** Requests without a response, and the largest number of them at a time. */
  open = 0
  most = 0
  readonly #webhook: Webhook
  readonly #server = createServer((request, response) => void this.#receive(request, response))

  constructor (secret = SECRET) {
    this.#webhook = new Webhook(secret)
  }

  static async start (secret?: string, port = 0): Promise<WebhookReceiver> {
    const receiver = new WebhookReceiver(secret)
    await receiver.listen(port)
    return receiver
  }

  async listen (port = 0): Promise<void> {
    await new Promise<void>(resolve => this.#server.listen(port, '127.0.0.1', resolve))
    this.url = `http://127.0.0.1:${(this.#server.address() as AddressInfo).port}/hook`
  }

  /** Resolves once that many requests have come. */
  async got (count: number): Promise<ReceivedEvent[]> {
    await until(() => this.events.length >= count)
    return this.events
  }

  async close (): Promise<void> {
    this.#server.closeAllConnections()
    await new Promise(resolve => this.#server.close(resolve))
  }

  async #receive (request: IncomingMessage, response: ServerResponse): Promise<void> {
    this.most = Math.max(this.most, ++this.open)
    response.once('close', () => this.open--)
    let text = ''
    for await (const chunk of request) text += chunk
    const { headers } = request
    try {
      const body: any = this.#webhook.verify(text, headers as Record<string, string>)
      const event = { body, headers, id: String(headers['webhook-id']), deviceId: body.subject, type: body.type.replace('fastify-devices.', '') }
      this.events.push(event)
      this.respond(response, event)
    } catch (error) {
      this.invalid.push(String(error))
      response.writeHead(401).end()
    }
  }
}
