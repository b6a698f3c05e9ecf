export interface ReasonDetails {
  /** The HTTP status and the stable code in the body of a REST answer. */
  status: number
  code: string
  /** The JSON-RPC error code. */
  rpc: number
  message: string
  /** Seconds after which a retry makes sense. */
  retryAfter?: number
}

/** Why one request failed: the reasons that both ends use. An answer never ends the connection. */
export const commonReasons = {
  unreadable: { status: 400, code: 'MESSAGE_UNREADABLE', rpc: -32700, message: 'Not readable as a message' },
  malformed: { status: 400, code: 'MESSAGE_MALFORMED', rpc: -32600, message: 'Readable, but not a valid message' },
  'unknown-method': { status: 501, code: 'METHOD_UNKNOWN', rpc: -32601, message: 'No such method' },
  'bad-params': { status: 400, code: 'PARAMS_INVALID', rpc: -32602, message: 'The parameters do not fit' },
  internal: { status: 500, code: 'INTERNAL_ERROR', rpc: -32603, message: 'Internal error' },
  refused: { status: 422, code: 'DEVICE_REFUSED', rpc: -32000, message: 'Answered with an error' },
  timeout: { status: 504, code: 'DEVICE_TIMEOUT', rpc: -32002, message: 'No answer in time' },
  dropped: { status: 502, code: 'DEVICE_DROPPED', rpc: -32003, message: 'The connection ended before the answer' },
  'answer-invalid': { status: 502, code: 'DEVICE_ANSWER_INVALID', rpc: -32004, message: 'The answer is not a valid message' },
  'too-fast': { status: 429, code: 'RATE_EXCEEDED', rpc: -32005, message: 'Too many messages', retryAfter: 1 },
  busy: { status: 429, code: 'CALLS_EXCEEDED', rpc: -32006, message: 'Too many calls in flight', retryAfter: 1 },
  forbidden: { status: 403, code: 'FORBIDDEN', rpc: -32008, message: 'Not allowed' }
} satisfies Record<string, ReasonDetails>

/** The reasons that only a node uses. They are apart so that a bundle of the client does not contain them. */
export const nodeReasons = {
  'too-large': { status: 413, code: 'MESSAGE_TOO_LARGE', rpc: -32014, message: 'The message is too large' },
  offline: { status: 404, code: 'DEVICE_OFFLINE', rpc: -32001, message: 'The device is not connected' },
  congested: { status: 429, code: 'DEVICE_CONGESTED', rpc: -32025, message: 'Too much waits to be written to the device', retryAfter: 1 },
  'mailbox-full': { status: 429, code: 'MAILBOX_FULL', rpc: -32007, message: 'Too many letters wait for the device', retryAfter: 60 },
  unauthenticated: { status: 401, code: 'UNAUTHENTICATED', rpc: -32009, message: 'Credentials are missing or wrong' },
  departed: { status: 400, code: 'DEVICE_DEPARTED', rpc: -32026, message: 'The device disconnected before it was admitted' },
  'too-many-topics': { status: 429, code: 'TOPICS_EXCEEDED', rpc: -32010, message: 'Too many topics', retryAfter: 60 },
  'bad-topic': { status: 400, code: 'TOPIC_INVALID', rpc: -32011, message: 'Not a valid topic' },
  'bad-id': { status: 400, code: 'ID_INVALID', rpc: -32012, message: 'Give a device id (over HTTP as ?deviceId=) of 1 to 128 of A-Z a-z 0-9 . _ : @ + = ~ -' },
  'bad-protocol': { status: 400, code: 'PROTOCOL_UNKNOWN', rpc: -32013, message: 'Offer the subprotocol jsonrpc, or none' },
  'not-websocket': { status: 426, code: 'UPGRADE_REQUIRED', rpc: -32024, message: 'Connect with a WebSocket' },
  'bad-type': { status: 415, code: 'TYPE_UNSUPPORTED', rpc: -32015, message: 'Send application/json, text/* or application/octet-stream' },
  'unknown-message': { status: 404, code: 'MESSAGE_UNKNOWN', rpc: -32016, message: 'No such message' },
  settled: { status: 409, code: 'MESSAGE_SETTLED', rpc: -32017, message: 'The message no longer waits' },
  'key-mismatch': { status: 409, code: 'IDEMPOTENCY_MISMATCH', rpc: -32018, message: 'The idempotency key was used for another message' },
  'foreign-origin': { status: 403, code: 'ORIGIN_REFUSED', rpc: -32019, message: 'This origin is not listed in the option "origins"' },
  protected: { status: 403, code: 'PROTECTED_MODE', rpc: -32020, message: 'Protected mode: only requests from this machine are accepted' },
  draining: { status: 503, code: 'NODE_DRAINING', rpc: -32021, message: 'This node is leaving', retryAfter: 1 },
  unreachable: { status: 503, code: 'BACKPLANE_DOWN', rpc: -32022, message: 'The other nodes cannot be reached', retryAfter: 1 },
  'store-full': { status: 507, code: 'STORE_FULL', rpc: -32023, message: 'No room for another letter' },
  'too-many-readers': { status: 503, code: 'READERS_EXCEEDED', rpc: -32027, message: 'Too many readers of events', retryAfter: 10 }
} satisfies Record<string, ReasonDetails>
