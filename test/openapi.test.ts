import { mkdir, mkdtemp, rm, writeFile } from 'node:fs/promises'
import { dirname, join } from 'node:path'
import { pathToFileURL } from 'node:url'
import swagger from '@fastify/swagger'
import { createConfig, lintFromString } from '@redocly/openapi-core'
import { Validator } from '@seriousme/openapi-schema-validator'
import { Type } from '@sinclair/typebox'
import Fastify, { type FastifyInstance } from 'fastify'
import openapiTS, { astToString } from 'openapi-typescript'
import t from 'tap'
import * as typebox1 from 'typebox'
import ts from 'typescript'
import { z } from 'zod'
import devices, { contract, memoryMailbox, type Options } from '../lib/index.ts'
import { root } from './root.ts'
import { outcomes, ROOM, settings } from './outcomes.ts'
import { connect, open, request } from './support.ts'

interface Operation {
  operationId: string
  requestBody?: { content: Record<string, { schema: object }> }
  responses: Record<string, { description: string, content?: Record<string, { schema: { properties?: { code?: { enum: string[] } } } }> }>
}

type Document = { paths: Record<string, Record<string, Operation>> }

const security = { openapi: '3.1.0', info: { title: 'host', version: '1' }, components: { securitySchemes: { bearer: { type: 'http', scheme: 'bearer' } } }, security: [{ bearer: [] }], servers: [{ url: 'https://api.host.test' }] }

async function documented (options: Options = {}, prepare: (app: FastifyInstance) => void = () => {}): Promise<FastifyInstance> {
  const app = Fastify()
  await app.register(swagger, { openapi: security } as object)
  prepare(app)
  await app.register(devices, options)
  return app
}

const documentOf = (app: FastifyInstance) => app.swagger() as unknown as Document

const kiosk = contract({
  commands: {
    reboot: { params: Type.Object({ delay: Type.Number() }), result: Type.Object({ at: Type.String() }) },
    show: { params: z.object({ text: z.string().default('') }), result: z.object({ shown: z.boolean() }).transform(({ shown }) => shown) },
    turn: { params: typebox1.Object({ degrees: typebox1.Number() }) },
    plain: { result: { type: 'string' } },
    'a/b': {},
    bare: {}
  },
  message: Type.Object({ show: Type.String() })
})

t.test('the linters of the field find no error in the OpenAPI document', async t => {
  for (const options of [{}, { contract: kiosk }]) {
    const app = Fastify()
    t.teardown(() => app.close())
    await app.register(swagger, { openapi: security } as object)
    for (const prefix of ['', '/v2']) await app.register(async scope => await scope.register(devices, { ...options, ...(prefix && { prefix: '/again' }) }), { prefix })
    await app.ready()
    const document = structuredClone(documentOf(app))
    const { valid, errors } = await new Validator().validate(structuredClone(document))
    t.ok(valid, JSON.stringify(errors))
    const problems = await lintFromString({ source: JSON.stringify(document), config: await createConfig({ extends: ['recommended'] }) })
    t.strictSame(problems.filter(({ severity }) => severity === 'error').map(({ message, location }) => [message, location[0]?.pointer]), [])
  }
})

t.test('every operation has an id, every body its content types, and every command of the contract a path', async t => {
  const app = await documented({ contract: kiosk })
  t.teardown(() => app.close())
  await app.ready()
  const { paths } = documentOf(app)
  const ids = Object.entries(paths).flatMap(([path, methods]) => Object.entries(methods).map(([method, { operationId }]) => [`${method} ${path}`, operationId]))
  t.strictSame(Object.fromEntries(ids), {
    'get /asyncapi.json': 'asyncapi',
    'get /webhooks': 'webhooks',
    'get /devices': 'list',
    'get /devices/{id}': 'describe',
    'delete /devices/{id}': 'disconnect',
    'post /devices/{id}/messages': 'send',
    'get /devices/{id}/messages': 'letters',
    'delete /devices/{id}/messages': 'purge',
    'get /devices/{id}/messages/{messageId}': 'receipt',
    'delete /devices/{id}/messages/{messageId}': 'cancel',
    'post /devices/{id}/calls/{method}': 'call',
    'post /devices/{id}/calls/bare': 'call_bare',
    'post /devices/{id}/calls/reboot': 'call_reboot',
    'post /devices/{id}/calls/show': 'call_show',
    'post /devices/{id}/calls/turn': 'call_turn',
    'post /devices/{id}/calls/plain': 'call_plain',
    'put /devices/{id}/topics/{topic}': 'join',
    'delete /devices/{id}/topics/{topic}': 'leave',
    'post /broadcast': 'broadcast',
    'post /messages': 'sendMany',
    'get /events': 'events'
  })
  const bodyOf = (path: string) => Object.keys(paths[path]!.post!.requestBody!.content)
  for (const path of ['/devices/{id}/messages', '/devices/{id}/calls/{method}', '/broadcast']) t.strictSame(bodyOf(path), ['application/json', 'text/plain', 'application/octet-stream'])
  t.strictSame(Object.keys(paths['/events']!.get!.responses['200']!.content!), ['text/event-stream'])
  t.strictSame(bodyOf('/messages'), ['application/x-ndjson'])
  t.strictSame(Object.keys(paths['/messages']!.post!.responses['200']!.content!), ['application/x-ndjson'])
  const schemas = (name: string) => {
    const { requestBody, responses } = paths[`/devices/{id}/calls/${name}`]!.post!
    return [requestBody?.content['application/json']!.schema, responses['200']!.content!['application/json']!.schema]
  }
  t.match(schemas('reboot'), [{ properties: { delay: { type: 'number' } } }, { properties: { at: { type: 'string' } } }])
  t.match(schemas('show'), [{ properties: { text: { type: 'string', default: '' } } }, {}])
  t.match(schemas('turn'), [{ properties: { degrees: { type: 'number' } } }, {}])
  t.match(schemas('plain'), [undefined, { type: 'string' }])
  t.match(paths['/devices/{id}/messages']!.post!.requestBody!.content['application/json']!.schema, { properties: { show: { type: 'string' } } })
})

t.test('references of a schema are resolved in the document, and what leads back to itself says nothing', async t => {
  interface Node { name: string, children: Node[] }
  const node: z.ZodType<Node> = z.lazy(() => z.object({ name: z.string(), children: z.array(node) }))
  const foreign = () => ({ properties: { a: { enum: [1, [2]] }, b: { $ref: '#/none/at/all' }, c: { $ref: 'none' } } })
  const app = await documented({
    contract: contract({
      commands: {
        zod: { params: z.object({ root: node }) },
        typebox: { params: Type.Object({ tree: Type.Recursive(This => Type.Object({ name: Type.String(), child: Type.Optional(This) })) }) },
        json: { params: { type: 'object', properties: { a: { $ref: '#/definitions/a~1b' } }, definitions: { 'a/b': { type: 'string' } } } },
        named: { params: Type.Object({ definitions: Type.String(), $id: Type.Number() }) },
        foreign: { params: { '~standard': { version: 1 as const, vendor: 'test', validate: (value: unknown) => ({ value }), jsonSchema: { input: foreign, output: foreign } } } }
      }
    })
  })
  t.teardown(() => app.close())
  await app.ready()
  const text = JSON.stringify([app.swagger(), app.devices.asyncapi()])
  t.strictSame([...text.matchAll(/"\$ref":"(?<ref>[^"]*)"/g)].map(({ groups }) => groups!.ref!).filter(ref => !ref.startsWith('#/channels/')), [])
  const bodyOf = (name: string) => documentOf(app).paths[`/devices/{id}/calls/${name}`]!.post!.requestBody!.content['application/json']!.schema
  t.match(bodyOf('zod'), { properties: { root: { properties: { name: { type: 'string' }, children: { type: 'array', items: {} } } } } })
  t.match(bodyOf('typebox'), { properties: { tree: { properties: { name: { type: 'string' }, child: {} } } } })
  t.strictSame(bodyOf('json'), { type: 'object', properties: { a: { type: 'string' } } })
  t.strictSame(Object.keys((bodyOf('named') as { properties: object }).properties), ['definitions'], 'a member of a value may have the name of one of a schema; $id would stop the document')
  t.strictSame(bodyOf('foreign'), { properties: { a: { enum: [1, [2]] }, b: {}, c: {} } })
})

t.test('every status and code that a route answers with is in its document', async t => {
  const answers = new Map<string, { route: string, method: string, status: string, code: string | undefined }>()
  const app = await documented({ ...settings, mailbox: memoryMailbox({ maxBytes: ROOM }) }, app => {
    app.addHook('onSend', async ({ method, routeOptions }, { statusCode }, payload) => {
      const code = statusCode >= 400 ? JSON.parse(String(payload)).code : undefined
      const answer = { route: routeOptions.url!, method: method.toLowerCase(), status: String(statusCode), code }
      answers.set(JSON.stringify(answer), answer)
    })
  })
  const node = await open(t, app)
  await outcomes('documented', node, node)
  const { paths } = documentOf(app)
  t.ok(answers.size > 30)
  for (const { route, method, status, code } of answers.values()) {
    const path = route.replaceAll(/:(\w+)/g, '{$1}').replace('*', '{topic}')
    const response = paths[path]?.[method]?.responses[status]
    t.ok(response, `${method} ${path} ${status}`)
    if (code) t.ok(response?.content!['application/json']!.schema.properties!.code!.enum.includes(code), `${method} ${path} ${status} ${code}`)
  }
})

const program = `
import createClient from 'openapi-fetch'
import type { paths } from './schema.ts'

export async function run (baseUrl: string) {
  const { GET, POST, PUT } = createClient<paths>({ baseUrl })
  const path = { id: 'k1' }
  const sent = await POST('/devices/{id}/messages', { params: { path, query: { ttl: 60 } }, body: { show: 'hello' } })
  const status: 'queued' | 'delivered' | undefined = sent.data?.status === 'queued' ? sent.data.status : undefined
  const receipt = await GET('/devices/{id}/messages/{messageId}', { params: { path: { ...path, messageId: sent.data!.id } } })
  const called = await POST('/devices/{id}/calls/reboot', { params: { path }, body: { delay: 5 } })
  const at: string | undefined = called.data?.at
  const failed = await POST('/devices/{id}/calls/{method}', { params: { path: { ...path, method: 'none' } }, body: {} })
  const code: 'METHOD_UNKNOWN' | undefined = failed.error?.code === 'METHOD_UNKNOWN' ? failed.error.code : undefined
  const joined = await PUT('/devices/{id}/topics/{topic}', { params: { path: { ...path, topic: 'news/#' } } })
  const topics: string[] | undefined = joined.data?.topics
  const listed = await GET('/devices', { params: { query: { limit: 1, prefix: 'k' } } })
  return { status, receipt: receipt.data?.status, at, code, topics, ids: listed.data?.devices.map(({ deviceId }) => deviceId) }
}
`

const wrong = `
import createClient from 'openapi-fetch'
import type { paths } from './schema.ts'

const { POST } = createClient<paths>({ baseUrl: '' })
// @ts-expect-error no such param
void POST('/devices/{id}/calls/reboot', { params: { path: { id: 'k1' } }, body: { dely: 5 } })
// @ts-expect-error no such code
void POST('/broadcast', { body: 1 }).then(({ error }) => error?.code === 'NO_SUCH_CODE')
`

t.test('a client generated from the document sends, calls and reads receipts without a cast', async t => {
  const app = await documented({ contract: kiosk })
  const { url } = await open(t, app)
  const device = await connect(url, 'k1')
  device.handle('reboot', ({ delay }) => ({ at: String(delay) })).handle('none', () => { throw { code: -32601, message: 'No' } }) // eslint-disable-line
  // in the checkout, so that its packages are found
  await mkdir(join(root, '.tap'), { recursive: true })
  const folder = await mkdtemp(join(root, '.tap', 'openapi-'))
  t.teardown(() => rm(folder, { recursive: true, force: true }))
  await writeFile(join(folder, 'schema.ts'), astToString(await openapiTS(structuredClone(documentOf(app)) as never)))
  await writeFile(join(folder, 'client.ts'), program)
  await writeFile(join(folder, 'wrong.ts'), wrong)
  const files = ['client.ts', 'wrong.ts'].map(name => join(folder, name))
  const compiled = ts.createProgram(files, {
    strict: true, noEmit: true, skipLibCheck: true, allowImportingTsExtensions: true, types: [],
    target: ts.ScriptTarget.ES2022, lib: ['lib.es2023.d.ts', 'lib.dom.d.ts', 'lib.dom.iterable.d.ts'], module: ts.ModuleKind.NodeNext, moduleResolution: ts.ModuleResolutionKind.NodeNext
  })
  t.strictSame(ts.getPreEmitDiagnostics(compiled).map(({ file, messageText }) => `${dirname(file?.fileName ?? '')} ${ts.flattenDiagnosticMessageText(messageText, '\n')}`), [])
  const script = join(folder, 'client.mjs')
  await writeFile(script, ts.transpileModule(program, { compilerOptions: { target: ts.ScriptTarget.ES2022, module: ts.ModuleKind.ESNext } }).outputText)
  const { run } = await import(pathToFileURL(script).href)
  t.strictSame(await run(url), { status: 'queued', receipt: 'queued', at: '5', code: 'METHOD_UNKNOWN', topics: ['news/#'], ids: ['k1'] })
})

t.test('an error that the host shapes itself is passed on as it is', async t => {
  const app = Fastify()
  app.setErrorHandler(({ statusCode = 500 }: { statusCode?: number }, _request, reply) => reply.code(statusCode).send({ error: { status: statusCode }, list: [1] }))
  await app.register(devices)
  const { url } = await open(t, app)
  t.match(await request({ url }, 'GET', '/devices/away'), { status: 404, body: { error: { status: 404 }, list: [1] } })
})
