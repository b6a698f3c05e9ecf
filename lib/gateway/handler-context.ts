import { randomBytes } from 'node:crypto'
import type { FastifyBaseLogger } from 'fastify'
import type { Device } from '../connection/device.ts'
import { InboundCall } from '../protocol/peer.ts'
import { requestIdIn, type RequestContext } from '../protocol/request-context.ts'

export interface HandlerContext {
  device: Device
  /** Aborts when the device disconnects. */
  readonly signal: AbortSignal
  /** Logs with the id of the request, the device and the method. */
  readonly log: FastifyBaseLogger
  /** The id of the request that caused the call, if the device sent its trace back; otherwise a new one. */
  readonly id: string
  /** The trace that the device sent with the call. */
  readonly traceparent: string | undefined
  readonly tracestate: string | undefined
}

/** A notice, which nobody answers: its signal never aborts. */
export class InboundNotice extends InboundCall {}

/** The context of a built-in method. */
export interface BuiltinContext extends HandlerContext {
  /** Whether nobody waits for the answer. */
  readonly isNotice: boolean
}

/** What the calls at a node share: its log, and the ids of calls that no known request has caused. */
export class CallScope {
  readonly log: FastifyBaseLogger
  readonly #prefix = randomBytes(6).toString('base64url')
  #count = 0

  constructor (log: FastifyBaseLogger) {
    this.log = log
  }

  nextId (): string {
    return `${this.#prefix}-${(++this.#count).toString(36)}`
  }
}

/** The context of one call. Its id and its log are made when a handler reads them. */
export class CallContext implements BuiltinContext {
  readonly device: Device
  readonly #method: string
  readonly #inbound: InboundCall
  readonly #request: RequestContext | undefined
  readonly #scope: CallScope
  /** When the call began; 0 if nobody observes calls. */
  readonly startTime: number
  #id: string | undefined
  #log: FastifyBaseLogger | undefined

  /** `request`: the trace that the device sent with the call; in a worker with the id that the gateway uses. */
  constructor (scope: CallScope, device: Device, method: string, inbound: InboundCall, request: RequestContext | undefined, startTime: number) {
    this.#scope = scope
    this.device = device
    this.#method = method
    this.#inbound = inbound
    this.#request = request
    this.startTime = startTime
  }

  get signal (): AbortSignal {
    return this.#inbound.signal
  }

  get isNotice (): boolean {
    return this.#inbound instanceof InboundNotice
  }

  get id (): string {
    this.#id ??= this.#request && (this.#request.id ?? requestIdIn(this.#request))
    return this.#id ??= this.#scope.nextId()
  }

  get log (): FastifyBaseLogger {
    return this.#log ??= this.#scope.log.child({ reqId: this.id, deviceId: this.device.id, method: this.#method })
  }

  get traceparent (): string | undefined {
    return this.#request?.traceparent
  }

  get tracestate (): string | undefined {
    return this.#request?.tracestate
  }
}
