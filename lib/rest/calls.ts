import { Type } from '@sinclair/typebox'
import { routeAction } from './authorizer.ts'
import { paramsOf } from './body.ts'
import { HangUp, type Route } from './route.ts'
import { about, DeviceParams, milliseconds, Seconds } from './schemas.ts'

/** `/devices/:id/calls` */
export const calls: Route = (app, { devices, settings }) => {
  app.post('/devices/:id/calls/:method', {
    config: routeAction('call'),
    schema: {
      ...about('calls', 'Call a method of a device', { 200: Type.Unknown({ description: 'The result of the method' }) }),
      params: Type.Composite([DeviceParams, Type.Object({ method: Type.String() })]),
      querystring: Type.Object({ timeout: Type.Optional(Seconds('Seconds to wait for the answer', settings.maxTimeout)) })
    }
  }, async (request, reply) => {
    const { id, method } = request.params
    const timeout = milliseconds(request.query.timeout)
    const result = await devices.call(id, method, paramsOf(request, settings.maxDepth), { timeout, signal: new HangUp(reply) })
    const { bytes, rest } = splitBytes(result)
    if (bytes && !rest) return await reply.type('application/octet-stream').send(bytes)
    const body = bytes ? { ...rest, base64: Buffer.from(bytes).toString('base64') } : result
    return await reply.type('application/json; charset=utf-8').send(JSON.stringify(body))
  })
}

/** Separates the bytes of a result, which came in a binary frame, from its other members. */
function splitBytes (result: unknown): { bytes?: Uint8Array, rest?: object } {
  if (typeof result !== 'object' || result === null || !('data' in result)) return {}
  const { data, ...rest } = result
  if (!(data instanceof Uint8Array)) return {}
  return Object.keys(rest).length > 0 ? { bytes: data, rest } : { bytes: data }
}
