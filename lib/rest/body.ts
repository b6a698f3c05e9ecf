import type { FastifyInstance, FastifyRequest } from 'fastify'
import { Failure } from '../protocol/errors.ts'
import { isSafeJson } from '../protocol/safe-json.ts'

/** The message is the body, whatever its content type: JSON as it is, text, or bytes. What the host parses does not count here. */
export function acceptBodies (app: FastifyInstance): void {
  app.removeAllContentTypeParsers()
  app.addContentTypeParser('application/json', { parseAs: 'string' }, app.getDefaultJsonParser('error', 'error'))
  app.addContentTypeParser(/^text\//, { parseAs: 'string' }, (_request, body, done) => done(null, body))
  app.addContentTypeParser('application/octet-stream', { parseAs: 'buffer' }, (_request, body, done) => done(null, body))
  app.addContentTypeParser('*', (_request, _payload, done) => done(new Failure('bad-type')))
}

/** The message of a request; one without a body is none. */
export function messageOf (request: FastifyRequest, maxDepth: number): unknown {
  const { body } = request
  if (body === undefined) throw new Failure('malformed', { message: 'The body is the message, and there is none' })
  return sound(body, maxDepth)
}

/** The params of a call; they may be left out. */
export function paramsOf (request: FastifyRequest, maxDepth: number): unknown {
  const { body } = request
  if (body === undefined) return undefined
  if (body instanceof Uint8Array) return { data: body }
  return sound(body, maxDepth)
}

function sound (body: unknown, maxDepth: number): unknown {
  if (!(body instanceof Uint8Array) && !isSafeJson(body, maxDepth)) throw new Failure('malformed', { message: 'The body is nested too deep' })
  return body
}
