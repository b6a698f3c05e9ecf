import type { FastifyBaseLogger } from 'fastify'
import type { CloseReason } from '../protocol/errors.ts'
import { decodeWith, type Call, type Codec, type FailureMessage, type InvalidMessage, type Message, type Notice, type Result } from '../protocol/message.ts'
import type { Peer } from '../protocol/peer.ts'
import { clock } from './clock.ts'
import type { Frame } from './frame.ts'
import type { Liveness } from './heartbeat.ts'
import { encodeFrame, isReply } from './message-encoder.ts'
import type { Stats } from './stats.ts'
import type { RateLimit, TokenBucket } from './token-bucket.ts'

const BYTES_PER_TOKEN = 8_192

/** As much of a session as receiving needs. */
interface ReceivingSession {
  readonly id: string
  readonly codec: Codec
  readonly peer: Peer
  readonly bucket: TokenBucket
  write (frame: Frame | undefined): void
  end (reason: CloseReason): void
}

/** As much of the node as receiving needs. */
interface ReceivingHost {
  readonly limits: RateLimit & { maxBuffered: number }
  readonly stats: Stats
  readonly log: FastifyBaseLogger
}

/**
 * Passes the messages of a frame of `size` bytes to the peer, as far as the rate of the device allows, and answers the others with
 * `too-fast`. A reply costs nothing, because we asked for it; `reportUnexpected` charges the replies that nobody asked for.
 */
export function receiveFrame (session: ReceivingSession, host: ReceivingHost, liveness: Liveness, payload: string | Uint8Array, size: number): void {
  try {
    const received = decodeWith(session.codec, payload)
    liveness.heard()
    if (Array.isArray(received)) receiveBatch(session, host, received, size)
    else receiveMessage(session, host, received, size)
  } catch (error) { // a custom codec may throw
    host.log.error({ err: error, deviceId: session.id, protocol: session.codec.subprotocol }, 'frame could not be decoded or answered')
    session.end('internal')
  }
}

/** Unsolicited pongs count against the rate of the device. */
export function receivePong (session: ReceivingSession, host: ReceivingHost, liveness: Liveness): void {
  if (liveness.isAwaiting) host.stats.ponged(liveness.sincePing(clock()))
  else spendTokens(session, host, 1)
  liveness.heard()
}

/** Counts against the rate of the device. False: the device sends too fast, and `messages` are refused; if it goes on by more than a burst, the session ends. */
export function spendTokens (session: ReceivingSession, { stats, limits }: ReceivingHost, count: number, messages = 1): boolean {
  if (session.bucket.take(count, clock())) return true
  stats.count('refusals', 'too-fast', messages)
  if (session.bucket.excess > limits.burst) session.end('flood')
  return false
}

/** Counts and logs a request that was refused because too many calls of the device are in flight. */
export function reportRefused ({ id }: ReceivingSession, { stats, log }: ReceivingHost, { method }: Call | Notice): void {
  stats.count('answers', 'busy')
  log.debug({ deviceId: id, method: method.slice(0, 64), reason: 'busy' }, 'call refused')
}

/** Charges, counts and logs a reply that matches no call, and counts and logs what is no message. */
export function reportUnexpected (session: ReceivingSession, host: ReceivingHost, message: Result | FailureMessage | InvalidMessage): void {
  const { kind } = message
  if (kind !== 'invalid') spendTokens(session, host, 1)
  const reason = kind === 'result' ? 'late' : message.reason
  host.stats.count('unexpected', reason)
  host.log.debug({ deviceId: session.id, kind, reason }, 'unexpected message')
}

function receiveMessage (session: ReceivingSession, host: ReceivingHost, message: Message, size: number): void {
  host.stats.received(1, size)
  if (isReply(message) || spendTokens(session, host, costOf(1, size, host.limits))) session.peer.receive(message)
  else rejectTooFast(session, host, message)
}

function receiveBatch (session: ReceivingSession, host: ReceivingHost, batch: Message[], size: number): void {
  host.stats.received(batch.length, size)
  const requests = batch.filter(message => !isReply(message))
  if (requests.length === 0 || spendTokens(session, host, costOf(requests.length, size, host.limits), requests.length)) return session.peer.receive(batch)
  for (const reply of batch.filter(isReply)) session.peer.receive(reply)
  for (const request of requests) rejectTooFast(session, host, request)
}

/** A large message counts as several, because the cost of passing it on grows with its size. */
function costOf (messages: number, size: number, { burst }: RateLimit): number {
  return Math.min(Math.max(messages, Math.ceil(size / BYTES_PER_TOKEN)), burst)
}

function rejectTooFast (session: ReceivingSession, { limits }: ReceivingHost, request: Message): void {
  if (request.kind === 'call' || request.kind === 'notice') {
    const id = request.kind === 'call' ? request.id : null
    session.write(encodeFrame(session.codec, { kind: 'failure', id, reason: 'too-fast' }, limits.maxBuffered))
  }
}
