import { Type } from '@sinclair/typebox'
import { routeAction } from './authorizer.ts'
import { operation } from './operation.ts'
import type { Route } from './route.ts'

const Incident = {
  id: Type.String({ description: 'Id of the event' }),
  type: Type.String(),
  deviceId: Type.String(),
  at: Type.Integer({ description: 'Milliseconds since 1970' })
}

const Webhook = Type.Object({
  name: Type.String(),
  url: Type.String({ description: 'Without credentials and query' }),
  types: Type.Array(Type.String()),
  state: Type.String({ description: '`sending`, `paused`, `disabled` or `no-sender`' }),
  node: Type.Optional(Type.String({ description: 'The node that sends' })),
  waiting: Type.Integer({ description: 'Events in the queue' }),
  inFlight: Type.Integer(),
  sent: Type.Integer(),
  deadLettered: Type.Integer(),
  dropped: Type.Integer(),
  lastFailure: Type.Optional(Type.Object({ ...Incident, reason: Type.String() })),
  lastDeadLetter: Type.Optional(Type.Object(Incident)),
  nextAttempt: Type.Optional(Type.Integer({ description: 'Milliseconds since 1970' }))
})

/** `/webhooks` */
export const webhooks: Route = (app, { devices }) => {
  app.get('/webhooks', {
    config: routeAction('webhooks'),
    schema: operation({ id: 'webhooks', tag: 'devices', summary: 'Describe the endpoints that get events', responses: { 200: Type.Object({ webhooks: Type.Array(Webhook) }) } })
  }, async () => ({ webhooks: await devices.webhooks() }))
}
