import { commonReasons, type ReasonDetails, type nodeReasons } from './reasons.ts'

/** Why a request failed, independent of the protocol; codecs and REST translate it. */
export type Reason = keyof typeof commonReasons | keyof typeof nodeReasons

/** In the client only the common reasons; `vocabulary.ts` adds those of a node. */
export const reasons = { ...commonReasons } as Record<Reason, ReasonDetails>

/** Why a connection ended, and whether the device may reconnect by itself. */
export const closeCodes = {
  done: { code: 1000, reconnect: false, message: 'closed on request' },
  away: { code: 1001, reconnect: true, message: 'going away' },
  'no-code': { code: 1005, reconnect: true, message: 'closed without a code' },
  lost: { code: 1006, reconnect: true, message: 'connection lost' },
  protocol: { code: 1002, reconnect: true, message: 'broke the protocol' },
  type: { code: 1003, reconnect: true, message: 'sent a type that is not understood' },
  text: { code: 1007, reconnect: true, message: 'sent text that is not UTF-8' },
  policy: { code: 1008, reconnect: true, message: 'too many fragments' },
  size: { code: 1009, reconnect: true, message: 'sent a message too large' },
  internal: { code: 1011, reconnect: true, message: 'internal error' },
  leaving: { code: 1012, reconnect: true, message: 'node is leaving' },
  overloaded: { code: 1013, reconnect: true, message: 'overloaded, try again later' },
  expired: { code: 4005, reconnect: true, message: 'credentials expired' },
  slow: { code: 4008, reconnect: true, message: 'reads too slowly' },
  'no-pong': { code: 4012, reconnect: true, message: 'no pong' },
  flood: { code: 4029, reconnect: true, message: 'sent too much' },
  unauthenticated: { code: 4501, reconnect: false, message: 'not authenticated' },
  forbidden: { code: 4503, reconnect: false, message: 'forbidden' },
  'no-protocol': { code: 4506, reconnect: false, message: 'no common subprotocol' },
  silent: { code: 4508, reconnect: false, message: 'no connect message in time' },
  replaced: { code: 4509, reconnect: false, message: 'replaced by a newer connection' },
  removed: { code: 4511, reconnect: false, message: 'removed through REST' },
} as const satisfies Record<string, { code: number, reconnect: boolean, message: string }>

export type CloseReason = keyof typeof closeCodes

/** The error that a device or a handler answered with: its own code, message and data. */
export interface Detail {
  code: number | string
  message: string
  data?: unknown
}

const MAX_STORED_LENGTH = 1_024

/** Limits a detail to a size that may be stored. */
export function truncateDetail (detail: Detail | undefined): Detail | undefined {
  if (!detail || JSON.stringify(detail).length <= MAX_STORED_LENGTH) return detail
  const { code, message } = detail
  const short = (text: string) => text.slice(0, MAX_STORED_LENGTH / 4)
  return { code: typeof code === 'string' ? short(code) : code, message: short(message) }
}

/** What is wrong with parameters: a missing or surplus one, a wrong type, or a value that is not allowed. */
export type ParamsFlaw = 'occurrence' | 'type' | 'value'

export interface FailureOptions {
  /** The error that the other side answered with. */
  detail?: Detail | undefined
  /** What is wrong with bad parameters; some protocols have a different error for each kind. */
  flaw?: ParamsFlaw
  /** The cause is temporary: the same request may succeed later. */
  mayPass?: boolean
  /** Replaces the message of the table. */
  message?: string | undefined
}

/**
 * One request failed, for a reason of the table. Has the members that Fastify's error handlers read (`statusCode`, `code`, `headers`), and `device`, the
 * error that the device answered with. `device` is not enumerable, so that it does not reach a log.
 */
export class Failure extends Error {
  readonly reason: Reason
  readonly statusCode: number
  readonly code: string
  readonly headers: Record<string, string>
  declare readonly device: Detail | undefined
  declare readonly flaw?: ParamsFlaw
  declare readonly mayPass?: boolean

  /** Never throws: an application may throw a proxy whose traps throw. */
  static override [Symbol.hasInstance] (value: unknown): boolean {
    try {
      return super[Symbol.hasInstance](value)
    } catch {
      return false
    }
  }

  constructor (reason: Reason, { message: given, detail, ...rest }: FailureOptions = {}) {
    const { status, code, message, retryAfter } = reasons[reason] ?? commonReasons.internal
    super(given ?? message)
    Object.assign(this, rest) // first, so that it replaces none of the members below
    this.name = 'Failure'
    this.reason = reason
    this.statusCode = status
    this.code = code
    this.headers = retryAfter ? { 'retry-after': String(retryAfter) } : {}
    Object.defineProperty(this, 'device', { value: detail })
  }
}

/** Throw it in a handler to refuse a call with your own code, message and data. */
export class Refusal extends Failure {
  constructor (message: string, code: number | string = reasons.refused.rpc, data?: unknown) {
    super('refused', { message, detail: data === undefined ? { code, message } : { code, message, data } })
    this.name = 'Refusal'
  }
}

/** The mailbox or the other nodes cannot be reached: logged once for the node, so its callers need not. */
export function isUnreachable (error: unknown): boolean {
  return error instanceof Failure && error.reason === 'unreachable'
}
