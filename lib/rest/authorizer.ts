import type { FastifyInstance, FastifyRequest } from 'fastify'
import type { Stats } from '../connection/stats.ts'
import type { Action, Authorize, Operation } from '../gateway/authorize.ts'
import { safeLog } from '../gateway/log.ts'
import { Failure } from '../protocol/errors.ts'
import { isThenable } from '../protocol/peer.ts'
import { invoke } from '../protocol/user-code.ts'
import { reasonOf, refusalOf } from './refusal.ts'

const CALLER = Symbol('caller')

type IdentifiedRequest = FastifyRequest & { [CALLER]?: object }

interface RouteAction {
  action: Action
  /** The method that the route calls, if it calls only one. */
  method?: string
  /** The route itself asks, once for each line of its body. */
  eachLine?: boolean
}

/** The `config` of a route: what its caller does. */
export function routeAction (action: Action, details: Omit<RouteAction, 'action'> = {}): { devices: RouteAction } {
  return { devices: { action, ...details } }
}

/** Asks the option `authorize` what callers may do. */
export class Authorizer {
  readonly #authorize: Authorize
  readonly #stats: Stats

  constructor (scope: FastifyInstance, authorize: Authorize, stats: Stats) {
    this.#authorize = authorize
    this.#stats = stats
    scope.decorateRequest(CALLER)
  }

  /** Remembers who sent a request. */
  identify (request: FastifyRequest, caller: object): void {
    (request as IdentifiedRequest)[CALLER] = caller
  }

  /** Returns the error that the caller gets, or undefined if the caller may do it; a promise only if `authorize` returned one. */
  refusal (request: FastifyRequest, operation: Operation): Error | undefined | Promise<Error | undefined> {
    try {
      const allowed: unknown = this.#authorize((request as IdentifiedRequest)[CALLER], operation)
      if (!isThenable(allowed)) return this.#decide(allowed, request, operation)
      return invoke(() => allowed).then(allowed => this.#decide(allowed, request, operation), error => this.#refuse(error, request, operation))
    } catch (error) {
      return this.#refuse(error, request, operation)
    }
  }

  #decide (allowed: unknown, request: FastifyRequest, operation: Operation): Error | undefined {
    return allowed === true ? undefined : this.#refuse(new Failure('forbidden'), request, operation)
  }

  #refuse (error: unknown, request: FastifyRequest, operation: Operation): Error {
    const log = safeLog(request.log)
    const refusal = refusalOf('authorize', error, log)
    const reason = reasonOf('authorize', refusal)
    this.#stats.count('refusals', reason)
    log.debug({ ...operation, reason }, 'caller refused')
    return refusal
  }
}

/** Every route must say what its caller does. With the option `authorize` it is asked after the request has been validated, before the handler. */
export function authorizeRoutes (scope: FastifyInstance, authorizer: Authorizer | undefined): void {
  scope.addHook('onRoute', route => {
    const { devices } = (route.config ?? {}) as Partial<ReturnType<typeof routeAction>>
    if (!devices) throw new Error(`The route ${String(route.method)} ${route.url} does not say in its config what its caller does`)
    if (!authorizer || devices.eachLine) return
    const { action, method } = devices
    const operationOf = (request: FastifyRequest) => method === undefined ? operations[action](request) : { ...operations[action](request), method }
    route.preHandler = [route.preHandler ?? [], preHandler].flat()

    function preHandler (request: FastifyRequest, _reply: unknown, done: (error?: Error) => void): void {
      const refusal = authorizer!.refusal(request, operationOf(request))
      if (refusal instanceof Promise) void refusal.then(done)
      else done(refusal)
    }
  })
}

interface RouteRequest {
  params: { id: string, method: string, '*': string }
  query: { topic?: string, prefix?: string }
}

const aboutDevice = (action: Action) => ({ params: { id } }: RouteRequest) => ({ action, deviceId: id })
const aboutFilter = (action: Action) => ({ params: { id, '*': topic } }: RouteRequest) => ({ action, deviceId: id, topic })

/** Only what the route uses: a parameter that it ignores must not decide. */
const operations: Record<Action, (request: any) => Operation> = {
  list: ({ query: { prefix, topic } }: RouteRequest) => ({ action: 'list', prefix, topic }),
  describe: aboutDevice('describe'),
  disconnect: aboutDevice('disconnect'),
  send: aboutDevice('send'),
  call: ({ params: { id, method } }: RouteRequest) => ({ action: 'call', deviceId: id, method }),
  broadcast: ({ query: { topic } }: RouteRequest) => ({ action: 'broadcast', topic }),
  join: aboutFilter('join'),
  leave: aboutFilter('leave'),
  letters: aboutDevice('letters'),
  receipt: aboutDevice('receipt'),
  cancel: aboutDevice('cancel'),
  purge: aboutDevice('purge'),
  asyncapi: () => ({ action: 'asyncapi' }),
  events: () => ({ action: 'events' }),
  metrics: () => ({ action: 'metrics' }),
  console: () => ({ action: 'console' }),
  webhooks: () => ({ action: 'webhooks' })
}
