import { pipeline, Readable } from 'node:stream'
import { Type } from '@sinclair/typebox'
import { TypeCompiler, type ValueError } from '@sinclair/typebox/compiler'
import type { FastifyRequest } from 'fastify'
import { isDeviceId } from '../protocol/device-id.ts'
import { Failure } from '../protocol/errors.ts'
import { isSafeJson } from '../protocol/safe-json.ts'
import type { Settings } from '../gateway/options.ts'
import type { BulkMessage } from '../messaging/bulk.ts'
import { routeAction, type Authorizer } from './authorizer.ts'
import { BulkStream } from './bulk-stream.ts'
import { hangUp, type Route } from './route.ts'
import { failureOf } from './refusal.ts'
import { operation } from './operation.ts'
import { milliseconds, Receipt, Seconds } from './schemas.ts'

const NDJSON = 'application/x-ndjson'

const LineError = Type.Object({ statusCode: Type.Integer(), code: Type.String(), message: Type.String(), device: Type.Optional(Type.Unknown()) })

/** `/messages`: many messages in one request, one per line, answered by one receipt per line, in order. */
export const bulk: Route = (app, { dispatcher, settings, authorizer }) => {
  const parseLine = lineParser(settings)

  app.register(async scope => {
    scope.removeAllContentTypeParsers()
    scope.addContentTypeParser(NDJSON, (_request, payload, done) => done(null, payload))
    scope.addContentTypeParser('*', (_request, _payload, done) => done(new Failure('bad-type', { message: 'Send application/x-ndjson' })))

    scope.post('/messages', {
      config: routeAction('send', { eachLine: true }),
      bodyLimit: Number.MAX_SAFE_INTEGER, // a stream; each line has its own limit
      schema: {
        ...operation({
          id: 'sendMany', tag: 'messages', summary: 'Send many messages, one per line; the response has one line per message',
          responses: {},
          failures: ['bad-type'],
          document: {
            body: { description: 'Each line is a message', content: { [NDJSON]: { schema: lineSchema(settings) } } },
            response: { 200: { description: 'Each line is a receipt, or an error', content: { [NDJSON]: { schema: Type.Union([Receipt, LineError]) } } } }
          }
        })
      }
    }, async (request, reply) => {
      if (!(request.body instanceof Readable)) throw new Failure('malformed', { message: 'The body is the messages, and it is missing' })
      const parse = authorizer ? authorizedParser(parseLine, request, authorizer) : parseLine
      const receipts = new BulkStream({ dispatcher, parse, maxLength: settings.maxMessage, signal: hangUp(reply), request })
      // `pipeline` destroys both streams when one fails; Fastify reports the error of the response stream
      pipeline(request.body, receipts, () => {})
      return await reply.type(NDJSON).send(receipts)
    })
  })
}

type LineParser = (text: string) => BulkMessage | Failure

/** Asks for each line whether the caller may send to its device. */
function authorizedParser (parse: LineParser, request: FastifyRequest, authorizer: Authorizer): (text: string) => ReturnType<LineParser> | Promise<ReturnType<LineParser>> {
  return text => {
    const line = parse(text)
    if (line instanceof Failure || !isDeviceId(line.to)) return line
    const refusal = authorizer.refusal(request, { action: 'send', deviceId: line.to })
    const outcomeOf = (refusal: Error | undefined) => refusal ? failureOf(refusal) : line
    return refusal instanceof Promise ? refusal.then(outcomeOf) : outcomeOf(refusal)
  }
}

const lineSchema = (settings: Settings) => Type.Object({
  to: Type.String(),
  data: Type.Unknown(),
  ttl: Type.Optional(Seconds('', settings.maxTtl)),
  confirm: Type.Optional(Type.Boolean()),
  timeout: Type.Optional(Seconds('', settings.maxTimeout)),
  collapse: Type.Optional(Type.String({ maxLength: 255 })),
  key: Type.Optional(Type.String({ minLength: 1, maxLength: 255 }))
}, { additionalProperties: false })

function lineParser (settings: Settings): LineParser {
  const check = TypeCompiler.Compile(lineSchema(settings))

  return text => {
    const line = jsonOf(text)
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

function jsonOf (text: string): unknown {
  try {
    return JSON.parse(text)
  } catch {
    return new Failure('unreadable')
  }
}
