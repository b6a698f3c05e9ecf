import { pipeline, Readable } from 'node:stream'
import { Type } from '@sinclair/typebox'
import { TypeCompiler, type ValueError } from '@sinclair/typebox/compiler'
import { Failure } from '../protocol/errors.ts'
import { isSafeJson } from '../protocol/safe-json.ts'
import type { Settings } from '../gateway/options.ts'
import type { BulkMessage } from '../messaging/bulk.ts'
import { BulkStream } from './bulk-stream.ts'
import { hangUp, type Route } from './route.ts'
import { about, milliseconds, Seconds } from './schemas.ts'

/** `/messages`: many sends in one request, a line each, and a receipt line each, in order. */
export const bulk: Route = (app, { dispatcher, settings }) => {
  const read = reader(settings)

  app.register(async scope => {
    scope.removeAllContentTypeParsers()
    scope.addContentTypeParser('application/x-ndjson', (_request, payload, done) => done(null, payload))
    scope.addContentTypeParser('*', (_request, _payload, done) => done(new Failure('bad-type', { message: 'Send application/x-ndjson' })))

    scope.post('/messages', {
      bodyLimit: Number.MAX_SAFE_INTEGER, // a stream; each line has its own limit
      schema: { ...about('messages', 'Send many messages, a line each, and get a receipt line each', {}), consumes: ['application/x-ndjson'] }
    }, async (request, reply) => {
      if (!(request.body instanceof Readable)) throw new Failure('malformed', { message: 'The body is the messages, and there is none' })
      const receipts = new BulkStream({ dispatcher, read, maxLength: settings.maxMessage, signal: hangUp(reply) })
      // when the one side is gone, so is the other, and whoever waits for the answer is told by the stream itself
      pipeline(request.body, receipts, () => {})
      return await reply.type('application/x-ndjson').send(receipts)
    })
  })
}

function reader (settings: Settings): (text: string) => BulkMessage | Failure {
  const Line = Type.Object({
    to: Type.String(),
    data: Type.Unknown(),
    ttl: Type.Optional(Seconds('', settings.maxTtl)),
    confirm: Type.Optional(Type.Boolean()),
    timeout: Type.Optional(Seconds('', settings.maxTimeout)),
    collapse: Type.Optional(Type.String({ maxLength: 255 })),
    key: Type.Optional(Type.String({ minLength: 1, maxLength: 255 }))
  }, { additionalProperties: false })
  const check = TypeCompiler.Compile(Line)

  return text => {
    const line = parse(text)
    if (line instanceof Failure) return line
    if (!check.Check(line)) return malformed(check.Errors(line).First()!)
    if (!isSafeJson(line.data, settings.maxDepth)) return new Failure('malformed')
    const { to, data, ttl, confirm, timeout, collapse, key } = line
    return { to, data, ttl: milliseconds(ttl), confirm, timeout: milliseconds(timeout), collapse, key }
  }
}

function malformed ({ path, message }: ValueError): Failure {
  return new Failure('malformed', { message: `line${path}: ${message}` })
}

function parse (text: string): unknown {
  try {
    return JSON.parse(text)
  } catch {
    return new Failure('unreadable')
  }
}
