import type { FastifyBaseLogger } from 'fastify'
import { Failure } from '../protocol/errors.ts'
import { refusalStatusOf } from '../protocol/user-code.ts'

/** The function of the application that decides. */
type Decider = 'guard' | 'authorize'

/** What the caller gets. The function may throw an error with a status below 500; any other error is logged, and the caller gets an internal error. */
export function refusalOf (decider: Decider, thrown: unknown, log: FastifyBaseLogger): Error {
  if (refusalStatusOf(thrown) !== undefined) return thrown as Error
  log.error({ err: thrown }, `${decider} failed`)
  return new Failure('internal')
}

/** Under which name a refusal is counted. */
export function reasonOf (decider: Decider, refusal: Error): string {
  return refusal instanceof Failure ? refusal.reason : decider
}

/** The same refusal as the outcome of one line. Never throws: what throws when it is read is an internal error. */
export function failureOf (refusal: Error): Failure {
  if (refusal instanceof Failure) return refusal
  try {
    const { statusCode, code, message } = refusal as Partial<Failure>
    return Object.assign(new Failure('forbidden', { message: String(message) }), { statusCode, ...(typeof code === 'string' && { code }) })
  } catch {
    return new Failure('internal')
  }
}
