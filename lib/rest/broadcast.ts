import { Type } from '@sinclair/typebox'
import { routeAction } from './authorizer.ts'
import { messageOf } from './body.ts'
import type { Route } from './route.ts'
import { about } from './schemas.ts'

const BroadcastResult = Type.Object({
  id: Type.String({ description: 'Message id' }),
  sent: Type.Integer({ description: 'Number of devices it was sent to' }),
  nodes: Type.Integer({ description: 'Number of nodes it reached' })
})

/** `/broadcast` */
export const broadcast: Route = (app, { devices, settings }) => {
  app.post('/broadcast', {
    config: routeAction('broadcast'),
    schema: {
      ...about('messages', 'Send a message to all devices, or to the subscribers of a topic', { 200: BroadcastResult }),
      consumes: ['application/json', 'text/plain', 'application/octet-stream'],
      querystring: Type.Object({ topic: Type.Optional(Type.String()) })
    }
  }, async request => await devices.broadcast(messageOf(request, settings.maxDepth), { topic: request.query.topic }))
}
