import { createHash, createSecretKey, type KeyObject } from 'node:crypto'
import type { WebhookOptions } from '../../gateway/webhook-options.ts'
import { eventTypes, type EventType } from '../device-event.ts'

/** An endpoint as configured, with its secrets decoded. */
export interface WebhookTarget {
  name: string
  url: URL
  /** Without credentials and query. */
  publicUrl: string
  keys: KeyObject[]
  types: EventType[]
}

/** A `message` is personal, and listening to it changes how devices are answered, so an application must ask for it. */
const DEFAULT_TYPES = eventTypes.filter(type => type !== 'message')
const SECRET_PREFIX = 'whsec_'
const [MIN_KEY_BYTES, MAX_KEY_BYTES] = [24, 64]
const BASE64 = /^[A-Za-z0-9+/]+={0,2}$/
const MAX_HOST_LENGTH = 48
const DIGEST_LENGTH = 12

/** Throws an error that names what is wrong, but no secret. */
export function targetsOf (options: WebhookOptions[]): WebhookTarget[] {
  const targets = options.map(targetOf)
  const names = targets.map(({ name }) => name)
  const repeated = names.find((name, at) => names.indexOf(name) !== at)
  if (repeated !== undefined) throw wrong(`two endpoints have the name "${repeated}"`)
  return targets
}

function targetOf ({ url: text, secret, types = DEFAULT_TYPES, name }: WebhookOptions, at: number): WebhookTarget {
  const url = URL.canParse(text) ? new URL(text) : undefined
  if (!url || !/^https?:$/.test(url.protocol)) throw wrong(`[${at}].url must be an http or https URL`)
  if (!isDecodable(url.username + url.password)) throw wrong(`[${at}].url has credentials that are not percent-encoded`)
  const unknown = types.find(type => !eventTypes.includes(type))
  if (unknown !== undefined) throw wrong(`[${at}].types: there is no event "${unknown}"`)
  const keys = [secret].flat().map(one => keyOf(one, at))
  return { name: name ?? nameOf(url), url, publicUrl: url.origin + url.pathname, keys, types: [...new Set(types)] }
}

/** What Node does with credentials before each request. */
function isDecodable (text: string): boolean {
  try {
    return decodeURIComponent(text) !== undefined
  } catch {
    return false
  }
}

function keyOf (secret: string, at: number): KeyObject {
  const encoded = secret.startsWith(SECRET_PREFIX) ? secret.slice(SECRET_PREFIX.length) : secret
  const bytes = BASE64.test(encoded) ? Buffer.from(encoded, 'base64') : Buffer.alloc(0)
  if (bytes.length < MIN_KEY_BYTES || bytes.length > MAX_KEY_BYTES) throw wrong(`[${at}].secret must be base64 of ${MIN_KEY_BYTES} to ${MAX_KEY_BYTES} bytes`)
  return createSecretKey(bytes)
}

/** The same after a restart, and with other credentials. */
function nameOf ({ hostname, origin, pathname, search }: URL): string {
  const digest = createHash('sha256').update(origin + pathname + search).digest('base64url').slice(0, DIGEST_LENGTH)
  return `${hostname.replaceAll(/[^A-Za-z0-9.-]/g, '-').slice(0, MAX_HOST_LENGTH)}-${digest}`
}

function wrong (what: string): Error {
  return new Error(`fastify-devices: the option "webhooks" is wrong: ${what}`)
}
