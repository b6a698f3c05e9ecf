import { readFileSync } from 'node:fs'
import { join } from 'node:path'
import type { Static, TObject } from '@sinclair/typebox'
import Fastify from 'fastify'
import t from 'tap'
import { Failure } from '../lib/protocol/errors.ts'
import ts from 'typescript'
import { DialOptionsSchema, type DialOptions } from '../lib/gateway/dial.ts'
import { MetricsOptionsSchema, type MetricsOptions } from '../lib/observe/metrics/options.ts'
import { OptionsSchema, type Options, type Settings } from '../lib/gateway/options.ts'
import { WebhookOptionsSchema, type WebhookOptions } from '../lib/gateway/webhook-options.ts'
import devices from '../lib/index.ts'
import { SendOptionsSchema, type SendOptions } from '../lib/messaging/dispatcher.ts'
import { root } from './root.ts'
import { listen } from './support.ts'

interface DocumentedOption {
  name: string
  description: string
  /** As JSON; undefined without a default. */
  value: string | undefined
}

/** The members of an interface, as an editor shows them. */
function optionsIn (path: string, name: string): DocumentedOption[] {
  const file = ts.createSourceFile(path, readFileSync(join(root, path), 'utf8'), ts.ScriptTarget.Latest, true)
  const declaration = file.statements.find(statement => ts.isInterfaceDeclaration(statement) && statement.name.text === name) as ts.InterfaceDeclaration
  return declaration.members.map(member => {
    const [doc] = ts.getJSDocCommentsAndTags(member) as ts.JSDoc[]
    const tag = doc?.tags?.find(({ tagName }) => tagName.text === 'default')
    return {
      name: (member.name as ts.Identifier).text,
      description: String(doc?.comment).replace(/\.$/, ''),
      value: tag && String(tag.comment).replaceAll("'", '"').replace(/(?<=\d)_(?=\d)/g, '')
    }
  })
}

function described ({ properties }: TObject): DocumentedOption[] {
  return Object.entries(properties).map(([name, schema]) => ({
    name,
    description: schema.description!,
    value: JSON.stringify(schema.default) as string | undefined
  }))
}

t.test('each option has in an editor the description and the default of its schema', async t => {
  t.strictSame(optionsIn('lib/gateway/options.ts', 'Options'), described(OptionsSchema))
  t.strictSame(optionsIn('lib/gateway/dial.ts', 'DialOptions'), described(DialOptionsSchema))
  t.strictSame(optionsIn('lib/messaging/dispatcher.ts', 'SendOptions'), described(SendOptionsSchema))
  t.strictSame(optionsIn('lib/observe/metrics/options.ts', 'MetricsOptions'), described(MetricsOptionsSchema))
  t.strictSame(optionsIn('lib/gateway/webhook-options.ts', 'WebhookOptions'), described(WebhookOptionsSchema))
})

t.test('the pages of the engines list their options, with the defaults that an editor shows', async t => {
  const documented = (path: string) => {
    const [rows] = /(?<=\| option \| default \| what it is \|\n\|---\|---\|---\|\n)(?:\|.*\n)+/.exec(readFileSync(join(root, path), 'utf8'))!
    return rows.trimEnd().split('\n').map(row => row.split('|').slice(1, 3).map(cell => cell.trim().replaceAll('`', '').replaceAll(/(?<=\d)_(?=\d)/g, '')))
  }
  const declared = (...interfaces: Array<[path: string, name: string]>) => interfaces.flatMap(([path, name]) => optionsIn(path, name))
    .map(({ name, value = '' }) => [name, value === 'undefined' ? '' : value.replaceAll('"', '')])
  t.strictSame(documented('docs/redis.md'), declared(['lib/redis/link-options.ts', 'LinkOptions'], ['lib/redis/engine.ts', 'RedisOptions']))
  t.strictSame(documented('docs/cluster.md'), declared(['lib/nats/link-options.ts', 'LinkOptions'], ['lib/nats/mailbox.ts', 'NatsMailboxOptions']))
})

type Same<A, B> = (<T>() => T extends A ? 1 : 2) extends (<T>() => T extends B ? 1 : 2) ? true : false
type Flat<T> = { [Name in keyof T]: T[Name] }
type Optional<T> = { [Name in keyof T]?: T[Name] | undefined }
type RegisterOption = 'prefix' | 'logLevel' | 'logSerializers'
type DialSettings = Static<typeof DialOptionsSchema>
type WebhookSettings = Static<typeof WebhookOptionsSchema>

t.test('the types of the options are those of their schemas', async t => {
  const isSame: [
    // Fastify declares these itself, without undefined
    Same<Flat<Options>, Flat<Pick<Partial<Settings>, RegisterOption> & Optional<Omit<Settings, RegisterOption>>>>,
    Same<Flat<DialOptions>, Flat<Pick<DialSettings, 'deviceId'> & Optional<Omit<DialSettings, 'deviceId'>>>>,
    Same<Flat<SendOptions>, Flat<Optional<Static<typeof SendOptionsSchema>>>>,
    Same<Flat<MetricsOptions>, Flat<Optional<Static<typeof MetricsOptionsSchema>>>>,
    Same<Flat<WebhookOptions>, Flat<Pick<WebhookSettings, 'url' | 'secret'> & Optional<Pick<WebhookSettings, 'types' | 'name'>>>>
  ] = [true, true, true, true, true]
  t.strictSame(isSame, [true, true, true, true, true], 'the compiler has checked it')
})

t.test('an option that does not exist is named, in plain JavaScript too', async t => {
  const unknown = { timeot: 1 } as object
  const message = (method: string) => ({ message: `${method} has no option "timeot"` })
  await t.rejects(async () => { await Fastify().register(devices, unknown) }, message('fastify-devices'))

  const app = await listen(t)
  const { devices: all } = app
  t.throws(() => all.dial('ws://localhost', { deviceId: 'd', ...unknown }), message('dial()'))
  await t.rejects(all.send('d', 1, unknown), { name: 'TypeError', ...message('send()') })
  await t.rejects(all.call('d', 'm', {}, unknown), { name: 'TypeError', ...message('call()') })
  await t.rejects(all.broadcast(1, unknown), { name: 'TypeError', ...message('broadcast()') })
  await t.rejects(all.list(unknown), { name: 'TypeError', ...message('list()') })
  await t.rejects(all.letters('d', unknown), { name: 'TypeError', ...message('letters()') })
  await t.rejects(all.sendMany([], unknown).next(), { name: 'TypeError', ...message('sendMany()') })
  t.throws(() => all.on('connected', () => {}, unknown as { everywhere: true }), { name: 'TypeError', ...message('on()') })
  t.throws(() => all.off('connected', () => {}, unknown as { everywhere: true }), { name: 'TypeError', ...message('off()') })
})

t.test('one of many messages with an option that does not exist fails alone', async t => {
  const { devices: all } = await listen(t)
  const results = []
  for await (const result of all.sendMany([{ to: 'd', data: 1, tll: 1 } as never, { to: 'd', data: 1, ttl: 60_000 }, new Failure('busy')])) results.push(result)
  t.match(results, [{ code: 'PARAMS_INVALID', message: 'sendMany() has no option "tll"' }, { status: 'queued' }, { code: 'CALLS_EXCEEDED' }])
})

t.test('an event that does not exist is named', async t => {
  const { devices: all } = await listen(t)
  t.throws(() => all.on('conected' as 'connected', () => {}), { name: 'TypeError', message: 'There is no event "conected"' })
  t.throws(() => all.off('conected' as 'connected', () => {}), { name: 'TypeError', message: 'There is no event "conected"' })
  t.throws(() => all.on('message' as 'connected', () => {}, { everywhere: true }), { name: 'TypeError', message: 'There is no event "message everywhere"' })
  t.throws(() => all.on('toString' as 'connected', () => {}), { name: 'TypeError', message: 'There is no event "toString"' })
})
