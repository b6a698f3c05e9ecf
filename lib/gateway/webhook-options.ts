import { Type } from '@sinclair/typebox'
import type { EventMap } from '../messaging/events.ts'

/** The options of one endpoint that gets events. */
export interface WebhookOptions {
  /** Where events are posted: an `http:` or `https:` URL. */
  url: string
  /** Signs the requests: base64 of 24 to 64 bytes, with or without the prefix `whsec_`. Each secret of a list signs, so that secrets can be rotated. */
  secret: string | string[]
  /** Types of events that are sent; all except `message` by default. */
  types?: Array<keyof EventMap> | undefined
  /** Names the queue of the endpoint; derived from `url` by default. */
  name?: string | undefined
}

/** Documents `WebhookOptions`, and checks their types. What URLs, secrets and types may be is checked where they are decoded. */
export const WebhookOptionsSchema = Type.Object({
  url: Type.String({ description: 'Where events are posted: an `http:` or `https:` URL' }),
  secret: Type.Union([Type.String(), Type.Array(Type.String(), { minItems: 1 })], {
    description: 'Signs the requests: base64 of 24 to 64 bytes, with or without the prefix `whsec_`. Each secret of a list signs, so that secrets can be rotated'
  }),
  types: Type.Optional(Type.Unsafe<Array<keyof EventMap>>(Type.Array(Type.String(), { minItems: 1, description: 'Types of events that are sent; all except `message` by default' }))),
  name: Type.Optional(Type.String({ pattern: '^[A-Za-z0-9._-]{1,64}$', description: 'Names the queue of the endpoint; derived from `url` by default' }))
}, { additionalProperties: false })

/** The type of an event, a device, and when something happened to it. */
interface WebhookIncident {
  /** The id of the event, which the endpoint gets as `webhook-id`. */
  id: string
  type: string
  deviceId: string
  /** Milliseconds since 1970. */
  at: number
}

/** What the sender of an endpoint knows. Counters begin when the sender takes the endpoint over. */
export interface WebhookStatus {
  /** `paused`: the endpoint asked for it, or it seems to be down; `disabled`: it answered 410; `no-sender`: no node sends at present. */
  state: 'sending' | 'paused' | 'disabled' | 'no-sender'
  /** The node that sends. */
  node?: string
  /** Requests in flight. */
  inFlight: number
  /** Events that the endpoint has accepted. */
  sent: number
  /** Events that were given up after a day. */
  deadLettered: number
  lastFailure?: WebhookIncident & { reason: string }
  lastDeadLetter?: WebhookIncident
  /** When the next request is made that waits for a retry or for the end of a pause; milliseconds since 1970. */
  nextAttempt?: number
}

/** An endpoint, as `webhooks()` describes it. Secrets and what a URL may contain of them are left out. */
export interface WebhookReport extends WebhookStatus {
  name: string
  /** Without credentials and query. */
  url: string
  types: Array<keyof EventMap>
  /** Events in the queue. */
  waiting: number
  /** Events of this node that were not stored. */
  dropped: number
}
