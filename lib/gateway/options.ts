import { Type, type Static, type TObject } from '@sinclair/typebox'
import { Value } from '@sinclair/typebox/value'
import type { FastifyRequest, LogLevel, RegisterOptions } from 'fastify'
import type { Backplane } from '../cluster/backplane.ts'
import type { Authorize } from './authorize.ts'
import type { AuthorizeTopic } from './builtins.ts'
import type { Transport } from './transport.ts'
import type { Origins } from './origins.ts'
import type { Authenticate } from './connect-request.ts'
import type { Contract } from '../protocol/contract.ts'
import type { Mailbox } from '../storage/mailbox.ts'
import { WebhookOptionsSchema, type WebhookOptions } from './webhook-options.ts'
import type { Codec } from '../protocol/message.ts'
import { isThenable, MAX_TIMER_MS } from '../protocol/peer.ts'

/** Decides whether a request may use REST. Returns who the caller is, or `true` to admit it without saying so. Any other result, or an error, refuses it. */
export type Guard = (request: FastifyRequest) => boolean | object | null | undefined | Promise<boolean | object | null | undefined>

const Fn = <T>(description: string) => Type.Unsafe<T>(Type.Function([], Type.Unknown(), { description }))
const FnOrFalse = <T>(description: string) => Type.Unsafe<T | false>(Type.Union([Type.Literal(false), Type.Function([], Type.Unknown())], { description }))
export const Part = <T>(description: string) => Type.Unsafe<T>(Type.Object({}, { description, additionalProperties: true }))
export const Count = (value: number, description: string, minimum = 1) => Type.Integer({ default: value, minimum, description })
export const Milliseconds = (value: number, description: string, minimum = 1) => Type.Integer({ default: value, minimum, maximum: MAX_TIMER_MS, description })

/** The options of the plugin, each with its default, its limits and a description. `Options` says the same to editors. */
export const OptionsSchema = Type.Object({
  prefix: Type.String({ default: '', description: 'Prefix of every route' }),
  logLevel: Type.Optional(Type.Unsafe<LogLevel>(Type.String({ description: 'Log level of the plugin and of its routes, an option of every Fastify plugin' }))),
  logSerializers: Type.Optional(Part<Record<string, (value: any) => string>>('Log serializers of the routes, an option of every Fastify plugin')),
  rest: Type.Boolean({ default: true, description: 'Adds the REST routes' }),
  path: Type.String({ default: '/ws', pattern: '^/.*[^/]$', description: 'Path where devices connect' }),
  transports: Type.Array(Part<Transport>('A transport'), { default: [], description: 'Transports in addition to WebSocket, such as `tcp({ port: 4000 })`' }),
  node: Type.Optional(Type.String({ pattern: '^[A-Za-z0-9_-]{1,64}$', description: 'Name of this node; random by default' })),

  authenticate: Type.Optional(FnOrFalse<Authenticate>('Decides which devices may connect; `false` admits all. Without it, only this machine may connect')),
  guard: Type.Optional(FnOrFalse<Guard>('Decides who may use REST; `false` admits everyone. Without it, only this machine may use REST')),
  authorize: Type.Optional(Fn<Authorize>('Decides what a caller may do over REST. Without it, every REST caller may do everything')),
  authorizeTopic: Type.Optional(Fn<AuthorizeTopic>('Decides which topics a device may subscribe or publish to. Without it: none if `authenticate` is a function, otherwise all')),
  origins: Type.Unsafe<Origins>(Type.Union([Type.Array(Type.String({ pattern: '^[a-z][a-z0-9+.-]*://[^/]+$' })), Type.Function([], Type.Unknown())], {
    default: [],
    description: 'Foreign origins whose pages may connect: a list of `https://host:port`, or a function that decides'
  })),
  admissionTimeout: Milliseconds(5_000, 'Time limit for `authenticate`, and over TCP also for the first line to arrive'),

  mailbox: Type.Optional(Part<Mailbox>('Keeps letters; in memory by default')),
  backplane: Type.Optional(Part<Backplane>('Connects this node to other nodes. Without it, there is only this node')),
  codecs: Type.Optional(Type.Array(Part<Codec>('A wire protocol'), { minItems: 1, description: 'Wire protocols, chosen by subprotocol. A device that offers no subprotocol gets the first codec of the list. JSON-RPC by default' })),
  contract: Type.Optional(Part<Contract>('What devices and the server may say to each other; checked in both directions')),
  webhooks: Type.Optional(Type.Array(Type.Unsafe<WebhookOptions>(WebhookOptionsSchema), { description: 'HTTP endpoints that get events of devices and letters: a list of `{ url, secret, types, name }`' })),

  maxMessage: Count(65_536, 'Maximum size of an inbound message, from a device or over REST'),
  maxFragments: Count(64, 'Maximum number of fragments of an inbound message'),
  compression: Type.Union([Type.Literal(false), Type.Object({ threshold: Type.Integer({ minimum: 0 }) }, { additionalProperties: false })], {
    default: false,
    description: 'Over WebSocket, `{ threshold: 1_024 }` compresses messages of at least that size. Inbound messages are inflated to `maxMessage` at most'
  }),
  maxDepth: Count(32, 'Maximum nesting of JSON'),
  maxBatch: Count(20, 'Maximum number of messages in a batch'),
  maxCalls: Count(32, 'Maximum number of calls in flight per device, in each direction'),
  maxTopics: Count(128, 'Maximum number of topics per device'),
  maxTopicLength: Count(255, 'Maximum length of a topic, in characters'),
  maxTopicLevels: Count(16, 'Maximum number of levels of a topic'),
  maxBuffered: Count(1_048_576, 'Maximum size of the output that waits for a device. Above it, sends fail, and any other output ends the connection', 4_096),
  stallTimeout: Milliseconds(10_000, 'How long output may wait while the device reads nothing; then the connection ends', 100),
  rate: Count(100, 'Messages per second that a device may send'),
  burst: Count(200, 'Messages that a device may send at once'),

  pingInterval: Milliseconds(25_000, 'Interval between pings, plus or minus a tenth'),
  pongTimeout: Milliseconds(10_000, 'Time limit for the answer to a ping'),
  callTimeout: Milliseconds(10_000, 'Time limit for the answer of a device, unless the caller sets one'),
  maxTimeout: Milliseconds(300_000, 'Longest `timeout` that a REST caller may set'),

  maxTtl: Milliseconds(604_800_000, 'Longest time that a letter may wait for its device'),
  maxLetters: Count(1_000, 'Maximum number of letters that wait for a device'),
  maxLetterBytes: Count(1_048_576, 'Maximum size of all letters that wait for a device'),
  maxInFlight: Count(32, 'Maximum number of letters in flight to a device'),
  attempts: Count(5, 'Number of failed deliveries after which a letter is dead-lettered; a delivery fails if the connection closes or the device answers with an internal error'),
  maxKeys: Count(10_000, 'Maximum number of idempotency keys remembered'),
  keyTtl: Milliseconds(86_400_000, 'How long an idempotency key is remembered'),

  closeTimeout: Milliseconds(2_000, 'Time limit for the answer of a device to a close frame'),
  drainTimeout: Milliseconds(8_000, 'Time limit of `app.close()`; must be less than the `pluginTimeout` of Fastify'),
  retrySpread: Milliseconds(10_000, 'Devices of a closing node reconnect at random moments within this time')
}, { additionalProperties: false })

/** The options of the plugin. Durations are in milliseconds, sizes in bytes. */
export interface Options {
  /**
   * Prefix of every route.
   * @default ''
   */
  prefix?: string
  /** Log level of the plugin and of its routes, an option of every Fastify plugin. */
  logLevel?: LogLevel
  /** Log serializers of the routes, an option of every Fastify plugin. */
  logSerializers?: Record<string, (value: any) => string>
  /**
   * Adds the REST routes.
   * @default true
   */
  rest?: boolean | undefined
  /**
   * Path where devices connect.
   * @default '/ws'
   */
  path?: string | undefined
  /**
   * Transports in addition to WebSocket, such as `tcp({ port: 4000 })`.
   * @default []
   */
  transports?: Transport[] | undefined
  /** Name of this node; random by default. */
  node?: string | undefined
  /** Decides which devices may connect; `false` admits all. Without it, only this machine may connect. */
  authenticate?: Authenticate | false | undefined
  /** Decides who may use REST; `false` admits everyone. Without it, only this machine may use REST. */
  guard?: Guard | false | undefined
  /** Decides what a caller may do over REST. Without it, every REST caller may do everything. */
  authorize?: Authorize | undefined
  /** Decides which topics a device may subscribe or publish to. Without it: none if `authenticate` is a function, otherwise all. */
  authorizeTopic?: AuthorizeTopic | undefined
  /**
   * Foreign origins whose pages may connect: a list of `https://host:port`, or a function that decides.
   * @default []
   */
  origins?: Origins | undefined
  /**
   * Time limit for `authenticate`, and over TCP also for the first line to arrive.
   * @default 5_000
   */
  admissionTimeout?: number | undefined
  /** Keeps letters; in memory by default. */
  mailbox?: Mailbox | undefined
  /** Connects this node to other nodes. Without it, there is only this node. */
  backplane?: Backplane | undefined
  /** Wire protocols, chosen by subprotocol. A device that offers no subprotocol gets the first codec of the list. JSON-RPC by default. */
  codecs?: Codec[] | undefined
  /** What devices and the server may say to each other; checked in both directions. */
  contract?: Contract | undefined
  /** HTTP endpoints that get events of devices and letters: a list of `{ url, secret, types, name }`. */
  webhooks?: WebhookOptions[] | undefined
  /**
   * Maximum size of an inbound message, from a device or over REST.
   * @default 65_536
   */
  maxMessage?: number | undefined
  /**
   * Maximum number of fragments of an inbound message.
   * @default 64
   */
  maxFragments?: number | undefined
  /**
   * Over WebSocket, `{ threshold: 1_024 }` compresses messages of at least that size. Inbound messages are inflated to `maxMessage` at most.
   * @default false
   */
  compression?: false | { threshold: number } | undefined
  /**
   * Maximum nesting of JSON.
   * @default 32
   */
  maxDepth?: number | undefined
  /**
   * Maximum number of messages in a batch.
   * @default 20
   */
  maxBatch?: number | undefined
  /**
   * Maximum number of calls in flight per device, in each direction.
   * @default 32
   */
  maxCalls?: number | undefined
  /**
   * Maximum number of topics per device.
   * @default 128
   */
  maxTopics?: number | undefined
  /**
   * Maximum length of a topic, in characters.
   * @default 255
   */
  maxTopicLength?: number | undefined
  /**
   * Maximum number of levels of a topic.
   * @default 16
   */
  maxTopicLevels?: number | undefined
  /**
   * Maximum size of the output that waits for a device. Above it, sends fail, and any other output ends the connection.
   * @default 1_048_576
   */
  maxBuffered?: number | undefined
  /**
   * How long output may wait while the device reads nothing; then the connection ends.
   * @default 10_000
   */
  stallTimeout?: number | undefined
  /**
   * Messages per second that a device may send.
   * @default 100
   */
  rate?: number | undefined
  /**
   * Messages that a device may send at once.
   * @default 200
   */
  burst?: number | undefined
  /**
   * Interval between pings, plus or minus a tenth.
   * @default 25_000
   */
  pingInterval?: number | undefined
  /**
   * Time limit for the answer to a ping.
   * @default 10_000
   */
  pongTimeout?: number | undefined
  /**
   * Time limit for the answer of a device, unless the caller sets one.
   * @default 10_000
   */
  callTimeout?: number | undefined
  /**
   * Longest `timeout` that a REST caller may set.
   * @default 300_000
   */
  maxTimeout?: number | undefined
  /**
   * Longest time that a letter may wait for its device.
   * @default 604_800_000
   */
  maxTtl?: number | undefined
  /**
   * Maximum number of letters that wait for a device.
   * @default 1_000
   */
  maxLetters?: number | undefined
  /**
   * Maximum size of all letters that wait for a device.
   * @default 1_048_576
   */
  maxLetterBytes?: number | undefined
  /**
   * Maximum number of letters in flight to a device.
   * @default 32
   */
  maxInFlight?: number | undefined
  /**
   * Number of failed deliveries after which a letter is dead-lettered; a delivery fails if the connection closes or the device answers with an internal error.
   * @default 5
   */
  attempts?: number | undefined
  /**
   * Maximum number of idempotency keys remembered.
   * @default 10_000
   */
  maxKeys?: number | undefined
  /**
   * How long an idempotency key is remembered.
   * @default 86_400_000
   */
  keyTtl?: number | undefined
  /**
   * Time limit for the answer of a device to a close frame.
   * @default 2_000
   */
  closeTimeout?: number | undefined
  /**
   * Time limit of `app.close()`; must be less than the `pluginTimeout` of Fastify.
   * @default 8_000
   */
  drainTimeout?: number | undefined
  /**
   * Devices of a closing node reconnect at random moments within this time.
   * @default 10_000
   */
  retrySpread?: number | undefined
}

export type Settings = Static<typeof OptionsSchema>

/** The options of the plugin, completed with their defaults. */
export function settingsOf (options: object): Settings {
  return complete('fastify-devices', OptionsSchema, options)
}

/** Adds the defaults; throws an error that names the first unknown or wrong option. */
export function complete<S extends TObject> (owner: string, schema: S, options: object): Static<S> {
  const given = Object.entries(options).filter(([, value]) => value !== undefined)
  const pending = given.find(([, value]) => isThenable(value))
  if (pending) throw new Error(`${owner}: the option "${pending[0]}" is a promise: await it`)
  const completed = { ...Value.Create(schema), ...Object.fromEntries(given) }
  const error = Value.Errors(schema, completed).First()
  if (!error) return completed
  const name = error.path.slice(1).split('/')[0]!
  const option = Object.hasOwn(schema.properties, name) ? schema.properties[name] : undefined
  if (!option) throw new Error(`${owner} has no option "${name}"`)
  throw new Error(`${owner}: the option "${name}" is wrong: ${error.message} (${option.description})`)
}

/** The options that Fastify itself understands where routes are registered. */
export function registerOptions ({ prefix, logLevel, logSerializers }: Pick<Settings, 'prefix' | 'logLevel' | 'logSerializers'>): RegisterOptions {
  return { prefix, ...(logLevel && { logLevel }), ...(logSerializers && { logSerializers }) }
}
