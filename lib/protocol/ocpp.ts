import { reasons, type Detail, type ParamsFlaw, type Reason } from './errors.ts'
import { isSafeJson } from './safe-json.ts'
import type { Codec, FailureMessage, Id, Message, NamedCall } from './message.ts'
import { payloadOf, fromBase64, invalid, isJsonObject, toBase64, type JsonObject } from './payload.ts'

export type OcppVersion = 'ocpp1.6' | 'ocpp2.0.1' | 'ocpp2.1'

export interface OcppOptions {
  /** Where chargers connect: `ws://host/ocpp/CP001`. */
  path?: string
  versions?: OcppVersion[]
  /** How deep a message may be nested. */
  depth?: number
}

/** What differs between the versions. */
interface Dialect {
  /** The names of errors that it knows, by those of all versions. */
  readonly spelling: ReadonlyMap<unknown, string>
  /** The id in an error about a message whose own cannot be read; without one, there is no such error. */
  readonly nobody: string | undefined
  /** Whether a message type that is not known is told so. */
  readonly tellsUnknownTypes: boolean
  /** Whether there are messages that get no answer, and errors about answers. */
  readonly hasSend: boolean
}

const CALL = 2
const CALLRESULT = 3
const CALLERROR = 4
const CALLRESULTERROR = 5
const SEND = 6

const MAX_ID_LENGTH = 36
const MAX_TOLD_ID_LENGTH = 255
const MAX_DESCRIPTION = 255

const names = [
  'FormatViolation', 'GenericError', 'InternalError', 'MessageTypeNotSupported', 'NotImplemented', 'NotSupported', 'OccurrenceConstraintViolation',
  'PropertyConstraintViolation', 'ProtocolError', 'RpcFrameworkError', 'SecurityError', 'TypeConstraintViolation'
].map(name => [name, name] as const)

// 1.6 misspells two of them, and its errata leave it so
const second: Dialect = {
  spelling: new Map([...names, ['FormationViolation', 'FormatViolation'], ['OccurenceConstraintViolation', 'OccurrenceConstraintViolation']]),
  nobody: '-1',
  tellsUnknownTypes: false,
  hasSend: false
}

const dialects: Record<OcppVersion, Dialect> = {
  'ocpp1.6': {
    spelling: new Map([
      ...names,
      ...['FormatViolation', 'FormationViolation', 'RpcFrameworkError'].map(name => [name, 'FormationViolation'] as const),
      ...['OccurrenceConstraintViolation', 'OccurenceConstraintViolation'].map(name => [name, 'OccurenceConstraintViolation'] as const),
      ['MessageTypeNotSupported', 'NotSupported']
    ]),
    nobody: undefined,
    tellsUnknownTypes: false,
    hasSend: false
  },
  'ocpp2.0.1': { ...second, tellsUnknownTypes: true },
  'ocpp2.1': { ...second, hasSend: true }
}

const nameOf: Partial<Record<Reason, string>> = {
  unreadable: 'RpcFrameworkError',
  malformed: 'RpcFrameworkError',
  'unknown-method': 'NotImplemented',
  'bad-params': 'FormatViolation',
  internal: 'InternalError',
  forbidden: 'SecurityError',
  unauthenticated: 'SecurityError'
}

const nameOfFlaw: Record<ParamsFlaw, string> = {
  occurrence: 'OccurrenceConstraintViolation',
  type: 'TypeConstraintViolation',
  value: 'PropertyConstraintViolation'
}

const unknown = new Set(['NotImplemented', 'NotSupported'])
const utf8 = new TextDecoder('utf-8', { fatal: true })

const badPayload: Detail = { code: 'FormatViolation', message: 'The payload is a JSON object, not nested too deep' }
const longId: Detail = { code: 'RpcFrameworkError', message: `A message id has at most ${MAX_ID_LENGTH} characters` }
const unknownType: Detail = { code: 'MessageTypeNotSupported', message: 'This message type is not known' }

/** OCPP-J, one codec a version: `codecs: [jsonrpc(), ...ocpp()]`. */
export function ocpp ({ path = '/ocpp', versions = ['ocpp2.1', 'ocpp2.0.1', 'ocpp1.6'], depth = 32 }: OcppOptions = {}): Codec[] {
  return versions.map(version => speaking(version, { path, depth }))
}

function speaking (subprotocol: OcppVersion, { path, depth }: { path: string, depth: number }): Codec {
  const { spelling, nobody, tellsUnknownTypes, hasSend } = dialects[subprotocol]

  function decode (frame: string | Uint8Array): Message {
    if (frame.length === 0) return invalid('answer-invalid') // the heartbeat of some
    const parts = parse(frame)
    if (parts === undefined) return invalid('unreadable')
    if (!Array.isArray(parts)) return invalid('malformed')
    return fromBase64(decodeParts(parts, isSafeJson(parts, depth)))
  }

  function decodeParts ([type, id, ...rest]: unknown[], sound: boolean): Message {
    const known = typeof id === 'string' && id.length <= MAX_TOLD_ID_LENGTH ? id : null
    if (type === CALL) return toCall(known, rest, sound)
    if (type === CALLRESULT) return toResult(known, rest, sound)
    if (type === CALLERROR) return toFailure(known === nobody ? null : known, rest, sound)
    if (type === SEND && hasSend) return toNotice(known, rest, sound)
    if (type === CALLRESULTERROR && hasSend) return toFailure(null, rest, sound) // about an answer of ours: no call of ours has failed
    if (!Number.isInteger(type)) return invalid('malformed', known)
    return tellsUnknownTypes ? { ...invalid('malformed', known), detail: unknownType } : invalid('answer-invalid')
  }

  function encode (message: Message | Message[]): string | undefined {
    if (Array.isArray(message)) throw new TypeError('OCPP knows no batches')
    const parts = toParts(toBase64(message))
    return parts && JSON.stringify(parts)
  }

  function toParts (message: Message): unknown[] | undefined {
    switch (message.kind) {
      case 'call': return [CALL, String(message.id), message.method, objectPayload(message)]
      case 'notice': return hasSend ? [SEND, mint(), message.method, objectPayload(message)] : undefined
      case 'result': return [CALLRESULT, String(message.id), objectPayload(message)]
      case 'failure': return toError(message)
      case 'invalid': return toError({ ...message, kind: 'failure' })
    }
  }

  function toError ({ id, reason, detail, flaw }: FailureMessage): unknown[] | undefined {
    // an error about a message without an id; where that was a SEND, it gets no answer
    const to = id === null ? (reason === 'unreadable' || reason === 'malformed') ? nobody : undefined : String(id)
    if (to === undefined) return undefined
    const name = spelling.get(detail?.code) ?? spelling.get(flaw ? nameOfFlaw[flaw] : nameOf[reason]) ?? 'GenericError'
    return [CALLERROR, to, name, (detail ?? reasons[reason]).message.slice(0, MAX_DESCRIPTION), detailsOf(detail)]
  }

  return { subprotocol, concurrency: 1, path, decode, encode, mint, callOf }
}

function parse (frame: string | Uint8Array): unknown {
  try {
    return JSON.parse(typeof frame === 'string' ? frame : utf8.decode(frame))
  } catch {
    return undefined
  }
}

function toCall (id: string | null, rest: unknown[], sound: boolean): Message {
  if (id === null) return invalid('malformed')
  if (id.length > MAX_ID_LENGTH) return { ...invalid('malformed', id), detail: longId }
  const [method, payload] = rest
  if (typeof method !== 'string' || rest.length !== 2) return invalid('malformed', id)
  const params = membersOf(payload)
  return params && sound ? { kind: 'call', id, method, params } : { ...invalid('malformed', id), detail: badPayload }
}

/** One that is wrong gets no answer either. */
function toNotice (id: string | null, rest: unknown[], sound: boolean): Message {
  const call = fromBase64(toCall(id, rest, sound))
  return call.kind === 'call' ? { kind: 'notice', method: call.method, params: call.params } : invalid('answer-invalid')
}

function toResult (id: string | null, rest: unknown[], sound: boolean): Message {
  const result = membersOf(rest[0])
  if (id === null || !result || !sound || rest.length !== 1) return invalid('answer-invalid', id)
  return { kind: 'result', id, result }
}

/** Some leave the description out, or the details. */
function toFailure (id: Id | null, rest: unknown[], sound: boolean): Message {
  const [code, words, data] = rest
  const message = words ?? ''
  if (typeof code !== 'string' || typeof message !== 'string' || !sound) return invalid('answer-invalid', id)
  const isEmpty = data === undefined || data === null || (isJsonObject(data) && Object.keys(data).length === 0)
  return { kind: 'failure', id, reason: unknown.has(code) ? 'unknown-method' : 'refused', detail: isEmpty ? { code, message } : { code, message, data } }
}

/** No payload is `null` or an empty object. */
function membersOf (payload: unknown): JsonObject | undefined {
  if (payload === null) return {}
  return isJsonObject(payload) ? payload : undefined
}

function objectPayload (message: Message): JsonObject {
  const payload = membersOf(payloadOf(message) ?? null)
  if (!payload) throw new TypeError('the payload of OCPP is an object')
  return payload
}

function detailsOf (detail: Detail | undefined): JsonObject {
  if (detail?.data === undefined) return {}
  return isJsonObject(detail.data) ? detail.data : { data: detail.data }
}

/** Never comes again, on this connection or the next. */
function mint (): string {
  return crypto.randomUUID()
}

/** `{ method, params? }` and nothing else: a name that is misspelt must not be taken for none. */
function callOf (data: unknown): NamedCall | undefined {
  if (!isJsonObject(data)) return undefined
  const { method, params = {}, ...rest } = data
  if (typeof method !== 'string' || method === '' || !isJsonObject(params) || Object.keys(rest).length > 0) return undefined
  return { method, params }
}
