import type { Codec, TraceContext } from './message.ts'

/** The request that causes a message, as it travels between nodes, to workers and in letters. */
export interface RequestContext extends Partial<TraceContext> {
  /** The id that the log lines of the request have. */
  id?: string
}

/** The request that causes a message: a request of Fastify, the context of a handler, or an object with some of these members. */
export interface RequestLike {
  readonly id?: string | undefined
  readonly headers?: Readonly<Record<string, string | string[] | undefined>> | undefined
  readonly traceparent?: string | undefined
  readonly tracestate?: string | undefined
}

/** The member of `tracestate` that holds the id of the request. */
const ID_MEMBER = 'fastify-devices='
const MAX_ID_LENGTH = 256
// W3C Trace Context: https://www.w3.org/TR/trace-context/
const MAX_TRACESTATE_LENGTH = 512
const MAX_TRACESTATE_MEMBERS = 32
const TRACEPARENT = /^00-(?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}$/
const MEMBER_VALUE = /^[\x20-\x2b\x2d-\x3c\x3e-\x7e]{0,255}[\x21-\x2b\x2d-\x3c\x3e-\x7e]$/
const MEMBER = /^[a-z0-9][a-z0-9_\-*/@]{0,255}=[\x20-\x2b\x2d-\x3c\x3e-\x7e]{0,255}[\x21-\x2b\x2d-\x3c\x3e-\x7e]$/

/** The id and the trace of a request, without what is malformed or too long; undefined if nothing is left. */
export function contextOf (request: RequestLike | undefined): RequestContext | undefined {
  if (!request) return undefined
  const { id, headers, traceparent = headers?.traceparent, tracestate = headers?.tracestate } = request
  const trace = traceIn({ traceparent, tracestate })
  return typeof id === 'string' && id.length > 0 && id.length <= MAX_ID_LENGTH ? { id, ...trace } : trace
}

/** The trace in the members of a frame, or in headers; undefined if `traceparent` is absent or malformed. */
export function traceIn ({ traceparent, tracestate }: { traceparent?: unknown, tracestate?: unknown }): TraceContext | undefined {
  if (typeof traceparent !== 'string' || !TRACEPARENT.test(traceparent)) return undefined
  const members = membersOf(tracestate)
  return members.length > 0 ? { traceparent, tracestate: members.join(',') } : { traceparent }
}

/**
 * The trace to send with what a request causes: `tracestate` holds its id, as far as the id can be a value there. The specification asks for a new parent id
 * with each change of `tracestate`. A tracer that subscribes to the operations has set one; without a tracer the parent id stays that of the request, because
 * nobody would record another, and what the device records would have no parent.
 */
export function traceOf (request: RequestLike): TraceContext | undefined {
  const { id = '', traceparent, tracestate } = contextOf(request) ?? {}
  const members = membersOf(tracestate).filter(member => !member.startsWith(ID_MEMBER))
  if (MEMBER_VALUE.test(id)) members.unshift(ID_MEMBER + id) // what changes comes first
  else if (traceparent === undefined) return undefined
  while (members.length > MAX_TRACESTATE_MEMBERS || members.join(',').length > MAX_TRACESTATE_LENGTH) members.pop()
  return { traceparent: traceparent ?? newTraceparent(), ...(members.length > 0 && { tracestate: members.join(',') }) }
}

/** The trace to send to a device; undefined if it did not ask for one. */
export function traceFor (codec: Codec, request: RequestLike | undefined): TraceContext | undefined {
  return request && codec.isTraced ? traceOf(request) : undefined
}

/** The id of the request that a trace holds. */
export function requestIdIn ({ tracestate }: Partial<TraceContext>): string | undefined {
  return membersOf(tracestate).find(member => member.startsWith(ID_MEMBER))?.slice(ID_MEMBER.length)
}

/** None if it is malformed or too long. */
function membersOf (tracestate: unknown): string[] {
  if (typeof tracestate !== 'string' || tracestate.length > MAX_TRACESTATE_LENGTH) return []
  const members = tracestate.split(',').map(member => member.trim()).filter(member => member !== '')
  return members.length <= MAX_TRACESTATE_MEMBERS && members.every(member => MEMBER.test(member)) ? members : []
}

/** Begins a trace that nobody records. */
function newTraceparent (): string {
  const [traceId, parentId] = [crypto.randomUUID(), crypto.randomUUID()].map(id => id.replaceAll('-', ''))
  return `00-${traceId}-${parentId!.slice(16)}-00`
}
