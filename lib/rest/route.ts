import type { Static, TSchema } from '@sinclair/typebox'
import type { ServerResponse } from 'node:http'
import type { FastifyBaseLogger, FastifyInstance, FastifyReply, FastifyTypeProvider, RawReplyDefaultExpression, RawRequestDefaultExpression, RawServerDefault } from 'fastify'
import type { Devices } from '../gateway/devices.ts'
import type { Settings } from '../gateway/options.ts'
import type { Dispatcher } from '../messaging/dispatcher.ts'
import type { CallSignal } from '../protocol/peer.ts'

interface TypeBoxProvider extends FastifyTypeProvider {
  validator: this['schema'] extends TSchema ? Static<this['schema']> : unknown
}

export type App = FastifyInstance<RawServerDefault, RawRequestDefaultExpression, RawReplyDefaultExpression, FastifyBaseLogger, TypeBoxProvider>

/** One REST resource: each of its routes calls one thing that `app.devices` can do, or the dispatcher behind it. */
export type Route = (app: App, context: { devices: Devices, dispatcher: Dispatcher, settings: Settings }) => void

/** Aborts when the caller hangs up before it has its answer. */
export function hangUp (reply: Pick<FastifyReply, 'raw'>): AbortSignal {
  const controller = new AbortController()
  reply.raw.once('close', () => { if (!reply.raw.writableFinished) controller.abort() })
  return controller.signal
}

/** The same for one call. A whole `AbortSignal` costs as much as half of the call. */
export class HangUp implements CallSignal {
  readonly #response: ServerResponse
  #tell: (() => void) | undefined

  constructor ({ raw }: Pick<FastifyReply, 'raw'>) {
    this.#response = raw
  }

  get aborted (): boolean {
    return this.#response.destroyed && !this.#response.writableFinished
  }

  addEventListener (_type: 'abort', listener: () => void): void {
    this.#tell = listener
    this.#response.once('close', () => { if (!this.#response.writableFinished) this.#tell?.() })
  }

  removeEventListener (): void {
    this.#tell = undefined
  }
}
