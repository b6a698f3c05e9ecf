interface Answer {
  /** The HTTP status and the stable code in the body of a REST answer. */
  status: number
  code: string
  /** The JSON-RPC error code. */
  rpc: number
  message: string
  /** Seconds after which another try makes sense. */
  retryAfter?: number
}

/** Why one request failed. An answer never ends the connection. */
export const answers = {
  unreadable: { status: 400, code: 'MESSAGE_UNREADABLE', rpc: -32700, message: 'Not readable as a message' },
  malformed: { status: 400, code: 'MESSAGE_MALFORMED', rpc: -32600, message: 'Readable, but not a valid message' },
  'unknown-method': { status: 501, code: 'METHOD_UNKNOWN', rpc: -32601, message: 'No such method' },
  'bad-params': { status: 400, code: 'PARAMS_INVALID', rpc: -32602, message: 'The parameters do not fit' },
  internal: { status: 500, code: 'INTERNAL_ERROR', rpc: -32603, message: 'Internal error' },
  refused: { status: 422, code: 'DEVICE_REFUSED', rpc: -32000, message: 'Answered with an error' },
  offline: { status: 404, code: 'DEVICE_OFFLINE', rpc: -32001, message: 'The device is not connected' },
  timeout: { status: 504, code: 'DEVICE_TIMEOUT', rpc: -32002, message: 'No answer in time' },
  dropped: { status: 502, code: 'DEVICE_DROPPED', rpc: -32003, message: 'The connection ended before the answer' },
  'answer-invalid': { status: 502, code: 'DEVICE_ANSWER_INVALID', rpc: -32004, message: 'The answer is not a valid message' },
  'too-fast': { status: 429, code: 'RATE_EXCEEDED', rpc: -32005, message: 'Too many messages', retryAfter: 1 },
  busy: { status: 429, code: 'CALLS_EXCEEDED', rpc: -32006, message: 'Too many calls in flight', retryAfter: 1 },
  congested: { status: 429, code: 'DEVICE_CONGESTED', rpc: -32025, message: 'Too much waits to be written to the device', retryAfter: 1 },
  'mailbox-full': { status: 429, code: 'MAILBOX_FULL', rpc: -32007, message: 'Too many letters wait for the device', retryAfter: 60 },
  forbidden: { status: 403, code: 'FORBIDDEN', rpc: -32008, message: 'Not allowed' },
  unauthenticated: { status: 401, code: 'UNAUTHENTICATED', rpc: -32009, message: 'Credentials are missing or wrong' },
  departed: { status: 400, code: 'DEVICE_DEPARTED', rpc: -32026, message: 'The device left before it was let in' },
  'too-many-topics': { status: 429, code: 'TOPICS_EXCEEDED', rpc: -32010, message: 'Too many topics', retryAfter: 60 },
  'bad-topic': { status: 400, code: 'TOPIC_INVALID', rpc: -32011, message: 'Not a valid topic' },
  'bad-id': { status: 400, code: 'ID_INVALID', rpc: -32012, message: 'Give a device id (over HTTP as ?deviceId=) of 1 to 128 of A-Z a-z 0-9 . _ : @ + = ~ -' },
  'bad-protocol': { status: 400, code: 'PROTOCOL_UNKNOWN', rpc: -32013, message: 'Offer the subprotocol jsonrpc, or none' },
  'not-websocket': { status: 426, code: 'UPGRADE_REQUIRED', rpc: -32024, message: 'Connect with a WebSocket' },
  'too-large': { status: 413, code: 'MESSAGE_TOO_LARGE', rpc: -32014, message: 'The message is too large' },
  'bad-type': { status: 415, code: 'TYPE_UNSUPPORTED', rpc: -32015, message: 'Send application/json, text/* or application/octet-stream' },
  'unknown-message': { status: 404, code: 'MESSAGE_UNKNOWN', rpc: -32016, message: 'No such message' },
  settled: { status: 409, code: 'MESSAGE_SETTLED', rpc: -32017, message: 'The message no longer waits' },
  'key-mismatch': { status: 409, code: 'IDEMPOTENCY_MISMATCH', rpc: -32018, message: 'The idempotency key was used for another message' },
  'foreign-origin': { status: 403, code: 'ORIGIN_REFUSED', rpc: -32019, message: 'This origin is not listed in the option "origins"' },
  protected: { status: 403, code: 'PROTECTED_MODE', rpc: -32020, message: 'Protected mode: only this machine may use this door' },
  draining: { status: 503, code: 'NODE_DRAINING', rpc: -32021, message: 'This node is leaving', retryAfter: 1 },
  unreachable: { status: 503, code: 'BACKPLANE_DOWN', rpc: -32022, message: 'The other nodes cannot be reached', retryAfter: 1 },
  'store-full': { status: 507, code: 'STORE_FULL', rpc: -32023, message: 'No room for another letter' },
} as const satisfies Record<string, Answer>

/** The neutral word for why a request failed; codecs and REST translate it. */
export type Reason = keyof typeof answers

/** Why a connection ended, and whether the device may come back by itself. */
export const goodbyes = {
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

export type Goodbye = keyof typeof goodbyes

/** What a device or a handler said itself when it refused: its own code, words and data. */
export interface Detail {
  code: number | string
  message: string
  data?: unknown
}

const MAX_KEPT = 1_024

/** As much of it as may be kept for long. */
export function briefly (detail: Detail | undefined): Detail | undefined {
  if (!detail || JSON.stringify(detail).length <= MAX_KEPT) return detail
  return { code: typeof detail.code === 'string' ? detail.code.slice(0, MAX_KEPT / 4) : detail.code, message: detail.message.slice(0, MAX_KEPT / 4) }
}

/** What is wrong with parameters: too few or too many, another type, or a value that is not allowed. */
export type Flaw = 'occurrence' | 'type' | 'value'

export interface FailureOptions {
  /** What the other side said itself. */
  detail?: Detail | undefined
  /** For protocols that tell bad parameters apart. */
  flaw?: Flaw
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
  declare readonly flaw?: Flaw

  constructor (reason: Reason, options: FailureOptions = {}) {
    const answer: Answer = answers[reason]
    super(options.message ?? answer.message)
    this.name = 'Failure'
    this.reason = reason
    this.statusCode = answer.status
    this.code = answer.code
    this.headers = answer.retryAfter === undefined ? {} : { 'retry-after': String(answer.retryAfter) }
    Object.defineProperty(this, 'device', { value: options.detail })
    if (options.flaw) this.flaw = options.flaw
  }
}

/** Throw it in a handler to refuse a device's call with your own code, words and data. */
export class Refusal extends Failure {
  constructor (message: string, code: number | string = answers.refused.rpc, data?: unknown) {
    super('refused', { message, detail: data === undefined ? { code, message } : { code, message, data } })
    this.name = 'Refusal'
  }
}
