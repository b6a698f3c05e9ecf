import { isNativeError } from 'node:util/types'
import type { FastifyBaseLogger, FastifyInstance, FastifyRequest } from 'fastify'
import { Failure } from '../protocol/errors.ts'
import { callerOf } from '../gateway/caller.ts'
import { refuseForeign } from '../gateway/origins.ts'
import { protect } from '../gateway/protected-mode.ts'
import type { Settings } from '../gateway/options.ts'
import type { Stats } from '../connection/stats.ts'
import { isThenable } from '../protocol/peer.ts'
import { invoke } from '../protocol/user-code.ts'
import { safeLog } from '../gateway/log.ts'
import type { Authorizer } from './authorizer.ts'
import { reasonOf, refusalOf } from './refusal.ts'

interface GuardOptions {
  settings: Pick<Settings, 'guard' | 'origins'>
  stats: Stats
  isDraining: () => boolean
  authorizer: Authorizer | undefined
}

/** Refuses callers that may not use REST, before their body is read. The hooks use callbacks, so that a synchronous guard does not delay a request. */
export function guardRest (app: FastifyInstance, { settings: { guard, origins }, stats, isDraining, authorizer }: GuardOptions): void {
  app.addHook('onRequest', (request, _reply, done) => {
    const log = safeLog(request.log)
    const refuse = (error: unknown) => {
      const refusal = refusalOf('guard', error, log)
      stats.count('refusals', reasonOf('guard', refusal))
      done(refusal)
    }
    const decide = (answer: unknown) => {
      if (answer !== true && !isCaller(answer)) return refuse(unknownCaller(request))
      if (answer !== true) authorizer?.identify(request, answer)
      done()
    }
    let answer: unknown = true
    try {
      check(request, log)
      if (guard) answer = guard(request)
      if (isThenable(answer)) return void invoke(() => answer).then(decide, refuse)
    } catch (error) {
      return refuse(error)
    }
    decide(answer)
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

function unknownCaller ({ headers }: FastifyRequest): Failure {
  return new Failure(headers.authorization === undefined ? 'unauthenticated' : 'forbidden')
}

/** Never throws. A list is no caller: it may be the empty result of a database query. */
function isCaller (answer: unknown): answer is object {
  try {
    return typeof answer === 'object' && answer !== null && !Array.isArray(answer) && !(answer instanceof Error) && !isNativeError(answer)
  } catch {
    return false
  }
}
