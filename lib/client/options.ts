import type { Contract } from '../protocol/contract.ts'
import { isDeviceId } from '../protocol/device-id.ts'
import { MAX_TIMER_MS } from '../protocol/peer.ts'
import type { Backoff } from '../protocol/reconnect.ts'
import { untraced, type ClientTracer } from './tracer.ts'
import type { WebSocketLike } from './connection.ts'

export interface CallOptions {
  /** Milliseconds until the call fails with `timeout`, including the wait for a connection; by default the `timeout` of `connect`. */
  timeout?: number
  /** Aborting it makes the call fail with `dropped`. */
  signal?: AbortSignal
}

export interface ConnectOptions extends Partial<Backoff> {
  /** The id of the device: 1 to 128 characters of `A-Z a-z 0-9 . _ : @ + = ~ -`. */
  deviceId: string
  /**
   * A token for the server's `authenticate`, or a function that returns one. The function is called before each connection attempt, and must return within `timeout`.
   * @default undefined
   */
  token?: string | (() => string | undefined | Promise<string | undefined>)
  /**
   * The WebSocket constructor. Node 20 has no global one: pass that of the package `ws`, or `tcpSocket()`.
   * @default globalThis.WebSocket
   */
  WebSocket?: new (url: string, protocols: string[]) => WebSocketLike
  /**
   * Time limit in milliseconds for a connection attempt (from asking for the token to the server's `welcome`), and for a call (including its wait for a connection).
   * @default 10_000
   */
  timeout?: number
  /**
   * Number of calls that may wait for a connection; further calls fail with `busy`.
   * @default 100
   */
  maxWaiting?: number
  /**
   * Maximum delay before the first reconnection attempt, in milliseconds. It doubles with each further attempt; the actual delay is random.
   * @default 1_000
   */
  minDelay?: number
  /**
   * Maximum delay before any reconnection attempt, in milliseconds. Only the server may ask for a longer one.
   * @default 30_000
   */
  maxDelay?: number
  /**
   * The contract of the server, for the types of the client. The server checks what it names; the client checks nothing.
   * @default undefined
   */
  contract?: Contract
  /**
   * Records spans, and asks the server for the trace of each message: `deviceTracer()` of `fastify-devices/client/tracing`.
   * @default undefined
   */
  tracer?: ClientTracer
}

export type ClientOptions = Required<Omit<ConnectOptions, 'token' | 'contract' | 'tracer'>> & ClientTracer & { token: ConnectOptions['token'] | undefined }

/** Checks the options and fills in the defaults. */
export function clientOptions (options: ConnectOptions): ClientOptions {
  const { deviceId, token, WebSocket = (globalThis as any).WebSocket, timeout = 10_000, maxWaiting = 100, minDelay = 1_000, maxDelay = 30_000, tracer: { codec, run } = untraced, contract: _contract, ...rest } = options
  for (const name in rest) throw new TypeError(`Unknown option "${name}"`)
  if (!isDeviceId(deviceId)) throw new TypeError('The option "deviceId" is invalid')
  if (!WebSocket) throw new Error('The option "WebSocket" is missing')
  return { deviceId, token, WebSocket, timeout: Math.min(timeout, MAX_TIMER_MS), maxWaiting, minDelay, maxDelay, codec, run }
}
