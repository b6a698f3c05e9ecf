import { Type } from '@sinclair/typebox'
import { routeAction } from './authorizer.ts'
import { messageOf } from './body.ts'
import { jsonSchemaOf } from '../gateway/json-schema.ts'
import { answerFailures, bodyFailures, messageBody, operation } from './operation.ts'
import { DeviceParams, FullReceipt, Limit, MessageParams, milliseconds, Receipt, Seconds } from './schemas.ts'
import { HangUp, type Route } from './route.ts'

const Page = Type.Object({ messages: Type.Array(FullReceipt), cursor: Type.Optional(Type.Integer({ description: 'Cursor of the next page' })) })

/** `/devices/:id/messages` */
export const messages: Route = (app, { devices, dispatcher, settings }) => {
  app.post('/devices/:id/messages', {
    config: routeAction('send'),
    schema: {
      ...operation({
        id: 'send', tag: 'messages', summary: 'Send a message to a device', responses: { 200: Receipt, 202: Receipt },
        failures: [...answerFailures, ...bodyFailures, 'mailbox-full', 'key-mismatch', 'settled', 'store-full'],
        document: { body: messageBody(jsonSchemaOf(settings.contract?.message, 'input'), 'The message') }
      }),
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
      signal: confirm ? new HangUp(reply) : undefined,
      request
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
      ...operation({ id: 'letters', tag: 'messages', summary: 'List the letters that wait for a device', responses: { 200: Page }, failures: ['store-full'] }),
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
      ...operation({ id: 'purge', tag: 'messages', summary: 'Cancel all letters that wait for a device', responses: { 200: Type.Object({ cancelled: Type.Integer() }) }, failures: ['store-full'] }),
      params: DeviceParams
    }
  }, async ({ params }) => ({ cancelled: await devices.purge(params.id) }))

  app.get('/devices/:id/messages/:messageId', {
    config: routeAction('receipt'),
    schema: { ...operation({ id: 'receipt', tag: 'messages', summary: 'Get the receipt of a letter', responses: { 200: FullReceipt }, failures: ['unknown-message', 'store-full'] }), params: MessageParams }
  }, async ({ params }) => await devices.receipt(params.id, params.messageId))

  app.delete('/devices/:id/messages/:messageId', {
    config: routeAction('cancel'),
    schema: { ...operation({ id: 'cancel', tag: 'messages', summary: 'Cancel a letter that waits', responses: { 200: FullReceipt }, failures: ['unknown-message', 'settled', 'store-full'] }), params: MessageParams }
  }, async ({ params }) => await devices.cancel(params.id, params.messageId))
}
