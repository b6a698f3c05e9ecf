import { FormatRegistry, Type } from '@sinclair/typebox'
import t from 'tap'
import * as typebox1 from 'typebox'
import { z } from 'zod'
import type { Device } from '../lib/connection/device.ts'
import { Stats } from '../lib/connection/stats.ts'
import { Methods } from '../lib/gateway/methods.ts'
import { compile, type SchemaFlaw } from '../lib/gateway/schema.ts'
import { InboundCall } from '../lib/protocol/peer.ts'
import type { InputOf, OutputOf, StandardSchema } from '../lib/protocol/schema.ts'
import { fakeLog, reasonOf } from './fakes.ts'

class Flaw extends Error {
  readonly flaw: SchemaFlaw

  constructor (flaw: SchemaFlaw) {
    super(flaw.message)
    this.flaw = flaw
  }
}

const checkOf = (schema: object) => compile('The schema', schema, flaw => new Flaw(flaw))

/** The flaw of a value, without its message; undefined if it fits. */
function flawOf (schema: object, value: unknown): Omit<SchemaFlaw, 'message'> | undefined {
  try {
    checkOf(schema)(value)
    return undefined
  } catch (error) {
    const { path, kind } = (error as Flaw).flaw
    return { path, kind }
  }
}

/** The same schema, of each kind. */
const reading = {
  TypeBox: Type.Object({ sensor: Type.String(), values: Type.Array(Type.Number({ minimum: 0 }), { maxItems: 2 }) }),
  'TypeBox 1': typebox1.Object({ sensor: typebox1.String(), values: typebox1.Array(typebox1.Number({ minimum: 0 }), { maxItems: 2 }) }),
  'JSON Schema': {
    type: 'object',
    required: ['sensor', 'values'],
    properties: { sensor: { type: 'string' }, values: { type: 'array', maxItems: 2, items: { type: 'number', minimum: 0 } } }
  },
  Zod: z.object({ sensor: z.string(), values: z.array(z.number().min(0)).max(2) })
}

for (const [kind, schema] of Object.entries(reading)) {
  t.test(`${kind}: a value that fits comes back as it is, and one that does not is told where`, async t => {
    const fitting = { sensor: 'a', values: [1] }
    t.strictSame(checkOf(schema)(fitting), fitting)
    const other = (kind: SchemaFlaw['kind']) => schema === reading.Zod ? 'value' : kind
    t.strictSame(flawOf(schema, { sensor: 1, values: [] }), { path: '/sensor', kind: other('type') })
    t.strictSame(flawOf(schema, { sensor: 'a', values: [1, -1] }), { path: '/values/1', kind: 'value' })
    t.strictSame(flawOf(schema, { sensor: 'a', values: [1, 2, 3] }), { path: '/values', kind: other('occurrence') })
    t.equal(flawOf(schema, { sensor: 'a' })!.kind, other('occurrence'))
  })
}

t.test('a value is checked, not changed, unless a Standard Schema changes it', async t => {
  const json = { type: 'object', properties: { n: { type: 'number', default: 1 } }, additionalProperties: false }
  t.strictSame(checkOf(json)({}), {})
  t.strictSame(flawOf(json, { n: '1' }), { path: '/n', kind: 'type' })
  t.strictSame(flawOf(json, { other: 1 }), { path: '', kind: 'value' })
  t.strictSame(checkOf(z.object({ n: z.string().default('1').transform(Number) }))({}), { n: 1 })
})

t.test('a format that is known is checked, and any other is named when the schema is compiled', async t => {
  t.strictSame(flawOf({ type: 'string', format: 'email' }, 'x'), { path: '', kind: 'value' })
  t.equal(flawOf(typebox1.String({ format: 'email' }), 'a@b.example'), undefined)
  const odd = { format: 'serial-number' }
  for (const schema of [{ type: 'string', ...odd }, typebox1.Object({ a: typebox1.String(odd) }), Type.Object({ a: Type.Optional(Type.Array(Type.String(odd))) })]) {
    t.throws(() => checkOf(schema), { message: /^The schema cannot be compiled: unknown format "serial-number"/ })
  }
  FormatRegistry.Set('serial-number', value => value.startsWith('SN'))
  t.teardown(() => FormatRegistry.Delete('serial-number'))
  t.strictSame(flawOf(Type.String(odd), 'x'), { path: '', kind: 'value' })
  t.equal(flawOf(Type.Object({ format: Type.String() }, { default: { format: 'no format' } }), { format: 'x' }), undefined, 'a member may have that name')
})

t.test('a reference may lead to the schema itself, or to its definitions', async t => {
  const tree = { type: 'object', properties: { child: { $ref: '#' }, name: { $ref: '#/definitions/name' } }, definitions: { name: { type: 'string' } } }
  t.equal(flawOf(tree, { child: { child: { name: 'x' } } }), undefined)
  t.strictSame(flawOf(tree, { child: { child: { name: 1 } } }), { path: '/child/child/name', kind: 'type' })
})

t.test('what is no schema throws at once', async t => {
  for (const odd of ['string', null, 5, [], () => {}]) t.throws(() => checkOf(odd as object), { message: /^The schema cannot be compiled: it is not a schema/ })
  t.throws(() => checkOf({ $async: true, type: 'string' }), { message: /asynchronous JSON Schema is not supported/ })
  t.throws(() => checkOf({ type: 'text' }), { message: /^The schema cannot be compiled: / })
  t.throws(() => checkOf({ type: 'string', minimumLength: 1 }), { message: /unknown keyword: "minimumLength"/ })
})

const standard = (validate: (value: any) => unknown): StandardSchema => ({ '~standard': { version: 1, vendor: 'test', validate } })

t.test('a Standard Schema may be a function, take its time, and describe a path in two ways', async t => {
  const even = Object.assign(() => {}, standard(value => value % 2 === 0 ? { value } : { issues: [{ message: 'odd', path: ['a', { key: 0 }, Symbol('s')] }] }))
  t.equal(checkOf(even)(2), 2)
  t.strictSame(flawOf(even, 1), { path: '/a/0/Symbol(s)', kind: 'value' })
  const later = standard(async value => even['~standard'].validate(value))
  t.equal(await checkOf(later)(4), 4)
  await t.rejects(checkOf(later)(1) as Promise<unknown>, { message: 'odd' })
  class Path extends Array {} // as ArkType's
  t.strictSame(flawOf(standard(() => ({ issues: [{ message: 'root', path: new Path() }] })), 1), { path: '', kind: 'value' })
  t.strictSame(flawOf(standard(() => ({ issues: [{ message: 'no path' }] })), 1), { path: '', kind: 'value' })
})

t.test('a handler waits for schemas that take their time, gets what they give, and sends what they give', async t => {
  const methods = new Methods(new Stats(fakeLog()), fakeLog())
  const answer = (name: string, params: unknown) => methods.answer(name, params, { id: 'd' } as Device, new InboundCall())
  const Params = z.object({ n: z.string().transform(async text => Number(text)) })
  methods.handle('double', { params: standard(value => Params['~standard'].validate(value)) as typeof Params, result: z.number().transform(async n => `${n}`) }, ({ n }) => 2 * n)
  methods.handle('half', { params: z.object({ n: z.coerce.number() }), result: z.number() }, async ({ n }) => n / 2)
  t.equal(await answer('double', { n: '4' }), '8')
  t.equal(await answer('half', { n: '4' }), 2)
  for (const [name, n] of [['double', 4], ['half', 'x']] as const) t.equal(await reasonOf(async () => await answer(name, { n })), 'bad-params')
})

t.test('whatever a Standard Schema does wrong is an internal error, and logged', async t => {
  const fail = (error: unknown) => () => { throw error }
  for (const validate of [() => undefined, () => null, fail(new Error('broken')), fail(undefined), async () => undefined, () => Promise.reject(new Error('broken')), () => ({ issues: [] })]) {
    for (const schemas of [{ params: standard(validate) }, { result: standard(validate) }]) {
      const log = fakeLog()
      const methods = new Methods(new Stats(fakeLog()), log)
      methods.handle('odd', schemas, () => 1)
      t.equal(await reasonOf(async () => await methods.answer('odd', {}, { id: 'd' } as Device, new InboundCall())), 'internal', String(validate))
      t.equal(log.lines.length, 1)
    }
  }
})

t.test('types follow from TypeBox, TypeBox 1 and Standard Schemas', async t => {
  interface Reading { sensor: string, values: number[] }
  const from: Reading[] = [
    {} as OutputOf<typeof reading.TypeBox>,
    {} as OutputOf<typeof reading['TypeBox 1']>,
    {} as OutputOf<typeof reading.Zod>
  ]
  t.equal(from.length, 3)
  const Text = z.string().transform(Number)
  const given: InputOf<typeof Text> = '1'
  const taken: OutputOf<typeof Text> = 1
  // @ts-expect-error the schema makes a number of it
  const wrong: OutputOf<typeof Text> = given
  // @ts-expect-error nothing is known of plain JSON Schema
  const unknown: string = taken as OutputOf<typeof reading['JSON Schema']>
  // @ts-expect-error there is no such member
  t.equal(({} as OutputOf<typeof reading['TypeBox 1']>).colour, undefined)
  t.ok(wrong && unknown)
})
