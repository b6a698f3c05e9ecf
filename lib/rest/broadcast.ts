import { Type } from '@sinclair/typebox'
import { routeAction } from './authorizer.ts'
import { messageOf } from './body.ts'
import type { Route } from './route.ts'
import { bodyFailures, messageBody, operation } from './operation.ts'

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
      ...operation({
        id: 'broadcast', tag: 'messages', summary: 'Send a message to all devices, or to the subscribers of a topic', responses: { 200: BroadcastResult }, failures: ['bad-topic', ...bodyFailures], document: { body: messageBody({}, 'The message') }
      }),
      querystring: Type.Object({ topic: Type.Optional(Type.String()) })
    }
  }, async request => await devices.broadcast(messageOf(request, settings.maxDepth), { topic: request.query.topic, request }))
}
