import { Type } from '@sinclair/typebox'
import { paramsOf } from './body.ts'
import { hangUp, type Route } from './route.ts'
import { about, DeviceParams, Seconds } from './schemas.ts'

/** `/devices/:id/calls` */
export const calls: Route = (app, { devices, settings }) => {
  app.post('/devices/:id/calls/:method', {
    schema: {
      ...about('calls', 'Call a method of a device', { 200: Type.Unknown({ description: 'The result of the device' }) }),
      params: Type.Composite([DeviceParams, Type.Object({ method: Type.String() })]),
      querystring: Type.Object({ timeout: Type.Optional(Seconds('Seconds to wait for the answer', settings.maxTimeout)) })
    }
  }, async (request, reply) => {
    const { id, method } = request.params
    const { timeout = settings.callTimeout / 1_000 } = request.query
    const result = await devices.call(id, method, paramsOf(request, settings.maxDepth), { timeout: timeout * 1_000, signal: hangUp(reply) })
    const bytes = bytesOf(result)
    if (bytes) return await reply.type('application/octet-stream').send(bytes)
    return await reply.type('application/json; charset=utf-8').send(JSON.stringify(result))
  })
}

/** A result that is nothing but bytes leaves as bytes. */
function bytesOf (result: unknown): Uint8Array | undefined {
  if (typeof result !== 'object' || result === null || !('data' in result)) return undefined
  return result.data instanceof Uint8Array && Object.keys(result).length === 1 ? result.data : undefined
}
