import { Type } from '@sinclair/typebox'
import { messageOf } from './body.ts'
import type { Route } from './route.ts'
import { about } from './schemas.ts'

const Reach = Type.Object({
  id: Type.String({ description: 'Message id' }),
  sent: Type.Integer({ description: 'Devices it was handed to' }),
  nodes: Type.Integer({ description: 'Nodes that heard it' })
})

/** `/broadcast` */
export const broadcast: Route = (app, { devices, settings }) => {
  app.post('/broadcast', {
    schema: {
      ...about('messages', 'Send a message to all devices, or to those that listen to a topic', { 200: Reach }),
      consumes: ['application/json', 'text/plain', 'application/octet-stream'],
      querystring: Type.Object({ topic: Type.Optional(Type.String()) })
    }
  }, async request => await devices.broadcast(messageOf(request, settings.maxDepth), { topic: request.query.topic }))
}
