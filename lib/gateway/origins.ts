import type { IncomingHttpHeaders } from 'node:http'
import type { FastifyBaseLogger } from 'fastify'
import { Failure } from '../protocol/errors.ts'
import { isThenable } from '../protocol/peer.ts'
import { invoke } from '../protocol/user-code.ts'
import { hostIn, type Caller } from './caller.ts'

/** Foreign origins whose pages may connect: a list, or a function that decides. */
export type Origins = string[] | ((origin: string, headers: IncomingHttpHeaders) => boolean)

/** Browsers send the origin of a page. A page of another host is refused unless its origin is listed. */
export function refuseForeign ({ headers }: Caller, origins: Origins, log: FastifyBaseLogger): void {
  const { origin } = headers
  const host = hostIn(headers)
  if (origin === undefined || (host !== undefined && hostOf(origin) === host)) return
  if (typeof origins === 'function' ? allows(() => origins(origin, headers), log) : origins.includes(origin)) return
  throw new Failure('foreign-origin')
}

/** Only `true` admits a page. The function must answer at once: a promise is refused and logged as an error. */
function allows (decide: () => unknown, log: FastifyBaseLogger): boolean {
  const fail = (error: unknown) => log.error({ err: error }, 'origins failed')
  try {
    const answer = decide()
    if (!isThenable(answer)) return answer === true
    invoke(() => answer).catch(fail)
    fail(new TypeError('The function "origins" must return a boolean, not a promise'))
  } catch (error) {
    fail(error)
  }
  return false
}

function hostOf (origin: string): string | undefined {
  return URL.canParse(origin) ? new URL(origin).host : undefined
}
