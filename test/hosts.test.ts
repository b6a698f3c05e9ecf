import swagger from '@fastify/swagger'
import { Type, TypeBoxValidatorCompiler } from '@fastify/type-provider-typebox'
import { Validator } from '@seriousme/openapi-schema-validator'
import Fastify, { type FastifyInstance } from 'fastify'
import { jsonSchemaTransform, serializerCompiler, validatorCompiler } from 'fastify-type-provider-zod'
import t from 'tap'
import { z } from 'zod'
import devices from '../lib/index.ts'

interface Host {
  /** Sets the compilers of the host. */
  compilers: (app: FastifyInstance) => void
  /** The schemas of a route of the host: a query with a count, and a result. */
  query: object
  result: object
  transform?: typeof jsonSchemaTransform
}

const json = { query: { type: 'object', properties: { count: { type: 'integer' } }, required: ['count'] }, result: { type: 'object', properties: { count: { type: 'integer' } } } }

const hosts: Record<string, Host> = {
  default: { compilers: () => {}, ...json },
  strict: { compilers: () => {}, ...json },
  Zod: {
    compilers: app => app.setValidatorCompiler(validatorCompiler).setSerializerCompiler(serializerCompiler),
    query: z.object({ count: z.coerce.number().int() }),
    result: z.object({ count: z.number() }),
    transform: jsonSchemaTransform
  },
  'TypeBox 1': {
    compilers: app => app.setValidatorCompiler(TypeBoxValidatorCompiler),
    query: Type.Object({ count: Type.Integer() }),
    result: Type.Object({ count: Type.Integer() })
  }
}

/** Requests of the REST routes, in order: each needs its schemas. */
const requests: Array<[method: 'GET' | 'POST' | 'PUT' | 'DELETE', url: string, payload?: string | object, type?: string]> = [
  ['GET', '/devices'], ['GET', '/devices?limit=2'], ['GET', '/devices?limit=0'], ['GET', '/devices?limit=many'], ['GET', '/devices?limit=Infinity'],
  ['POST', '/devices/d/messages', { a: 1 }], ['POST', '/devices/d/messages?ttl=60&collapse=c', { a: 1 }], ['POST', '/devices/d/messages?ttl=x', { a: 1 }],
  ['POST', '/devices/d/messages?ttl=60', 'text', 'text/plain'], ['GET', '/devices/d'], ['GET', '/devices/d/messages?limit=1'], ['GET', '/devices/b a d/messages'],
  ['GET', '/devices/d/messages/none'], ['DELETE', '/devices/d/messages'], ['DELETE', '/devices/d'], ['PUT', '/devices/d/topics/a%2Fb'], ['PUT', '/devices/d/topics/%23%23'],
  ['POST', '/devices/d/calls/m?timeout=1', {}], ['POST', '/devices/d/calls/m?timeout=-1', {}], ['POST', '/broadcast?topic=a', { a: 1 }],
  ['POST', '/messages', '{"to":"d","data":1}\n{"to":"d"}\n', 'application/x-ndjson']
]

/** The answers, without what differs from run to run. */
async function answersOf (app: FastifyInstance): Promise<unknown[]> {
  const answers: unknown[] = []
  for (const [method, url, payload, type] of requests) {
    const { statusCode, body } = await app.inject({ method, url, ...(payload !== undefined && { payload }), ...(type && { headers: { 'content-type': type } }) })
    answers.push([method, url, statusCode, body.replaceAll(/"(id|cursor|node)":"[^"]*"/g, '"$1":""').replaceAll(/"(at|expiresAt)":\d+/g, '"$1":0')])
  }
  return answers
}

let expected: unknown[] | undefined

for (const [name, { compilers, query, result, transform }] of Object.entries(hosts)) {
  for (const order of ['before', 'after'] as const) {
    for (const documents of [true, false]) {
      t.test(`host: ${name}, compilers set ${order} the plugin, ${documents ? 'with' : 'without'} swagger`, async t => {
        const app = Fastify(name === 'strict' ? { ajv: { customOptions: { coerceTypes: false, removeAdditional: false } } } : {})
        t.teardown(() => app.close())
        if (documents) await app.register(swagger, { openapi: { openapi: '3.1.0', info: { title: 'host', version: '1' } }, ...(transform && { transform }) })
        if (order === 'before') compilers(app)
        await app.register(devices)
        if (order === 'after') compilers(app)
        await app.register(async scope => {
          scope.get('/own', { schema: { querystring: query, response: { 200: result } } }, async ({ query }) => name === 'strict' ? { count: 2 } : query)
        })
        await app.ready()

        const answers = await answersOf(app)
        t.strictSame(answers, expected ??= answers)
        const own = await app.inject('/own?count=2')
        t.strictSame([own.statusCode, name === 'strict' || own.json().count], name === 'strict' ? [400, true] : [200, 2], 'the compilers of the host are its own')
        if (documents) {
          const document = app.swagger() as { paths: Record<string, object> }
          const { valid, errors } = await new Validator().validate(structuredClone(document))
          t.ok(valid, JSON.stringify(errors))
          t.ok(document.paths['/devices/{id}/messages'] && document.paths['/own'])
          const { parameters } = (document.paths['/devices'] as { get: { parameters: Array<{ name: string, required?: boolean }> } }).get
          t.strictSame(parameters.filter(({ required }) => required), [], 'all parameters of the list may be left out')
        }
      })
    }
  }
}

t.test('the answers compared above are those that are documented', async t => {
  t.strictSame((expected as unknown[][]).map(([, , status]) => status), [
    200, 200, 400, 400, 400, 404, 202, 400, 202, 200, 200, 400, 404, 200, 404, 404, 404, 404, 400, 200, 200
  ])
})
