import { Type } from '@sinclair/typebox'
import type { Route } from './route.ts'
import { about, DeviceParams, Topics } from './schemas.ts'

const params = Type.Composite([DeviceParams, Type.Object({ '*': Type.String({ description: 'The topic, its slashes as they are or encoded' }) })])

/** `/devices/:id/topics` */
export const topics: Route = (app, { devices }) => {
  app.put('/devices/:id/topics/*', {
    schema: { ...about('topics', 'Let a device listen to a topic', { 200: Topics }), params }
  }, async ({ params }) => ({ topics: await devices.join(params.id, params['*']) }))

  app.delete('/devices/:id/topics/*', {
    schema: { ...about('topics', 'Let a device no longer listen to a topic', { 200: Topics }), params }
  }, async ({ params }) => ({ topics: await devices.leave(params.id, params['*']) }))
}
