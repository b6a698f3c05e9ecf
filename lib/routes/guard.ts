import type { FastifyBaseLogger, FastifyInstance, FastifyRequest } from 'fastify'
import { Failure } from '../errors.ts'
import { protect, refuseForeign } from '../gate.ts'
import type { Settings } from '../options.ts'
import type { Stats } from '../stats.ts'

interface Rules {
  settings: Pick<Settings, 'guard' | 'origins'>
  stats: Stats
  isDraining: () => boolean
}

/** Lets into REST only those who may use it, before their body is read. */
export function guardRest (app: FastifyInstance, { settings: { guard, origins }, stats, isDraining }: Rules): void {
  // the schemas compare only what is finite
  app.addHook('preHandler', async ({ query }) => {
    for (const value of Object.values(query as object)) {
      if (typeof value === 'number' && !Number.isFinite(value)) throw new Failure('malformed', { message: 'A number in the query is not finite' })
    }
  })

  app.addHook('onRequest', async request => {
    try {
      if (isDraining()) throw new Failure('draining')
      if (request.ws) throw new Failure('malformed', { message: 'This is not where devices connect' })
      const caller = { address: request.ip, headers: request.headers }
      if (guard === undefined) protect(caller, 'guard')
      refuseForeign(caller, origins)
      if (guard && await guard(request) !== true) throw unlike(request)
    } catch (error) {
      const refused = outward(error, request.log)
      stats.count('refusals', refused instanceof Failure ? refused.reason : 'guard')
      throw refused
    }
  })
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
