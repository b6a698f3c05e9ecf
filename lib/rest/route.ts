import type { Static, TSchema } from '@sinclair/typebox'
import type { ServerResponse } from 'node:http'
import type { FastifyBaseLogger, FastifyInstance, FastifyReply, FastifyTypeProvider, RawReplyDefaultExpression, RawRequestDefaultExpression, RawServerDefault } from 'fastify'
import type { Devices } from '../gateway/devices.ts'
import type { Settings } from '../gateway/options.ts'
import type { Dispatcher } from '../messaging/dispatcher.ts'
import type { CallSignal } from '../protocol/peer.ts'
import type { Authorizer } from './authorizer.ts'
import type { EventFeed } from './event-stream.ts'

interface TypeBoxProvider extends FastifyTypeProvider {
  validator: this['schema'] extends TSchema ? Static<this['schema']> : unknown
}

export type App = FastifyInstance<RawServerDefault, RawRequestDefaultExpression, RawReplyDefaultExpression, FastifyBaseLogger, TypeBoxProvider>

export interface RouteContext {
  devices: Devices
  dispatcher: Dispatcher
  feed: EventFeed
  settings: Settings
  /** Undefined without the option `authorize`. */
  authorizer: Authorizer | undefined
}

/** Adds the routes of one REST resource. Each route calls one method of `app.devices`, which its `config` names, or of the dispatcher. */
export type Route = (app: App, context: RouteContext) => void

/** Aborts when the caller disconnects before the response is complete. */
export function hangUp (reply: Pick<FastifyReply, 'raw'>): AbortSignal {
  const controller = new AbortController()
  reply.raw.once('close', () => { if (!reply.raw.writableFinished) controller.abort() })
  return controller.signal
}

/** The same for one call. A real `AbortSignal` costs half as much as the call itself. */
export class HangUp implements CallSignal {
  readonly #response: ServerResponse
  #listener: (() => void) | undefined

  constructor ({ raw }: Pick<FastifyReply, 'raw'>) {
    this.#response = raw
  }

  get aborted (): boolean {
    return this.#response.destroyed && !this.#response.writableFinished
  }

  addEventListener (_type: 'abort', listener: () => void): void {
    this.#listener = listener
    this.#response.once('close', () => { if (!this.#response.writableFinished) this.#listener?.() })
  }

  removeEventListener (): void {
    this.#listener = undefined
  }
}
