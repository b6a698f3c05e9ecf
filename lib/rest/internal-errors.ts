import type { FastifyInstance, FastifyRequest, RouteHandlerMethod } from 'fastify'
import { Failure } from '../protocol/errors.ts'
import { safeLog } from '../gateway/log.ts'

/** Handlers of the scope fail with a `Failure` only: any other error is logged, and the caller gets an internal error. */
export function hideInternalErrors (app: FastifyInstance): void {
  app.addHook('onRoute', route => { route.handler = withHiddenErrors(route.handler) })
}

function withHiddenErrors (handler: RouteHandlerMethod): RouteHandlerMethod {
  return function (request, reply) {
    const fail = (error: unknown): never => { throw failureOf(error, request) }
    try {
      const answer = handler.call(this, request, reply)
      return answer instanceof Promise ? answer.catch(fail) : answer
    } catch (error) {
      return fail(error)
    }
  }
}

function failureOf (error: unknown, request: FastifyRequest): Failure {
  if (error instanceof Failure) return error
  safeLog(request.log).error({ err: error }, 'request failed')
  return new Failure('internal')
}
