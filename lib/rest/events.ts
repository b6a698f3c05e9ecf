import type { ServerHttp2Stream } from 'node:http2'
import { Type } from '@sinclair/typebox'
import type { FastifyReply } from 'fastify'
import { Failure } from '../protocol/errors.ts'
import { routeAction } from './authorizer.ts'
import { EventStream } from './event-stream.ts'
import { operation } from './operation.ts'
import type { Route } from './route.ts'

const EVENT_STREAM = 'text/event-stream'
/** Sent first: the time after which a client comes back. */
const RETRY_MS = 2_000
/** Time for a reader to take the last events when the application closes. */
const CLOSE_TIMEOUT_MS = 500

const headers = {
  'content-type': EVENT_STREAM,
  'cache-control': 'no-store, no-transform',
  'x-accel-buffering': 'no' // nginx passes each event on at once
}

/** `/events` */
export const events: Route = (app, { feed }) => {
  const description = `The types of events, separated by commas: ${feed.types.join(', ')}. All of them by default`

  app.get('/events', {
    config: routeAction('events'),
    schema: {
      ...operation({
        id: 'events', tag: 'events', summary: 'Read the events of devices and letters of all nodes, as server-sent events', responses: {}, failures: ['too-many-readers'],
        document: { response: { 200: { description: 'Each event is a DeviceEvent as JSON', content: { [EVENT_STREAM]: { schema: Type.String() } } } } }
      }),
      querystring: Type.Object({ types: Type.Optional(Type.String({ description })) }),
      headers: Type.Object({ 'last-event-id': Type.Optional(Type.String({ description: 'The id of the last event that the reader has' })) })
    }
  }, async (request, reply) => {
    const types = typesOf(request.query.types, feed.types)
    if (request.method === 'HEAD') return await reply.headers(headers).send()
    const after = request.headers['last-event-id']
    const stream = new EventStream({ open: reader => feed.open({ types, after }, reader), onEnd: () => finish(reply) })
    reply.raw.once('close', () => stream.destroy()) // whatever the hooks of the host do
    stream.push(`retry: ${RETRY_MS}\n`)
    // a kept-alive connection would delay the closing of the server after the stream has ended; HTTP/2 has no such header
    if (request.raw.httpVersionMajor === 1) reply.header('connection', 'close')
    return await reply.headers(headers).send(stream)
  })
}

/** All types if undefined. */
function typesOf (list: string | undefined, known: readonly string[]): ReadonlySet<string> | undefined {
  if (list === undefined) return undefined
  const types = list.split(',')
  const unknown = types.find(type => !known.includes(type))
  if (unknown !== undefined) throw new Failure('malformed', { message: `There is no event of type "${unknown}"` })
  return new Set(types)
}

/** The application closes: neither a reader that takes nothing nor an idle session of HTTP/2 delays it. */
function finish ({ raw }: Pick<FastifyReply, 'raw'>): void {
  const session = (raw as { stream?: ServerHttp2Stream }).stream?.session
  session?.close()
  const timer = setTimeout(() => (session ?? raw).destroy(), CLOSE_TIMEOUT_MS).unref()
  raw.once('close', () => clearTimeout(timer))
}
