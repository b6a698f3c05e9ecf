import type { FastifyBaseLogger, FastifyInstance, FastifyRequest } from 'fastify'
import { Failure } from '../protocol/errors.ts'
import { callerOf, protect, refuseForeign } from '../gateway/access.ts'
import type { Settings } from '../gateway/options.ts'
import type { Stats } from '../connection/stats.ts'
import { invoke } from '../protocol/user-code.ts'
import { safeLog } from '../gateway/log.ts'

interface Rules {
  settings: Pick<Settings, 'guard' | 'origins'>
  stats: Stats
  isDraining: () => boolean
}

/** Lets into REST only those who may use it, before their body is read. The hooks wait for nothing that need not be waited for. */
export function guardRest (app: FastifyInstance, { settings: { guard, origins }, stats, isDraining }: Rules): void {
  app.addHook('onRequest', (request, _reply, done) => {
    const log = safeLog(request.log)
    const refuse = (error: unknown) => {
      const refused = outward(error, log)
      stats.count('refusals', refused instanceof Failure ? refused.reason : 'guard')
      done(refused)
    }
    const decide = (allowed: unknown) => allowed === true ? done() : refuse(unlike(request))
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

  // the schemas compare only what is finite
  app.addHook('preHandler', ({ query }, _reply, done) => {
    const endless = Object.values(query as object).some(value => typeof value === 'number' && !Number.isFinite(value))
    done(endless ? new Failure('malformed', { message: 'A number in the query is not finite' }) : undefined)
  })

  // a connection that is kept alive after its last answer would hold the server up
  app.addHook('onSend', (_request, reply, payload, done) => {
    if (isDraining()) reply.header('connection', 'close')
    done(null, payload)
  })

  function check (request: FastifyRequest, log: FastifyBaseLogger): void {
    if (isDraining()) throw new Failure('draining')
    if (request.ws) throw new Failure('malformed', { message: 'This is not where devices connect' })
    const caller = callerOf(request)
    if (guard === undefined) protect(caller, 'guard')
    refuseForeign(caller, origins, log)
  }
}

function unlike ({ headers }: FastifyRequest): Failure {
  return new Failure(headers.authorization === undefined ? 'unauthenticated' : 'forbidden')
}

/** A guard may refuse with a status of its own; what it threw by accident stays here. */
function outward (thrown: unknown, log: FastifyBaseLogger): Error {
  if (isRefusal(thrown)) return thrown
  log.error({ err: thrown }, 'guard failed')
  return new Failure('internal')
}

/** Whether Fastify can answer with it: its status is that of a refusal, and nothing of it throws when it is read. */
function isRefusal (thrown: unknown): thrown is Error {
  try {
    if (!(thrown instanceof Error)) return false
    const { statusCode = 0 } = { ...thrown, ...read(thrown) }
    return Number.isInteger(statusCode) && statusCode >= 400 && statusCode < (thrown instanceof Failure ? 600 : 500)
  } catch {
    return false
  }
}

/** What may be on the prototype of an error. */
function read ({ name, message, stack, code, headers, statusCode }: Error & Partial<Failure>): Partial<Failure> {
  return { name, message, stack, code, headers, statusCode } as Partial<Failure>
}
