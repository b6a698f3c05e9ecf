import type { FastifyBaseLogger } from 'fastify'
import type { Backplane } from '../../cluster/backplane.ts'
import type { WebhookOptions, WebhookReport } from '../../gateway/webhook-options.ts'
import type { Events } from '../../messaging/events.ts'
import { withDeadline } from '../../protocol/deadline.ts'
import type { ExpiredLetter, Mailbox } from '../../storage/mailbox.ts'
import { listenToEvents } from '../device-event.ts'
import { WEBHOOK_PREFIX } from '../webhook-letter.ts'
import { systemClock, type WebhookClock } from './clock.ts'
import { WebhookEndpoint } from './endpoint.ts'
import { targetsOf } from './target.ts'

interface WebhooksParts {
  node: string
  mailbox: Mailbox
  backplane: Backplane
  events: Events
  log: FastifyBaseLogger
  clock?: WebhookClock
}

const TICK_INTERVAL_MS = 1_000
/** A mailbox that does not answer must not stop the application from closing. */
const CLOSE_TIMEOUT_MS = 2_000

/** Sends the events of devices and letters to HTTP endpoints. */
export class Webhooks {
  readonly #endpoints: WebhookEndpoint[]
  readonly #log: FastifyBaseLogger
  readonly #unlisten: Array<() => void>
  #timer: NodeJS.Timeout | undefined

  constructor (options: WebhookOptions[], { events, clock = systemClock, ...parts }: WebhooksParts) {
    this.#log = parts.log
    this.#endpoints = targetsOf(options).map(target => new WebhookEndpoint({ ...parts, target, clock }))
    this.#unlisten = this.#endpoints.map(endpoint => listenToEvents(events, parts.node, endpoint.target.types, event => endpoint.put(event)))
  }

  /** Begins to send. One timer serves all retries, timeouts and checks. */
  start (): void {
    for (const endpoint of this.#endpoints) endpoint.wake()
    this.#timer = setInterval(() => this.tick(), TICK_INTERVAL_MS).unref()
  }

  tick (): void {
    for (const endpoint of this.#endpoints) endpoint.tick()
  }

  /** The mailbox has ended an event. False: its endpoint is not among those of this node. */
  expired ({ deviceId, receipt }: ExpiredLetter): boolean {
    const endpoint = this.#endpoints.find(({ target }) => WEBHOOK_PREFIX + target.name === deviceId)
    endpoint?.expired(receipt)
    return endpoint !== undefined
  }

  report (): Promise<WebhookReport[]> {
    return Promise.all(this.#endpoints.map(endpoint => endpoint.report()))
  }

  async close (): Promise<void> {
    clearInterval(this.#timer)
    for (const unlisten of this.#unlisten) unlisten()
    const closed = Promise.all(this.#endpoints.map(endpoint => endpoint.close()))
    try {
      await withDeadline(closed, CLOSE_TIMEOUT_MS, () => new Error('webhooks did not close in time'))
    } catch (error) {
      this.#log.warn({ err: error }, 'webhook events may be lost')
    }
  }
}
