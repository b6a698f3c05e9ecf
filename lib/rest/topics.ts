import { Type } from '@sinclair/typebox'
import { routeAction } from './authorizer.ts'
import type { Route } from './route.ts'
import { about, DeviceParams, Topics } from './schemas.ts'

const params = Type.Composite([DeviceParams, Type.Object({ '*': Type.String({ description: 'The topic filter; slashes may be encoded' }) })])

/** `/devices/:id/topics` */
export const topics: Route = (app, { devices }) => {
  app.put('/devices/:id/topics/*', {
    config: routeAction('join'),
    schema: { ...about('topics', 'Subscribe a device to a topic filter', { 200: Topics }), params }
  }, async ({ params }) => ({ topics: await devices.join(params.id, params['*']) }))

  app.delete('/devices/:id/topics/*', {
    config: routeAction('leave'),
    schema: { ...about('topics', 'Unsubscribe a device from a topic filter', { 200: Topics }), params }
  }, async ({ params }) => ({ topics: await devices.leave(params.id, params['*']) }))
}
