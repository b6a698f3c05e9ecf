import { Type } from '@sinclair/typebox'
import { routeAction } from './authorizer.ts'
import type { Route } from './route.ts'
import { operation, ownerFailures } from './operation.ts'
import { DeviceParams, Limit } from './schemas.ts'

const Presence = Type.Object({
  deviceId: Type.String(),
  node: Type.String(),
  generation: Type.Integer(),
  since: Type.Integer({ description: 'Milliseconds since 1970' })
})

const LastDisconnect = Type.Object({ code: Type.Integer(), reason: Type.String(), at: Type.Integer() })

const Details = Type.Object({
  deviceId: Type.String(),
  connected: Type.Boolean(),
  node: Type.Optional(Type.String()),
  generation: Type.Optional(Type.Integer({ description: 'Grows with every connection' })),
  since: Type.Optional(Type.Integer({ description: 'Milliseconds since 1970' })),
  address: Type.Optional(Type.String()),
  localAddress: Type.Optional(Type.String()),
  protocol: Type.Optional(Type.String()),
  topics: Type.Optional(Type.Array(Type.String())),
  inFlight: Type.Optional(Type.Integer({ description: 'Calls in flight, in both directions' })),
  waiting: Type.Integer({ description: 'Number of letters that wait' }),
  lastDisconnect: Type.Optional(LastDisconnect)
})

const Page = Type.Object({ devices: Type.Array(Presence), cursor: Type.Optional(Type.String({ description: 'Cursor of the next page' })) })

/** `/devices` */
export const devices: Route = (app, { devices }) => {
  app.get('/devices', {
    config: routeAction('list'),
    schema: {
      ...operation({ id: 'list', tag: 'devices', summary: 'List the connected devices of all nodes', responses: { 200: Page }, failures: ['bad-topic'] }),
      querystring: Type.Object({
        limit: Limit,
        cursor: Type.Optional(Type.String()),
        prefix: Type.Optional(Type.String({ description: 'Only devices whose ids begin with this' })),
        topic: Type.Optional(Type.String({ description: 'Only devices that are subscribed to this topic' }))
      })
    }
  }, async ({ query: { limit, cursor, prefix, topic } }) => {
    const page = await devices.list({ limit: limit + 1, after: cursor, prefix, topic })
    const devicesOnPage = page.slice(0, limit)
    return { devices: devicesOnPage, ...(page.length > limit && { cursor: devicesOnPage.at(-1)!.deviceId }) }
  })

  app.get('/devices/:id', {
    config: routeAction('describe'),
    schema: { ...operation({ id: 'describe', tag: 'devices', summary: 'Describe a device', responses: { 200: Details }, failures: [...ownerFailures, 'store-full'] }), params: DeviceParams }
  }, async ({ params }) => await devices.describe(params.id))

  app.delete('/devices/:id', {
    config: routeAction('disconnect'),
    schema: { ...operation({ id: 'disconnect', tag: 'devices', summary: 'End the connection of a device', responses: { 204: Type.Null() }, failures: ownerFailures }), params: DeviceParams }
  }, async ({ params }, reply) => {
    await devices.disconnect(params.id)
    return await reply.code(204).send()
  })
}
