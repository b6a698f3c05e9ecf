import { reasons, type Detail, type ParamsFlaw, type Reason } from './errors.ts'
import { isSafeJson } from './safe-json.ts'
import type { Codec, FailureMessage, Id, Message, NamedCall } from './message.ts'
import { payloadOf, fromBase64, invalid, isJsonObject, toBase64, type JsonObject } from './payload.ts'

export type OcppVersion = 'ocpp1.6' | 'ocpp2.0.1' | 'ocpp2.1'

export interface OcppOptions {
  /**
   * The URL path where chargers connect, followed by their id: `ws://host/ocpp/CP001`.
   * @default '/ocpp'
   */
  path?: string
  /**
   * The supported versions.
   * @default ['ocpp2.1', 'ocpp2.0.1', 'ocpp1.6']
   */
  versions?: OcppVersion[]
  /**
   * Maximum nesting depth of a message.
   * @default 32
   */
  depth?: number
}

/** The differences between the versions. */
interface Dialect {
  /** Maps the error names of all versions to those of this one. */
  readonly errorNames: ReadonlyMap<unknown, string>
  /** The id in an error about a message whose id cannot be read. Undefined: no such error is sent. */
  readonly unreadableId: string | undefined
  /** Whether an unknown message type is answered with an error. */
  readonly rejectsUnknownTypes: boolean
  /** Whether there are the message types SEND and CALLRESULTERROR. */
  readonly hasSend: boolean
}

const CALL = 2
const CALLRESULT = 3
const CALLERROR = 4
const CALLRESULTERROR = 5
const SEND = 6

const MAX_ID_LENGTH = 36
const MAX_REPLY_ID_LENGTH = 255
const MAX_DESCRIPTION = 255

const standardNames = [
  'FormatViolation', 'GenericError', 'InternalError', 'MessageTypeNotSupported', 'NotImplemented', 'NotSupported', 'OccurrenceConstraintViolation',
  'PropertyConstraintViolation', 'ProtocolError', 'RpcFrameworkError', 'SecurityError', 'TypeConstraintViolation'
].map(name => [name, name] as const)

// 1.6 misspells two of them, and its errata keep the spelling
const ocpp2: Dialect = {
  errorNames: new Map([...standardNames, ['FormationViolation', 'FormatViolation'], ['OccurenceConstraintViolation', 'OccurrenceConstraintViolation']]),
  unreadableId: '-1',
  rejectsUnknownTypes: false,
  hasSend: false
}

const dialects: Record<OcppVersion, Dialect> = {
  'ocpp1.6': {
    errorNames: new Map([
      ...standardNames,
      ...['FormatViolation', 'FormationViolation', 'RpcFrameworkError'].map(name => [name, 'FormationViolation'] as const),
      ...['OccurrenceConstraintViolation', 'OccurenceConstraintViolation'].map(name => [name, 'OccurenceConstraintViolation'] as const),
      ['MessageTypeNotSupported', 'NotSupported']
    ]),
    unreadableId: undefined,
    rejectsUnknownTypes: false,
    hasSend: false
  },
  'ocpp2.0.1': { ...ocpp2, rejectsUnknownTypes: true },
  'ocpp2.1': { ...ocpp2, hasSend: true }
}

const nameOfReason: Partial<Record<Reason, string>> = {
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

const unknownMethodNames = new Set(['NotImplemented', 'NotSupported'])
const utf8 = new TextDecoder('utf-8', { fatal: true })

const invalidPayload: Detail = { code: 'FormatViolation', message: 'The payload is a JSON object, not nested too deep' }
const idTooLong: Detail = { code: 'RpcFrameworkError', message: `A message id has at most ${MAX_ID_LENGTH} characters` }
const unknownType: Detail = { code: 'MessageTypeNotSupported', message: 'This message type is not known' }

/** OCPP-J, with one codec per version: `codecs: [jsonrpc(), ...ocpp()]`. */
export function ocpp ({ path = '/ocpp', versions = ['ocpp2.1', 'ocpp2.0.1', 'ocpp1.6'], depth = 32 }: OcppOptions = {}): Codec[] {
  return versions.map(version => codecFor(version, { path, depth }))
}

function codecFor (subprotocol: OcppVersion, { path, depth }: { path: string, depth: number }): Codec {
  const { errorNames, unreadableId, rejectsUnknownTypes, hasSend } = dialects[subprotocol]

  function decode (frame: string | Uint8Array): Message {
    if (frame.length === 0) return invalid('answer-invalid') // some chargers send empty frames as a heartbeat
    const parts = parse(frame)
    if (parts === undefined) return invalid('unreadable')
    if (!Array.isArray(parts)) return invalid('malformed')
    return fromBase64(decodeParts(parts, isSafeJson(parts, depth)))
  }

  function decodeParts ([type, id, ...rest]: unknown[], isSafe: boolean): Message {
    const knownId = typeof id === 'string' && id.length <= MAX_REPLY_ID_LENGTH ? id : null
    if (type === CALL) return toCall(knownId, rest, isSafe)
    if (type === CALLRESULT) return toResult(knownId, rest, isSafe)
    if (type === CALLERROR) return toFailure(knownId === unreadableId ? null : knownId, rest, isSafe)
    if (type === SEND && hasSend) return toNotice(knownId, rest, isSafe)
    if (type === CALLRESULTERROR && hasSend) return toFailure(null, rest, isSafe) // it is about an answer, so it fails no call
    if (!Number.isInteger(type)) return invalid('malformed', knownId)
    return rejectsUnknownTypes ? { ...invalid('malformed', knownId), detail: unknownType } : invalid('answer-invalid')
  }

  function encode (message: Message | Message[]): string | undefined {
    if (Array.isArray(message)) throw new TypeError('OCPP has no batches')
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
    // without an id only an unreadable message is answered; a SEND gets no answer
    const replyId = id === null ? (reason === 'unreadable' || reason === 'malformed') ? unreadableId : undefined : String(id)
    if (replyId === undefined) return undefined
    const name = errorNames.get(detail?.code) ?? errorNames.get(flaw ? nameOfFlaw[flaw] : nameOfReason[reason]) ?? 'GenericError'
    return [CALLERROR, replyId, name, (detail ?? reasons[reason]).message.slice(0, MAX_DESCRIPTION), detailsOf(detail)]
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

function toCall (id: string | null, rest: unknown[], isSafe: boolean): Message {
  if (id === null) return invalid('malformed')
  if (id.length > MAX_ID_LENGTH) return { ...invalid('malformed', id), detail: idTooLong }
  const [method, payload] = rest
  if (typeof method !== 'string' || rest.length !== 2) return invalid('malformed', id)
  const params = membersOf(payload)
  return params && isSafe ? { kind: 'call', id, method, params } : { ...invalid('malformed', id), detail: invalidPayload }
}

/** An invalid SEND gets no answer either. */
function toNotice (id: string | null, rest: unknown[], isSafe: boolean): Message {
  const call = fromBase64(toCall(id, rest, isSafe))
  return call.kind === 'call' ? { kind: 'notice', method: call.method, params: call.params } : invalid('answer-invalid')
}

function toResult (id: string | null, rest: unknown[], isSafe: boolean): Message {
  const result = membersOf(rest[0])
  if (id === null || !result || !isSafe || rest.length !== 1) return invalid('answer-invalid', id)
  return { kind: 'result', id, result }
}

/** Some chargers omit the description or the details. */
function toFailure (id: Id | null, rest: unknown[], isSafe: boolean): Message {
  const [code, description, data] = rest
  const message = description ?? ''
  if (typeof code !== 'string' || typeof message !== 'string' || !isSafe) return invalid('answer-invalid', id)
  const isEmpty = data === undefined || data === null || (isJsonObject(data) && Object.keys(data).length === 0)
  return { kind: 'failure', id, reason: unknownMethodNames.has(code) ? 'unknown-method' : 'refused', detail: isEmpty ? { code, message } : { code, message, data } }
}

/** Some chargers send `null` for an empty payload. */
function membersOf (payload: unknown): JsonObject | undefined {
  if (payload === null) return {}
  return isJsonObject(payload) ? payload : undefined
}

function objectPayload (message: Message): JsonObject {
  const payload = membersOf(payloadOf(message) ?? null)
  if (!payload) throw new TypeError('An OCPP payload must be an object')
  return payload
}

function detailsOf (detail: Detail | undefined): JsonObject {
  if (detail?.data === undefined) return {}
  return isJsonObject(detail.data) ? detail.data : { data: detail.data }
}

/** Unique over all connections: a late answer on the next connection must not match another call. */
function mint (): string {
  return crypto.randomUUID()
}

/** `{ method, params? }` and nothing else: a misspelt key must not be ignored. */
function callOf (data: unknown): NamedCall | undefined {
  if (!isJsonObject(data)) return undefined
  const { method, params = {}, ...rest } = data
  if (typeof method !== 'string' || method === '' || !isJsonObject(params) || Object.keys(rest).length > 0) return undefined
  return { method, params }
}
