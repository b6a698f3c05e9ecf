import type { FastifyInstance } from 'fastify'
import type { Stats } from '../connection/stats.ts'
import type { Action } from '../gateway/authorize.ts'
import type { Settings } from '../gateway/options.ts'
import { Authorizer, authorizeRoutes, routeAction } from './authorizer.ts'
import { guardRest } from './guard.ts'

export interface Protection {
  settings: Settings
  stats: Stats
  isDraining: () => boolean
}

/** Refuses callers that `guard` or `authorize` refuses. Returns who asks `authorize`; undefined without the option. */
export function protectRest (scope: FastifyInstance, { settings, stats, isDraining }: Protection): Authorizer | undefined {
  const authorizer = settings.authorize && new Authorizer(scope, settings.authorize, stats)
  guardRest(scope, { settings, stats, isDraining, authorizer })
  authorizeRoutes(scope, authorizer)
  return authorizer
}

/** The same for routes that do not name their action. */
export function protectScope (scope: FastifyInstance, action: Action, protection: Protection): void {
  scope.addHook('onRoute', route => { route.config = { ...route.config, ...routeAction(action) } })
  protectRest(scope, protection)
}
