import type { FastifyBaseLogger, FastifyInstance, FastifyRequest } from 'fastify'
import { Failure } from '../protocol/errors.ts'
import { callerOf } from '../gateway/caller.ts'
import { refuseForeign } from '../gateway/origins.ts'
import { protect } from '../gateway/protected-mode.ts'
import type { Settings } from '../gateway/options.ts'
import type { Stats } from '../connection/stats.ts'
import { invoke, refusalStatusOf } from '../protocol/user-code.ts'
import { safeLog } from '../gateway/log.ts'

interface GuardOptions {
  settings: Pick<Settings, 'guard' | 'origins'>
  stats: Stats
  isDraining: () => boolean
}

/** Refuses callers that may not use REST, before their body is read. The hooks use callbacks, so that a synchronous guard does not delay a request. */
export function guardRest (app: FastifyInstance, { settings: { guard, origins }, stats, isDraining }: GuardOptions): void {
  app.addHook('onRequest', (request, _reply, done) => {
    const log = safeLog(request.log)
    const refuse = (error: unknown) => {
      const failure = failureOf(error, log)
      stats.count('refusals', failure instanceof Failure ? failure.reason : 'guard')
      done(failure)
    }
    const decide = (allowed: unknown) => allowed === true ? done() : refuse(refusalOf(request))
    let allowed: unknown = true
    try {
      check(request, log)
      if (guard) allowed = guard(request)
    } catch (error) {
      return refuse(error)
    }
    if (typeof allowed === 'object' && allowed !== null) invoke(() => allowed).then(decide, refuse)
    else decide(allowed)
  })

  // the limits of the schemas do not apply to NaN and Infinity
  app.addHook('preHandler', ({ query }, _reply, done) => {
    const isInfinite = Object.values(query as object).some(value => typeof value === 'number' && !Number.isFinite(value))
    done(isInfinite ? new Failure('malformed', { message: 'A number in the query is not finite' }) : undefined)
  })

  // a kept-alive connection would delay the closing of the server
  app.addHook('onSend', (_request, reply, payload, done) => {
    if (isDraining()) reply.header('connection', 'close')
    done(null, payload)
  })

  function check (request: FastifyRequest, log: FastifyBaseLogger): void {
    if (isDraining()) throw new Failure('draining')
    if (request.ws) throw new Failure('malformed', { message: 'Devices do not connect to a REST route' })
    const caller = callerOf(request)
    if (guard === undefined) protect(caller, 'guard')
    refuseForeign(caller, origins, log)
  }
}

function refusalOf ({ headers }: FastifyRequest): Failure {
  return new Failure(headers.authorization === undefined ? 'unauthenticated' : 'forbidden')
}

/** A guard may throw an error with a status below 500. Any other error is logged, and the caller gets an internal error. */
function failureOf (thrown: unknown, log: FastifyBaseLogger): Error {
  if (refusalStatusOf(thrown) !== undefined) return thrown as Error
  log.error({ err: thrown }, 'guard failed')
  return new Failure('internal')
}
