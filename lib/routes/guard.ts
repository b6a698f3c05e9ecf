import type { FastifyBaseLogger, FastifyInstance, FastifyRequest } from 'fastify'
import { Failure } from '../errors.ts'
import { protect, refuseForeign } from '../gate.ts'
import type { Settings } from '../options.ts'
import { isThenable } from '../peer.ts'
import type { Stats } from '../stats.ts'

interface Rules {
  settings: Pick<Settings, 'guard' | 'origins'>
  stats: Stats
  isDraining: () => boolean
}

/** Lets into REST only those who may use it, before their body is read. The hooks wait for nothing that need not be waited for. */
export function guardRest (app: FastifyInstance, { settings: { guard, origins }, stats, isDraining }: Rules): void {
  app.addHook('onRequest', (request, _reply, done) => {
    const refuse = (error: unknown) => {
      const refused = outward(error, request.log)
      stats.count('refusals', refused instanceof Failure ? refused.reason : 'guard')
      done(refused)
    }
    const decide = (allowed: unknown) => allowed === true ? done() : refuse(unlike(request))
    let allowed: unknown = true
    try {
      check(request)
      if (guard) allowed = guard(request)
    } catch (error) {
      return refuse(error)
    }
    if (isThenable(allowed)) allowed.then(decide, refuse)
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

  function check (request: FastifyRequest): void {
    if (isDraining()) throw new Failure('draining')
    if (request.ws) throw new Failure('malformed', { message: 'This is not where devices connect' })
    const caller = { address: request.ip, headers: request.headers }
    if (guard === undefined) protect(caller, 'guard')
    refuseForeign(caller, origins)
  }
}

function unlike ({ headers }: FastifyRequest): Failure {
  return new Failure(headers.authorization === undefined ? 'unauthenticated' : 'forbidden')
}

/** A guard may refuse with a status of its own; what it threw by accident stays here. */
function outward (error: unknown, log: FastifyBaseLogger): Error {
  const { statusCode } = error as { statusCode?: unknown }
  if (error instanceof Error && typeof statusCode === 'number' && (error instanceof Failure || statusCode < 500)) return error
  log.error({ err: error }, 'guard failed')
  return new Failure('internal')
}
