import { Type } from '@sinclair/typebox'
import type { FastifyReply, FastifyRequest } from 'fastify'
import type { MethodSchemas } from '../protocol/contract.ts'
import { jsonSchemaOf } from '../gateway/json-schema.ts'
import { routeAction } from './authorizer.ts'
import { paramsOf } from './body.ts'
import { answerFailures, binary, bodyFailures, messageBody, operation } from './operation.ts'
import { HangUp, type Route } from './route.ts'
import { DeviceParams, milliseconds, Seconds } from './schemas.ts'

/** A method whose name can be part of a path. */
const PATH_METHOD = /^[A-Za-z0-9_][A-Za-z0-9_.-]*$/

/** `/devices/:id/calls`. The commands of the contract have routes of their own, for the OpenAPI document. */
export const calls: Route = (app, { devices, settings }) => {
  const querystring = Type.Object({ timeout: Type.Optional(Seconds('Seconds to wait for the answer', settings.maxTimeout)) })
  const failures = [...answerFailures, ...bodyFailures]

  app.post('/devices/:id/calls/:method', {
    config: routeAction('call'),
    schema: {
      ...operation({ id: 'call', tag: 'calls', summary: 'Call a method of a device', responses: {}, failures, document: { body: params, response: { 200: resultOf({ 'application/json': { schema: {} }, 'application/octet-stream': { schema: binary } }) } } }),
      params: Type.Composite([DeviceParams, Type.Object({ method: Type.String() })]),
      querystring
    }
  }, async (request, reply) => await call(request, reply, request.params.method))

  // a router that ignores case takes `Reboot` for the path of `reboot`, and methods are two
  const commands = app.initialConfig.routerOptions?.caseSensitive === false ? {} : settings.contract?.commands ?? {}
  for (const [method, schemas] of Object.entries(commands).filter(([name]) => PATH_METHOD.test(name))) {
    app.post(`/devices/:id/calls/${method}`, {
      config: routeAction('call', { method }),
      schema: {
        ...operation({ id: `call_${method}`, tag: 'calls', summary: `Call "${method}" of a device`, responses: {}, failures, document: documentOf(schemas) }),
        params: DeviceParams,
        querystring
      }
    }, async (request, reply) => await call(request, reply, method))
  }

  async function call (request: CallRequest, reply: FastifyReply, method: string): Promise<FastifyReply> {
    const options = { timeout: milliseconds(request.query.timeout), signal: new HangUp(reply), request }
    return await sendResult(reply, await devices.call(request.params.id, method, paramsOf(request, settings.maxDepth), options))
  }
}

type CallRequest = FastifyRequest & { params: { id: string }, query: { timeout?: number } }

const params = messageBody({ type: ['object', 'array'], items: {} }, 'The params: a JSON object, a JSON array, or bytes; none without a body')

const documentOf = ({ params, result }: MethodSchemas) => ({
  ...(params && { body: { content: { 'application/json': { schema: jsonSchemaOf(params, 'input') } } } }),
  response: { 200: resultOf({ 'application/json': { schema: jsonSchemaOf(result, 'output') } }) }
})

const resultOf = (content: object) => ({ description: 'The result of the method', content })

async function sendResult (reply: FastifyReply, result: unknown): Promise<FastifyReply> {
  const { bytes, rest } = splitBytes(result)
  if (bytes && !rest) return await reply.type('application/octet-stream').send(bytes)
  const body = bytes ? { ...rest, base64: Buffer.from(bytes).toString('base64') } : result
  return await reply.type('application/json; charset=utf-8').send(JSON.stringify(body ?? null))
}

/** Separates the bytes of a result, which came in a binary frame, from its other members. */
function splitBytes (result: unknown): { bytes?: Uint8Array, rest?: object } {
  if (typeof result !== 'object' || result === null || !('data' in result)) return {}
  const { data, ...rest } = result
  if (!(data instanceof Uint8Array)) return {}
  return Object.keys(rest).length > 0 ? { bytes: data, rest } : { bytes: data }
}
