import type { FastifyBaseLogger } from 'fastify'
import type { MethodSchemas } from '../protocol/contract.ts'
import { reasons, Failure } from '../protocol/errors.ts'
import { checkOptionNames } from '../protocol/option-names.ts'
import { isThenable, type InboundCall } from '../protocol/peer.ts'
import type { RequestContext, RequestLike } from '../protocol/request-context.ts'
import type { InputOf, OutputOf } from '../protocol/schema.ts'
import type { Device } from '../connection/device.ts'
import type { Stats } from '../connection/stats.ts'
import { CallContext, CallScope, type HandlerContext } from './handler-context.ts'
import { compile, type Check, type SchemaFlaw } from './schema.ts'

/** Answers a method that devices call; its types are inferred from the schemas. */
export type Handler<S extends MethodSchemas = MethodSchemas> =
  (params: OutputOf<S['params']>, context: HandlerContext) => InputOf<S['result']> | Promise<InputOf<S['result']>>

interface Method {
  handler: (params: unknown, context: HandlerContext) => unknown
  params: Check | undefined
  result: Check | undefined
  isBuiltin: boolean
}

const schemaNames = { params: true, result: true }

/** Answers methods that have no handler on this node. */
export interface RemoteMethods {
  /** Whether a handler of the method is available. */
  answers (name: string): boolean
  answer (name: string, params: unknown, device: Device, request: RequestLike, signal?: AbortSignal): Promise<unknown>
}

/** The methods that devices may call, and their handlers. */
export class Methods {
  readonly #methods = new Map<string, Method[]>()
  /** A number for each connection that has called a method with several handlers: it selects the handler. */
  readonly #connectionNumbers = new WeakMap<Device, number>()
  #nextNumber = 0
  readonly #stats: Stats
  readonly #log: FastifyBaseLogger
  readonly #scope: CallScope
  readonly #elsewhere: RemoteMethods | undefined

  constructor (stats: Stats, log: FastifyBaseLogger, elsewhere?: RemoteMethods) {
    this.#stats = stats
    this.#log = log
    this.#scope = new CallScope(log)
    this.#elsewhere = elsewhere
  }

  get names (): string[] {
    return [...this.#methods.keys()]
  }

  /** Whether there is a handler of the method, here or elsewhere. */
  has (name: string): boolean {
    return this.#methods.has(name) || this.#elsewhere?.answers(name) === true
  }

  /** Several handlers of a method share the connections round-robin. */
  handle<S extends MethodSchemas> (name: string, schemas: S, handler: Handler<S>, isBuiltin = false): void {
    if (typeof handler !== 'function') throw new TypeError(`The handler of "${name}" is not a function`)
    checkOptionNames<MethodSchemas>(`The schemas of "${name}"`, schemas, schemaNames)
    const { params, result } = schemas
    const method = {
      handler: handler as Method['handler'],
      params: params === undefined ? undefined : compile(`The schema "params" of "${name}"`, params, badParams),
      result: result === undefined ? undefined : compile(`The schema "result" of "${name}"`, result, flaw => badResult(name, flaw)),
      isBuiltin
    }
    const handlers = this.#methods.get(name)
    if (handlers) handlers.push(method)
    else this.#methods.set(name, [method])
  }

  /**
   * Throws a `Failure`, or rejects with one: any other error of a handler is logged, and the device gets an internal error. `turn` is the
   * number of the connection, if another node has given it one; `request` is what has caused the call, as far as it is known.
   */
  answer (name: string, params: unknown, device: Device & { readonly isForeign?: boolean }, inbound: InboundCall, request?: RequestContext, turn?: number): unknown {
    const method = this.#methodOf(name, device, turn)
    const context = new CallContext(this.#scope, device, name, inbound, request, this.#stats.startTime())
    try {
      if (!method || (method.isBuiltin && device.isForeign)) throw new Failure('unknown-method')
      const result = this.#run(name, method, params, context)
      return isThenable(result) ? Promise.resolve(result).catch(error => { throw this.#failed(name, context, error) }) : result
    } catch (error) {
      throw this.#failed(name, context, error)
    }
  }

  /** A promise only if the handler or a schema needs one. */
  #run (name: string, method: Method, params: unknown, context: CallContext): unknown {
    const checked = method.params ? method.params(params) : params
    const result = isThenable(checked) ? Promise.resolve(checked).then(value => method.handler(value, context)) : method.handler(checked, context)
    return isThenable(result) ? Promise.resolve(result).then(value => this.#finish(name, method, value, context)) : this.#finish(name, method, result, context)
  }

  #methodOf (name: string, device: Device, turn?: number): Method | undefined {
    const handlers = this.#methods.get(name)
    if (!handlers) return this.#methodElsewhere(name)
    return handlers.length === 1 ? handlers[0] : handlers[(turn ?? this.#numberOf(device)) % handlers.length]
  }

  #methodElsewhere (name: string): Method | undefined {
    const elsewhere = this.#elsewhere
    if (!elsewhere?.answers(name)) return undefined
    return { handler: (params, context) => elsewhere.answer(name, params, context.device, context, context.signal), params: undefined, result: undefined, isBuiltin: false }
  }

  #numberOf (device: Device): number {
    const number = this.#connectionNumbers.get(device) ?? this.#nextNumber++
    this.#connectionNumbers.set(device, number)
    return number
  }

  #finish (name: string, { result }: Method, value: unknown, context: CallContext): unknown {
    const checked = result ? result(value) : value
    return isThenable(checked) ? Promise.resolve(checked).then(value => this.#answered(name, value, context)) : this.#answered(name, checked, context)
  }

  #answered (name: string, value: unknown, { startTime }: CallContext): unknown {
    // JSON.stringify leaves these out, and a response without a result is invalid
    if (typeof value === 'function' || typeof value === 'symbol') throw new TypeError(`The result of "${name}" is a ${typeof value}`)
    this.#stats.settled('in', name, 'ok', startTime)
    return value
  }

  #failed (method: string, { device, id: reqId, startTime }: CallContext, error: unknown): Failure {
    const failure = error instanceof Failure ? error : new Failure('internal')
    if (failure === error) this.#log.debug({ reqId, deviceId: device.id, method: method.slice(0, 64), reason: failure.reason }, 'call refused')
    else this.#log.error({ err: error, reqId, deviceId: device.id, method }, 'handler failed')
    this.#stats.settled('in', method, failure.reason, startTime)
    return failure
  }
}

function badParams ({ path, message, kind }: SchemaFlaw): Failure {
  const text = `params${path}: ${message}`
  return new Failure('bad-params', { message: text, detail: { code: reasons['bad-params'].rpc, message: text }, flaw: kind })
}

function badResult (name: string, { path, message }: SchemaFlaw): Error {
  return new Error(`The result of "${name}" does not fit its schema at "${path}": ${message}`)
}
