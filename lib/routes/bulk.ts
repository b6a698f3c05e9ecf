import { Readable } from 'node:stream'
import { setImmediate } from 'node:timers/promises'
import { Type, type Static } from '@sinclair/typebox'
import { TypeCompiler } from '@sinclair/typebox/compiler'
import type { Addressed } from '../devices.ts'
import { Failure } from '../errors.ts'
import { isDeviceId } from '../introduction.ts'
import { isSound } from '../json.ts'
import type { Settings } from '../options.ts'
import { hangUp, type Route } from './route.ts'
import { about, milliseconds, Seconds } from './schemas.ts'

/** Lines after which others get their turn. */
const BREATH = 64

/** `/messages`: many sends in one request, a line each, and a receipt line each, in order. */
export const bulk: Route = (app, { devices, settings }) => {
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
      const lines = linesOf(request.body, settings.maxMessage)
      return await reply.type('application/x-ndjson').send(Readable.from(receiptsOf(devices.sendMany(read(lines), { signal: hangUp(reply) }))))
    })
  })
}

function reader (settings: Settings): (lines: AsyncIterable<string | Failure>) => AsyncGenerator<Addressed | Failure> {
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

  return async function * (lines) {
    let read = 0
    for await (const text of lines) {
      if (++read % BREATH === 0) await setImmediate()
      const line = text instanceof Failure ? text : parse(text)
      if (line instanceof Failure) yield line
      else if (!check.Check(line) || !isDeviceId(line.to) || !isSound(line.data, settings.maxDepth)) yield new Failure('malformed')
      else yield toAddressed(line)
    }
  }

  function toAddressed ({ ttl, timeout, ...rest }: Static<typeof Line>): Addressed {
    return { ...rest, ttl: milliseconds(ttl), timeout: milliseconds(timeout) }
  }
}

function parse (text: string): unknown {
  try {
    return JSON.parse(text)
  } catch {
    return new Failure('unreadable')
  }
}

/** Lines of a stream, the empty ones left out; one that is too long is a failure, and is not kept. */
async function * linesOf (stream: AsyncIterable<Buffer>, maxLength: number): AsyncGenerator<string | Failure> {
  let parts: Buffer[] = []
  let length = 0
  for await (const chunk of stream) {
    let start = 0
    for (let end = chunk.indexOf(0x0a); end !== -1; end = chunk.indexOf(0x0a, start)) {
      const line = take(chunk.subarray(start, end))
      if (line !== '') yield line
      start = end + 1
    }
    add(chunk.subarray(start))
  }
  const last = take(Buffer.alloc(0))
  if (last !== '') yield last

  function add (part: Buffer): void {
    length += part.length
    if (length <= maxLength) parts.push(part)
    else parts = []
  }

  function take (part: Buffer): string | Failure {
    add(part)
    const line = length > maxLength ? new Failure('too-large') : Buffer.concat(parts).toString().trim()
    parts = []
    length = 0
    return line
  }
}

async function * receiptsOf (results: AsyncIterable<object>): AsyncGenerator<string> {
  for await (const result of results) {
    yield JSON.stringify(result instanceof Failure ? errorOf(result) : result) + '\n'
  }
}

function errorOf ({ statusCode, code, message, device }: Failure): object {
  return { statusCode, code, message, ...(device && { device }) }
}
