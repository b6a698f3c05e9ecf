import type { FastifyInstance } from 'fastify'
import type { Devices } from '../gateway/devices.ts'
import type { Dispatcher } from '../messaging/dispatcher.ts'
import { asyncapi } from './asyncapi.ts'
import { acceptBodies } from './body.ts'
import { broadcast } from './broadcast.ts'
import { bulk } from './bulk.ts'
import { calls } from './calls.ts'
import { useDefaultCompilers } from './compilers.ts'
import { devices } from './devices.ts'
import type { EventFeed } from './event-stream.ts'
import { events } from './events.ts'
import { hideInternalErrors } from './internal-errors.ts'
import { messages } from './messages.ts'
import { documentRoute } from './operation.ts'
import { protectRest, type Protection } from './protect.ts'
import { topics } from './topics.ts'
import { webhooks } from './webhooks.ts'

interface RestParts extends Protection {
  devices: Devices
  dispatcher: Dispatcher
  feed: EventFeed
}

const routes = [devices, messages, calls, topics, broadcast, bulk, asyncapi, events, webhooks]

/** Adds the REST routes to a scope of their own: its body parsers, compilers and hooks do not reach the host. */
export function addRestRoutes (scope: FastifyInstance, { devices, dispatcher, feed, settings, stats, isDraining }: RestParts): void {
  useDefaultCompilers(scope)
  acceptBodies(scope)
  const authorizer = protectRest(scope, { settings, stats, isDraining })
  hideInternalErrors(scope)
  scope.addHook('onRoute', route => {
    route.bodyLimit ??= settings.maxMessage
    documentRoute(route, scope.prefix)
  })
  for (const route of routes) route(scope.withTypeProvider(), { devices, dispatcher, feed, settings, authorizer })
}
