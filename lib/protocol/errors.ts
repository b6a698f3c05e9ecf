import { common, type ReasonDetails, type nodeAnswers } from './answers.ts'

/** The neutral word for why a request failed; codecs and REST translate it. */
export type Reason = keyof typeof common | keyof typeof nodeAnswers

/** The client leaves it at the common ones; `vocabulary.ts` adds those of a node. */
export const reasons = { ...common } as Record<Reason, ReasonDetails>

/** Why a connection ended, and whether the device may come back by itself. */
export const closeCodes = {
  done: { code: 1000, again: false, message: 'asked for' },
  away: { code: 1001, again: true, message: 'going away' },
  unsaid: { code: 1005, again: true, message: 'closed without a code' },
  vanished: { code: 1006, again: true, message: 'the line was cut' },
  protocol: { code: 1002, again: true, message: 'broke the protocol' },
  type: { code: 1003, again: true, message: 'sent a type that is not understood' },
  text: { code: 1007, again: true, message: 'sent text that is not UTF-8' },
  policy: { code: 1008, again: true, message: 'sent too many pieces' },
  size: { code: 1009, again: true, message: 'sent a message too large' },
  fault: { code: 1011, again: true, message: 'our fault' },
  leaving: { code: 1012, again: true, message: 'node is leaving' },
  overloaded: { code: 1013, again: true, message: 'overloaded, later' },
  expired: { code: 4005, again: true, message: 'credentials expired' },
  slow: { code: 4008, again: true, message: 'reads too slowly' },
  mute: { code: 4012, again: true, message: 'no pong' },
  flood: { code: 4029, again: true, message: 'sent too much' },
  unauthenticated: { code: 4501, again: false, message: 'not authenticated' },
  forbidden: { code: 4503, again: false, message: 'forbidden' },
  'no-protocol': { code: 4506, again: false, message: 'no common subprotocol' },
  silent: { code: 4508, again: false, message: 'did not introduce itself in time' },
  replaced: { code: 4509, again: false, message: 'replaced by a newer connection' },
  removed: { code: 4511, again: false, message: 'removed through REST' },
} as const satisfies Record<string, { code: number, again: boolean, message: string }>

export type CloseReason = keyof typeof closeCodes

/** What a device or a handler said itself when it refused: its own code, words and data. */
export interface Detail {
  code: number | string
  message: string
  data?: unknown
}

const MAX_KEPT = 1_024

/** As much of it as may be kept for long. */
export function truncateDetail (detail: Detail | undefined): Detail | undefined {
  if (!detail || JSON.stringify(detail).length <= MAX_KEPT) return detail
  return { code: typeof detail.code === 'string' ? detail.code.slice(0, MAX_KEPT / 4) : detail.code, message: detail.message.slice(0, MAX_KEPT / 4) }
}

/** What is wrong with parameters: too few or too many, another type, or a value that is not allowed. */
export type ParamsFlaw = 'occurrence' | 'type' | 'value'

export interface FailureOptions {
  /** What the other side said itself. */
  detail?: Detail | undefined
  /** For protocols that tell bad parameters apart. */
  flaw?: ParamsFlaw
  /** It was an accident: the same may do another time. */
  mayPass?: boolean
  /** In place of the words of the table. */
  message?: string | undefined
}

/**
 * One request failed, for a reason of the table. Carries what Fastify's error handlers read: `statusCode`, `code`,
 * `headers`; and `device`, what the device itself said. The latter is not enumerable: it must not reach a log.
 */
export class Failure extends Error {
  readonly reason: Reason
  readonly statusCode: number
  readonly code: string
  readonly headers: Record<string, string>
  declare readonly device: Detail | undefined
  declare readonly flaw?: ParamsFlaw
  declare readonly mayPass?: boolean

  /** What an application throws may be a proxy, and some throw when they are asked what they are. */
  static override [Symbol.hasInstance] (value: unknown): boolean {
    try {
      return super[Symbol.hasInstance](value)
    } catch {
      return false
    }
  }

  constructor (reason: Reason, options: FailureOptions = {}) {
    const { status, code, message, retryAfter } = reasons[reason] ?? common.internal
    super(options.message ?? message)
    this.name = 'Failure'
    this.reason = reason
    this.statusCode = status
    this.code = code
    this.headers = retryAfter === undefined ? {} : { 'retry-after': String(retryAfter) }
    Object.defineProperty(this, 'device', { value: options.detail })
    if (options.flaw) this.flaw = options.flaw
    if (options.mayPass) this.mayPass = true
  }
}

/** Throw it in a handler to refuse a device's call with your own code, words and data. */
export class Refusal extends Failure {
  constructor (message: string, code: number | string = reasons.refused.rpc, data?: unknown) {
    super('refused', { message, detail: data === undefined ? { code, message } : { code, message, data } })
    this.name = 'Refusal'
  }
}
