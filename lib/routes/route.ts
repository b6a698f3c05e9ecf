import type { Static, TSchema } from '@sinclair/typebox'
import type { FastifyBaseLogger, FastifyInstance, FastifyReply, FastifyTypeProvider, RawReplyDefaultExpression, RawRequestDefaultExpression, RawServerDefault } from 'fastify'
import type { Devices } from '../devices.ts'
import type { Settings } from '../options.ts'

interface TypeBoxProvider extends FastifyTypeProvider {
  validator: this['schema'] extends TSchema ? Static<this['schema']> : unknown
}

export type App = FastifyInstance<RawServerDefault, RawRequestDefaultExpression, RawReplyDefaultExpression, FastifyBaseLogger, TypeBoxProvider>

/** One REST resource: each of its routes calls one thing that `app.devices` can do. */
export type Route = (app: App, context: { devices: Devices, settings: Settings }) => void

/** Aborts when the caller hangs up before it has its answer. */
export function hangUp (reply: Pick<FastifyReply, 'raw'>): AbortSignal {
  const controller = new AbortController()
  reply.raw.once('close', () => { if (!reply.raw.writableFinished) controller.abort() })
  return controller.signal
}
