import { createRequire } from 'node:module'
import { Type } from '@sinclair/typebox'
import { Ajv } from 'ajv'
import t from 'tap'
import { z } from 'zod'
import { contract } from '../lib/index.ts'
import { connect, listen, request } from './support.ts'

const specification = createRequire(import.meta.url)('@asyncapi/specs/schemas/3.0.0-without-$id.json')

/** As `ajv` compiles the schema of the specification. */
const ajv = new Ajv({ strict: false, validateFormats: false, allErrors: true })
const validate = ajv.compile(specification)

interface Document {
  channels: { socket: { address: string, messages: Record<string, { payload: object }> } }
  operations: Record<string, { action: string, messages: Array<{ $ref: string }>, reply?: { messages: Array<{ $ref: string }> } }>
}

const kiosk = contract({
  methods: { sale: { params: Type.Object({ total: Type.Number() }), result: Type.Object({ no: Type.Integer() }) } },
  commands: { 'show/text': { params: z.object({ text: z.string().transform(Number) }) }, 'show text': { result: Type.String() } },
  topics: { 'prices/+': Type.Object({ cents: Type.Integer() }) },
  message: Type.Object({ show: Type.String() })
})

t.test('the document of the socket is valid AsyncAPI 3, and every reference in it leads somewhere', async t => {
  for (const options of [{}, { contract: kiosk, prefix: '/v1', path: '/socket' }]) {
    const app = await listen(t, options)
    const document = app.devices.asyncapi() as unknown as Document
    t.ok(validate(document), JSON.stringify(validate.errors))
    t.strictSame((await request(app, 'GET', `${options.prefix ?? ''}/asyncapi.json`)).body, JSON.parse(JSON.stringify(document)))
    t.equal(document.channels.socket.address, options.prefix ? '/v1/socket' : '/ws')
    const references = Object.values(document.operations).flatMap(({ messages, reply }) => messages.concat(reply?.messages ?? []))
    t.ok(references.length > 10)
    for (const { $ref } of references) t.ok(document.channels.socket.messages[$ref.replace('#/channels/socket/messages/', '')], $ref)
  }
})

t.test('names that are alike, and those that end like the name of an answer, stay apart', async t => {
  const method = { params: Type.Object({}), result: Type.Object({ mark: Type.String() }) }
  const app = await listen(t, { contract: contract({ methods: { a_error: method, a: method, a_result: method, 'a-result': method, 'a.b': method, a_b: method } }) })
  const { operations, channels: { socket: { messages } } } = app.devices.asyncapi() as unknown as Document & { operations: Record<string, { summary: string }> }
  const own = Object.values(operations).filter(({ summary }) => summary.startsWith('A device calls'))
  t.equal(own.length, 6)
  const referred = own.flatMap(({ messages, reply }) => messages.concat(reply!.messages)).map(({ $ref }) => $ref.split('/').at(-1)!)
  t.equal(new Set(referred).size, 18)
  for (const [at, name] of referred.entries()) {
    const { properties } = messages[name]!.payload as { properties: object }
    t.ok(Object.hasOwn(properties, ['method', 'result', 'error'][at % 3]!), name)
  }
})

t.test('what goes over the socket fits the document', async t => {
  const app = await listen(t, { contract: kiosk })
  app.devices.as(kiosk).handle('sale', ({ total }) => ({ no: total }))
  const { channels: { socket: { messages } }, operations } = app.devices.asyncapi() as unknown as Document
  t.strictSame([operations.method_sale!.action, operations.command_show_text!.action, operations.command_show_text_2!.action, operations.topic_prices__!.action], ['receive', 'send', 'send', 'send'])
  const device = await connect(app.url, 'k1')
  const fits = (name: string, frame: unknown) => t.ok(ajv.compile(messages[name]!.payload)(frame), name)
  const misfits = (name: string, frame: unknown) => t.notOk(ajv.compile(messages[name]!.payload)(frame), name)
  fits('welcome', device.seen[0])
  const sale = { jsonrpc: '2.0', id: 1, method: 'sale', params: { total: 5 } }
  fits('method_sale', sale)
  misfits('method_sale', { ...sale, params: {} })
  fits('method_sale_result', await device.ask('sale', { total: 5 }))
  fits('method_sale_error', await device.ask('sale', {}))
  fits('subscribe_result', await device.ask('subscribe', { topics: ['prices/+'] }))
  fits('ping_result', await device.ask('ping'))
  await app.devices.send('k1', { show: 'x' })
  fits('message', await device.message())
  await app.devices.broadcast({ cents: 1 }, { topic: 'prices/milk' })
  const published = await device.message()
  fits('topic_prices__', published)
  misfits('message', published)
  device.handle('show text', () => 'done')
  await app.devices.call('k1', 'show text')
  const called = await device.next(({ method }) => method === 'show text')
  fits('command_show_text_2', { ...called, params: {} })
  misfits('command_show_text_2', sale)
})
