import type { FastifyInstance, FastifyRequest, RouteHandlerMethod } from 'fastify'
import { Failure } from '../protocol/errors.ts'
import { safeLog } from '../gateway/log.ts'

/** Lets the handlers of a scope fail with a `Failure` only: anything else is logged, and outside it is an internal error. */
export function hideAccidents (app: FastifyInstance): void {
  app.addHook('onRoute', route => { route.handler = hiding(route.handler) })
}

function hiding (handler: RouteHandlerMethod): RouteHandlerMethod {
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
  safeLog(request.log).error({ err: error }, 'a request could not be carried out')
  return new Failure('internal')
}
