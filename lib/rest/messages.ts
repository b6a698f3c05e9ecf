import { Type } from '@sinclair/typebox'
import { routeAction } from './authorizer.ts'
import { messageOf } from './body.ts'
import { about, DeviceParams, FullReceipt, Limit, MessageParams, milliseconds, Receipt, Seconds } from './schemas.ts'
import { HangUp, type Route } from './route.ts'

/** `/devices/:id/messages` */
export const messages: Route = (app, { devices, dispatcher, settings }) => {
  app.post('/devices/:id/messages', {
    config: routeAction('send'),
    schema: {
      ...about('messages', 'Send a message to a device', { 200: Receipt, 202: Receipt }),
      consumes: ['application/json', 'text/plain', 'application/octet-stream'],
      params: DeviceParams,
      querystring: Type.Object({
        ttl: Type.Optional(Seconds('Seconds that the message may wait for its device; with 0 it is sent now or not at all', settings.maxTtl)),
        confirm: Type.Optional(Type.Boolean({ description: 'Respond only when the device has acknowledged the message' })),
        timeout: Type.Optional(Seconds('Seconds to wait for the acknowledgement', settings.maxTimeout)),
        collapse: Type.Optional(Type.String({ maxLength: 255, description: 'Replaces a waiting letter with the same collapse key' }))
      }),
      headers: Type.Object({ 'idempotency-key': Type.Optional(Type.String({ minLength: 1, maxLength: 255 })) })
    }
  }, (request, reply) => {
    const { ttl, confirm, timeout, collapse } = request.query
    const { id } = request.params
    const sent = dispatcher.send(id, messageOf(request, settings.maxDepth), {
      ttl: milliseconds(ttl),
      confirm,
      timeout: milliseconds(timeout),
      collapse,
      key: request.headers['idempotency-key'],
      signal: confirm ? new HangUp(reply) : undefined
    })
    // sent at once: no promise, no extra turn
    if (!(sent instanceof Promise)) return sent
    return sent.then(receipt => {
      if (receipt.status === 'queued') reply.code(202).header('location', `${request.url.split('?')[0]}/${encodeURIComponent(receipt.id)}`)
      return receipt
    })
  })

  app.get('/devices/:id/messages', {
    config: routeAction('letters'),
    schema: {
      ...about('messages', 'List the letters that wait for a device', {
        200: Type.Object({ messages: Type.Array(FullReceipt), cursor: Type.Optional(Type.Integer({ description: 'Cursor of the next page' })) })
      }),
      params: DeviceParams,
      querystring: Type.Object({ limit: Limit, cursor: Type.Optional(Type.Integer({ minimum: 0 })) })
    }
  }, async ({ params, query }) => {
    const { receipts, next } = await devices.letters(params.id, { limit: query.limit, after: query.cursor })
    return { messages: receipts, ...(next !== undefined && { cursor: next }) }
  })

  app.delete('/devices/:id/messages', {
    config: routeAction('purge'),
    schema: {
      ...about('messages', 'Cancel all letters that wait for a device', { 200: Type.Object({ cancelled: Type.Integer() }) }),
      params: DeviceParams
    }
  }, async ({ params }) => ({ cancelled: await devices.purge(params.id) }))

  app.get('/devices/:id/messages/:messageId', {
    config: routeAction('receipt'),
    schema: { ...about('messages', 'Get the receipt of a letter', { 200: FullReceipt }), params: MessageParams }
  }, async ({ params }) => await devices.receipt(params.id, params.messageId))

  app.delete('/devices/:id/messages/:messageId', {
    config: routeAction('cancel'),
    schema: { ...about('messages', 'Cancel a letter that waits', { 200: FullReceipt }), params: MessageParams }
  }, async ({ params }) => await devices.cancel(params.id, params.messageId))
}
