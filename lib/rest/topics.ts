import { Type } from '@sinclair/typebox'
import { routeAction } from './authorizer.ts'
import type { Route } from './route.ts'
import { operation, ownerFailures } from './operation.ts'
import { DeviceParams, Topics } from './schemas.ts'

const Filter = Type.String({ description: 'The topic filter; slashes may be encoded' })
/** Fastify has no name for the rest of a path; the OpenAPI document has. */
const document = { params: Type.Composite([DeviceParams, Type.Object({ topic: Filter })]) }

const params = Type.Composite([DeviceParams, Type.Object({ '*': Filter })])

/** `/devices/:id/topics` */
export const topics: Route = (app, { devices }) => {
  app.put('/devices/:id/topics/*', {
    config: routeAction('join'),
    schema: { ...operation({ id: 'join', tag: 'topics', summary: 'Subscribe a device to a topic filter', responses: { 200: Topics }, failures: [...ownerFailures, 'bad-topic', 'too-many-topics'], document }), params }
  }, async ({ params }) => ({ topics: await devices.join(params.id, params['*']) }))

  app.delete('/devices/:id/topics/*', {
    config: routeAction('leave'),
    schema: { ...operation({ id: 'leave', tag: 'topics', summary: 'Unsubscribe a device from a topic filter', responses: { 200: Topics }, failures: ownerFailures, document }), params }
  }, async ({ params }) => ({ topics: await devices.leave(params.id, params['*']) }))
}
