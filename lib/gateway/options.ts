import { Type, type Static, type TObject } from '@sinclair/typebox'
import { Value } from '@sinclair/typebox/value'
import type { FastifyRequest } from 'fastify'
import type { Backplane } from '../cluster/backplane.ts'
import type { AuthorizeTopic } from './builtins.ts'
import type { Transport } from './transport.ts'
import type { Origins } from './access.ts'
import type { Authenticate } from './connect-request.ts'
import type { Mailbox } from '../storage/mailbox.ts'
import type { Codec } from '../protocol/message.ts'
import { isThenable, MAX_TIMER_MS } from '../protocol/peer.ts'

/** Whether this request may use REST. */
export type Guard = (request: FastifyRequest) => boolean | Promise<boolean>

const Fn = <T>(description: string) => Type.Unsafe<T>(Type.Function([], Type.Unknown(), { description }))
const FnOrFalse = <T>(description: string) => Type.Unsafe<T | false>(Type.Union([Type.Literal(false), Type.Function([], Type.Unknown())], { description }))
export const Part = <T>(description: string) => Type.Unsafe<T>(Type.Object({}, { description, additionalProperties: true }))
export const Count = (value: number, description: string, minimum = 1) => Type.Integer({ default: value, minimum, description })
export const Milliseconds = (value: number, description: string, minimum = 1) => Type.Integer({ default: value, minimum, maximum: MAX_TIMER_MS, description })

/** Every option: its default, its limit, its one-line doc. Durations are in milliseconds, sizes in bytes. */
export const OptionsSchema = Type.Object({
  prefix: Type.String({ default: '', description: 'Put before every route' }),
  path: Type.String({ default: '/ws', pattern: '^/.*[^/]$', description: 'Where devices connect' }),
  transports: Type.Array(Part<Transport>('A transport'), { default: [], description: 'Further ways in, as `tcp({ port: 4000 })`' }),
  node: Type.Optional(Type.String({ pattern: '^[A-Za-z0-9_-]{1,64}$', description: 'Name of this node; by default drawn at start' })),

  authenticate: Type.Optional(FnOrFalse<Authenticate>('Who is this device; `false` lets every device in. Without it: only from this machine')),
  guard: Type.Optional(FnOrFalse<Guard>('Who may use REST; `false` lets everyone. Without it: only from this machine')),
  authorizeTopic: Type.Optional(Fn<AuthorizeTopic>('Which topics a device may subscribe or publish to; without it none, once `authenticate` is a function')),
  origins: Type.Unsafe<Origins>(Type.Union([Type.Array(Type.String({ pattern: '^[a-z][a-z0-9+.-]*://[^/]+$' })), Type.Function([], Type.Unknown())], {
    default: [],
    description: 'Foreign origins that browsers may come from, as `https://host:port`, or a function that says so of each'
  })),
  admissionTimeout: Milliseconds(5_000, 'Time for the handshake: for `authenticate`, and over TCP for the first line'),

  mailbox: Type.Optional(Part<Mailbox>('Keeps letters; by default in memory')),
  backplane: Type.Optional(Part<Backplane>('Joins nodes; by default this process alone')),
  codecs: Type.Optional(Type.Array(Part<Codec>('A wire protocol'), { minItems: 1, description: 'Wire protocols; the first is for devices that offer none. By default JSON-RPC' })),

  maxMessage: Count(65_536, 'Size of an inbound message, from a device or over REST'),
  maxFragments: Count(64, 'Fragments of an inbound message'),
  compression: Type.Union([Type.Literal(false), Type.Object({ threshold: Type.Integer({ minimum: 0 }) }, { additionalProperties: false })], {
    default: false,
    description: 'Over WebSocket: `{ threshold: 1_024 }` compresses messages of so many bytes and more. What comes is inflated to `maxMessage` at most'
  }),
  maxDepth: Count(32, 'Nesting of JSON'),
  maxBatch: Count(20, 'Messages in a batch'),
  maxCalls: Count(32, 'Calls in flight per device, in each direction'),
  maxTopics: Count(128, 'Topics per device'),
  maxTopicLength: Count(255, 'Characters of a topic'),
  maxTopicLevels: Count(16, 'Levels of a topic'),
  maxBuffered: Count(1_048_576, 'Output that may wait for a device', 4_096),
  stallTimeout: Milliseconds(10_000, 'How long output may wait without progress', 100),
  rate: Count(100, 'Messages a second from a device'),
  burst: Count(200, 'Messages at once from a device'),

  pingInterval: Milliseconds(25_000, 'Time between pings, give or take a tenth'),
  pongTimeout: Milliseconds(10_000, 'Time to answer a ping'),
  callTimeout: Milliseconds(10_000, 'Time for a device to answer, where the caller names none'),
  maxTimeout: Milliseconds(300_000, 'The longest a REST caller may wait'),

  maxTtl: Milliseconds(604_800_000, 'The longest a message may wait for its device'),
  maxLetters: Count(1_000, 'Letters that may wait per device'),
  maxLetterBytes: Count(1_048_576, 'Size of all letters that wait for a device'),
  maxInFlight: Count(32, 'Letters on their way to a device at a time'),
  attempts: Count(5, 'Connections that may end without an acknowledgement, or internal errors of the device, before a letter is dead-lettered'),
  maxKeys: Count(10_000, 'Idempotency keys remembered'),
  keyTtl: Milliseconds(86_400_000, 'How long an idempotency key is remembered'),

  closeTimeout: Milliseconds(2_000, 'Time for a device to answer a close frame'),
  drainTimeout: Milliseconds(8_000, 'Time for `app.close()`; less than the `pluginTimeout` of Fastify'),
  retrySpread: Milliseconds(10_000, 'Devices of a leaving node are told to come back within this time')
}, { additionalProperties: false })

export type Settings = Static<typeof OptionsSchema>
export type Options = { [Name in Exclude<keyof Settings, 'prefix'>]?: Settings[Name] | undefined } & { prefix?: string }

/** Those of the plugin, as it takes them. */
export function settingsOf (options: object): Settings {
  return complete('fastify-devices', OptionsSchema, options)
}

/** Options with their defaults; a wrong one throws and is named. */
export function complete<S extends TObject> (owner: string, schema: S, options: object): Static<S> {
  const given = Object.entries(options).filter(([, value]) => value !== undefined)
  const late = given.find(([, value]) => isThenable(value))
  if (late) throw new Error(`${owner}: the option "${late[0]}" is a promise: await it`)
  const completed = { ...Value.Create(schema), ...Object.fromEntries(given) }
  const error = Value.Errors(schema, completed).First()
  if (!error) return completed
  const name = error.path.slice(1).split('/')[0]!
  const option = Object.hasOwn(schema.properties, name) ? schema.properties[name] : undefined
  if (!option) throw new Error(`${owner} has no option "${name}"`)
  throw new Error(`${owner}: the option "${name}" is wrong: ${error.message} (${option.description})`)
}
