import type { FastifyInstance, FastifyRequest } from 'fastify'
import { Failure } from '../protocol/errors.ts'
import { isSafeJson } from '../protocol/safe-json.ts'

/** The body is the message: JSON, text or bytes. The scope has parsers of its own in place of those of the host. */
export function acceptBodies (app: FastifyInstance): void {
  app.removeAllContentTypeParsers()
  app.addContentTypeParser('application/json', { parseAs: 'string' }, app.getDefaultJsonParser('error', 'error'))
  app.addContentTypeParser(/^text\//, { parseAs: 'string' }, (_request, body, done) => done(null, body))
  app.addContentTypeParser('application/octet-stream', { parseAs: 'buffer' }, (_request, body, done) => done(null, body))
  app.addContentTypeParser('*', (_request, _payload, done) => done(new Failure('bad-type')))
}

/** The message of a request. Throws if there is no body. */
export function messageOf (request: FastifyRequest, maxDepth: number): unknown {
  const { body } = request
  if (body === undefined) throw new Failure('malformed', { message: 'The body is the message, and it is missing' })
  return checkedBody(body, maxDepth)
}

/** The params of a call; undefined without a body. */
export function paramsOf (request: FastifyRequest, maxDepth: number): unknown {
  const { body } = request
  if (body === undefined) return undefined
  if (body instanceof Uint8Array) return { data: body }
  return checkedBody(body, maxDepth)
}

function checkedBody (body: unknown, maxDepth: number): unknown {
  if (!(body instanceof Uint8Array) && !isSafeJson(body, maxDepth)) throw new Failure('malformed', { message: 'The body is nested too deeply' })
  return body
}
