import { Type } from '@sinclair/typebox'
import t from 'tap'
import type { Device } from '../lib/connection/device.ts'
import { Failure, Refusal, type Detail } from '../lib/protocol/errors.ts'
import { digestOf, IdempotencyKeys } from '../lib/messaging/idempotency.ts'
import { Methods } from '../lib/gateway/methods.ts'
import { OptionsSchema, settingsOf, type Settings } from '../lib/gateway/options.ts'
import { InboundCall } from '../lib/protocol/peer.ts'
import { Stats } from '../lib/connection/stats.ts'
import { fakeLog, gate, reasonOf, turn } from './fakes.ts'

const Reading = Type.Object({ sensor: Type.String(), value: Type.Number({ minimum: 0 }) })
const Verdict = Type.Object({ ok: Type.Boolean() })

function serving () {
  const stats = new Stats(fakeLog())
  const log = fakeLog()
  const methods = new Methods(stats, log)
  const device = { id: 'd1' } as Device
  const answer = (name: string, params?: unknown, inbound = new InboundCall()) => methods.answer(name, params, device, inbound)
  return { methods, answer, log, device, counted: () => stats.read(0).answers }
}

t.test('a handler that is not a function and a schema that cannot be compiled throw at once', async t => {
  const { methods } = serving()
  t.throws(() => methods.handle('odd', {}, 'x' as never), { message: /"odd" is not a function/ })
  for (const role of ['params', 'result']) t.throws(() => methods.handle('odd', { [role]: { type: 'text' } }, () => ({})), { message: new RegExp(`^The schema "${role}" of "odd" cannot be compiled: `) })
  t.throws(() => methods.handle('odd', { reslt: {} } as object, () => ({})), { message: /The schemas of "odd" has no option "reslt"/ })
  t.strictSame(methods.names, [])
})

t.test('a handler answers with what follows from its schemas', async t => {
  const { methods, answer, counted, log } = serving()
  methods.handle('judge', { params: Reading, result: Verdict }, ({ value }) => ({ ok: value < 10 }))
  methods.handle('judge later', { params: Reading, result: Verdict }, async ({ value }) => ({ ok: value < 10 }))
  t.strictSame(answer('judge', { sensor: 'a', value: 7 }), { ok: true })
  t.strictSame(await answer('judge later', { sensor: 'a', value: 70 }), { ok: false })
  t.strictSame(counted(), { ok: 2 })
  t.strictSame(log.lines, [])
})

t.test('the types of a handler follow from its schemas', async t => {
  const { methods } = serving()
  methods.handle('right', { params: Reading, result: Verdict }, ({ sensor, value }) => {
    const name: string = sensor
    const amount: number = value
    return { ok: name.length > amount }
  })
  // @ts-expect-error there is no such member in the params
  methods.handle('wrong params', { params: Reading }, ({ colour }) => colour)
  // @ts-expect-error a number is not text
  methods.handle('wrong type', { params: Reading }, ({ value }) => value.toUpperCase())
  // @ts-expect-error the result has another shape
  methods.handle('wrong result', { result: Verdict }, () => ({ ok: 'yes' }))
  // @ts-expect-error so has what the promise brings
  methods.handle('wrong promise', { result: Verdict }, async () => ({}))
  // @ts-expect-error without a schema nothing is known of the params
  methods.handle('unknown', {}, params => params.anything)
  t.pass('the compiler has seen to it')
})

t.test('a handler is given its device, and a signal that tells when it leaves', async t => {
  const { methods, answer, device } = serving()
  const inbound = new InboundCall()
  let seen: { device: Device, signal: AbortSignal } | undefined
  methods.handle('look', {}, (_params, context) => { seen = context })
  answer('look', undefined, inbound)
  t.equal(seen!.device, device)
  t.equal(seen!.signal, inbound.signal)
  t.equal(seen!.signal.aborted, false)
  inbound.abort()
  t.equal(seen!.signal.aborted, true)
})

t.test('a handler without schemas is given whatever came', async t => {
  const { methods, answer } = serving()
  methods.handle('echo', {}, params => params)
  for (const params of [undefined, null, [1], { a: 1 }]) t.equal(answer('echo', params), params)
})

t.test('a method that nobody handles is unknown', async t => {
  const { answer, counted, log } = serving()
  for (const name of ['nobody', '', '__proto__', 'constructor']) t.equal(await reasonOf(() => answer(name)), 'unknown-method')
  t.strictSame(counted(), { 'unknown-method': 4 })
  t.match(log.lines[0], { level: 'debug', fields: { reqId: String, deviceId: 'd1', method: 'nobody', reason: 'unknown-method' }, words: 'call refused' })
})

t.test('several handlers of a method share the connections, and each connection stays with one', async t => {
  const { methods } = serving()
  const ask = (device: Device) => methods.answer('read', undefined, device, new InboundCall())
  methods.handle('read', {}, () => 'first')
  methods.handle('read', { result: Type.String() }, async () => 'second')
  methods.handle('read', { params: Reading }, () => 'never without params')
  const devices = Array.from({ length: 6 }, (_, at) => ({ id: `d${at % 2}` }) as Device)
  for (let round = 0; round < 3; round++) {
    for (const [at, device] of devices.entries()) {
      if (at % 3 < 2) t.equal(await ask(device), ['first', 'second'][at % 3])
      else t.equal(await reasonOf(() => ask(device)), 'bad-params')
    }
  }
})

t.test('params that do not fit never reach the handler, and the device is told where', async t => {
  const { methods, answer, counted } = serving()
  let reached = 0
  methods.handle('judge', { params: Reading }, () => { reached++ })
  const told = async (params: unknown) => {
    try {
      return answer('judge', params)
    } catch (error) {
      return (error as Failure).device
    }
  }
  t.strictSame(await told({ sensor: 'a', value: 'x' }), { code: -32602, message: 'params/value: Expected number' })
  t.strictSame(await told({ sensor: 'a', value: -1 }), { code: -32602, message: 'params/value: Expected number to be greater or equal to 0' })
  t.strictSame(await told(undefined), { code: -32602, message: 'params: Expected object' })
  t.equal(await reasonOf(() => answer('judge', [])), 'bad-params')
  t.equal(reached, 0)
  t.strictSame(counted(), { 'bad-params': 4 })
})

t.test('a handler refuses with its own code and words, at once or later', async t => {
  const { methods, answer, counted, log } = serving()
  const refusal = new Refusal('The door is open', 17)
  methods.handle('now', {}, () => { throw refusal })
  methods.handle('later', {}, async () => { throw refusal })
  t.throws(() => answer('now'), refusal)
  await t.rejects(Promise.resolve(answer('later')), refusal)
  t.strictSame(counted(), { refused: 2 })
  t.strictSame(log.lines.map(({ level }) => level), ['debug', 'debug'])
})

t.test('an unexpected error of a handler is logged, and the device gets an internal error', async t => {
  const { methods, answer, counted, log } = serving()
  const accident = new Error('secret')
  methods.handle('now', {}, () => { throw accident })
  methods.handle('later', {}, async () => { throw accident })
  t.equal(await reasonOf(() => answer('now')), 'internal')
  t.equal(await reasonOf(() => answer('later')), 'internal')
  t.strictSame(counted(), { internal: 2 })
  t.match(log.lines, ['now', 'later'].map(method => ({ level: 'error', fields: { err: accident, reqId: String, deviceId: 'd1', method }, words: 'handler failed' })))
})

t.test('a result that does not match its schema is an internal error', async t => {
  const { methods, answer, counted, log } = serving()
  methods.handle('now', { result: Verdict }, () => ({ ok: 'yes' }) as never)
  methods.handle('later', { result: Verdict }, async () => ({ ok: 'yes' }) as never)
  t.equal(await reasonOf(() => answer('now')), 'internal')
  t.equal(await reasonOf(() => answer('later')), 'internal')
  t.strictSame(log.lines.map(({ fields }) => fields.err.message), ['now', 'later'].map(name => `The result of "${name}" does not fit its schema at "/ok": Expected boolean`))
  t.strictSame(counted(), { internal: 2 })
})

t.test('a repeated key gets the same result, even while the first send is in progress', async t => {
  const keys = new IdempotencyKeys({ maxKeys: 10, keyTtl: 60_000 })
  const door = gate<string>()
  let sent = 0
  const send = () => {
    sent++
    return door.opened
  }
  const answers = [keys.once('k', 'same', send), keys.once('k', 'same', send)]
  door.open('m1')
  t.strictSame(await Promise.all(answers), ['m1', 'm1'])
  t.equal(await keys.once('k', 'same', send), 'm1')
  t.equal(sent, 1)
  t.equal(keys.size, 1)
  t.equal(await keys.once('other', 'same', async () => 'm2'), 'm2')
  t.equal(keys.size, 2)
})

t.test('a key that was used for another message is refused', async t => {
  const keys = new IdempotencyKeys({ maxKeys: 10, keyTtl: 60_000 })
  await keys.once('k', 'first', async () => 'm1')
  t.equal(await reasonOf(keys.once('k', 'second', async () => 'm2')), 'key-mismatch')
  t.equal(await keys.once('k', 'first', async () => 'm3'), 'm1')
})

t.test('a key may be tried again when nothing was sent, and not when something may have been', async t => {
  const keys = new IdempotencyKeys({ maxKeys: 100, keyTtl: 60_000 })
  const again = async (error: unknown) => {
    const key = `${keys.size}-${error instanceof Failure && error.reason}`
    await t.rejects(keys.once(key, 'x', async () => { throw error }))
    return await keys.once(key, 'x', async () => 'sent now').catch(() => 'the same failure')
  }
  for (const reason of ['offline', 'busy', 'mailbox-full', 'store-full', 'draining', 'unreachable', 'too-large'] as const) {
    t.equal(await again(new Failure(reason)), 'sent now', reason)
  }
  for (const reason of ['timeout', 'dropped', 'refused', 'answer-invalid'] as const) {
    t.equal(await again(new Failure(reason)), 'the same failure', reason)
  }
  t.equal(await again(new Error('accident')), 'sent now')
})

t.test('a caller that joined a send sends itself if nothing was sent', async t => {
  const keys = new IdempotencyKeys({ maxKeys: 10, keyTtl: 60_000 })
  const door = gate<string>()
  const first = keys.once('k', 'same', () => door.opened)
  const second = keys.once('k', 'same', async () => 'kept', () => false)
  door.fail(new Failure('offline'))
  t.equal(await reasonOf(first), 'offline')
  t.equal(await second, 'kept')
  t.equal(keys.size, 0, 'and what somebody else remembers is not remembered here')
})

t.test('what is under way is remembered however many keys come meanwhile', async t => {
  const keys = new IdempotencyKeys({ maxKeys: 2, keyTtl: 60_000 })
  const door = gate<string>()
  const first = keys.once('first', 'x', () => door.opened)
  for (let number = 0; number < 5; number++) await keys.once(String(number), 'x', async () => 'sent')
  const second = keys.once('first', 'x', async () => 'sent twice')
  door.open('sent once')
  t.strictSame(await Promise.all([first, second]), ['sent once', 'sent once'])
  t.equal(keys.size, 2)
})

t.test('what a device said when it refused is not remembered at length', async t => {
  const keys = new IdempotencyKeys({ maxKeys: 10, keyTtl: 60_000 })
  const long = 'x'.repeat(5_000)
  const deviceOf = (sent: Promise<unknown>) => sent.then(() => 'sent', (error: Failure) => error.device)
  const refused = (detail: Detail) => deviceOf(keys.once(`k${keys.size}`, 'd', async () => { throw new Failure('refused', { detail }) }))
  const again = (key: string) => deviceOf(keys.once(key, 'd', async () => 'never'))
  const short = { code: 1, message: 'short', data: { n: 1 } }
  t.strictSame(await refused(short), short)
  t.strictSame(await again('k0'), short)
  const whole = { code: long, message: long, data: long }
  t.strictSame(await refused(whole), whole, 'the first to ask hears it all')
  t.strictSame(await again('k1'), { code: 'x'.repeat(256), message: 'x'.repeat(256) })
  await refused({ code: 7, message: 'm', data: long })
  t.strictSame(await again('k2'), { code: 7, message: 'm' })
})

t.test('a key is forgotten after its time', async t => {
  const keys = new IdempotencyKeys({ maxKeys: 10, keyTtl: 5 })
  await keys.once('k', 'first', async () => 'm1')
  const used = Date.now()
  while (Date.now() < used + 10) await turn()
  t.equal(await keys.once('k', 'second', async () => 'm2'), 'm2')
  t.equal(keys.size, 1)
})

t.test('keys whose time is over are swept out by those that come', async t => {
  const keys = new IdempotencyKeys({ maxKeys: 10, keyTtl: 5 })
  for (const key of ['a', 'b', 'c']) await keys.once(key, 'x', async () => key)
  const used = Date.now()
  while (Date.now() < used + 10) await turn()
  await keys.once('d', 'x', async () => 'd')
  t.equal(keys.size, 1)
})

t.test('no more keys are kept than allowed; the oldest goes', async t => {
  const keys = new IdempotencyKeys({ maxKeys: 2, keyTtl: 60_000 })
  for (const key of ['a', 'b', 'c']) await keys.once(key, 'x', async () => `first ${key}`)
  t.equal(keys.size, 2)
  const second = (key: string) => keys.once(key, 'x', async () => `second ${key}`)
  t.equal(await second('c'), 'first c')
  t.equal(await second('b'), 'first b')
  t.equal(await second('a'), 'second a')
})

t.test('a key that is used anew counts as new', async t => {
  const { now } = Date
  t.teardown(() => { Date.now = now })
  const keys = new IdempotencyKeys({ maxKeys: 2, keyTtl: 100 })
  for (const [key, time] of [['a', 0], ['b', 90], ['a', 110], ['c', 120]] as const) {
    Date.now = () => time
    await keys.once(key, 'x', async () => `${key} at ${time}`)
  }
  t.equal(await keys.once('a', 'x', async () => 'once more'), 'a at 110')
  t.equal(await keys.once('b', 'x', async () => 'once more'), 'once more')
})

t.test('where no key is kept, every try is one of its own', async t => {
  const keys = new IdempotencyKeys({ maxKeys: 0, keyTtl: 60_000 })
  t.equal(await keys.once('k', 'x', async () => 'first'), 'first')
  t.equal(await keys.once('k', 'x', async () => 'second'), 'second')
  t.equal(keys.size, 0)
})

t.test('a digest tells messages apart, and where one part ends and the next begins', async t => {
  t.equal(digestOf('a', 'b'), digestOf('a', 'b'))
  t.equal(digestOf(Buffer.from('a'), 'b'), digestOf('a', 'b'))
  t.match(digestOf('a'), /^[\w-]{22}$/)
  const digests = [['a', 'b'], ['ab'], ['a', 'b', ''], ['', 'ab'], ['b', 'a'], ['a'], []].map(parts => digestOf(...parts))
  t.equal(new Set(digests).size, digests.length)
})

t.test('without options everything has a default', async t => {
  t.strictSame(settingsOf({}), {
    prefix: '', rest: true, path: '/ws', transports: [], origins: [], admissionTimeout: 5_000, compression: false,
    maxMessage: 65_536, maxFragments: 64, maxDepth: 32, maxBatch: 20, maxCalls: 32, maxTopics: 128, maxTopicLength: 255, maxTopicLevels: 16,
    maxBuffered: 1_048_576, stallTimeout: 10_000, rate: 100, burst: 200,
    pingInterval: 25_000, pongTimeout: 10_000, callTimeout: 10_000, maxTimeout: 300_000,
    maxTtl: 604_800_000, maxLetters: 1_000, maxLetterBytes: 1_048_576, maxInFlight: 32, attempts: 5, maxKeys: 10_000, keyTtl: 86_400_000,
    closeTimeout: 2_000, drainTimeout: 8_000, retrySpread: 10_000
  } as unknown as Settings)
})

t.test('what is set stays as it is', async t => {
  class Kept { #secret = 7; get secret () { return this.#secret } }
  const mailbox = new Kept()
  const authenticate = async () => true
  const options = { node: 'n-1', path: '/devices/live', authenticate, guard: false, mailbox, codecs: [mailbox], origins: ['https://a'], maxCalls: 1 }
  const settings = settingsOf(options) as any
  for (const [name, value] of Object.entries(options)) t.equal(settings[name], value, name)
  t.equal(settings.mailbox.secret, 7)
  t.strictSame(Object.keys(options), ['node', 'path', 'authenticate', 'guard', 'mailbox', 'codecs', 'origins', 'maxCalls'], 'the object of the caller is left alone')
})

t.test('defaults are not shared between registrations', async t => {
  (settingsOf({}).origins as string[]).push('https://a')
  t.strictSame(settingsOf({}).origins, [])
})

t.test('a wrong option throws and is named', async t => {
  const table: Array<[options: object, words: string]> = [
    [{ maxCall: 1 }, 'fastify-devices has no option "maxCall"'],
    [{ maxCalls: 0 }, 'fastify-devices: the option "maxCalls" is wrong: Expected integer to be greater or equal to 1 (Maximum number of calls in flight per device, in each direction)'],
    [{ maxCalls: 1.5 }, 'fastify-devices: the option "maxCalls" is wrong: Expected integer (Maximum number of calls in flight per device, in each direction)'],
    [{ maxCalls: '7' }, 'fastify-devices: the option "maxCalls" is wrong: Expected integer (Maximum number of calls in flight per device, in each direction)'],
    [{ callTimeout: 2_147_483_648 }, 'fastify-devices: the option "callTimeout" is wrong: Expected integer to be less or equal to 2147483647 (Time limit for the answer of a device, unless the caller sets one)'],
    [{ path: 'ws' }, "fastify-devices: the option \"path\" is wrong: Expected string to match '^/.*[^/]$' (Path where devices connect)"],
    [{ node: 'a b' }, "fastify-devices: the option \"node\" is wrong: Expected string to match '^[A-Za-z0-9_-]{1,64}$' (Name of this node; random by default)"],
    [{ authenticate: true }, 'fastify-devices: the option "authenticate" is wrong: Expected union value (Decides which devices may connect; `false` admits all. Without it, only this machine may connect)'],
    [{ authorizeTopic: false }, 'fastify-devices: the option "authorizeTopic" is wrong: Expected function (Decides which topics a device may subscribe or publish to. Without it: none if `authenticate` is a function, otherwise all)'],
    [{ origins: ['https://a', 7] }, 'fastify-devices: the option "origins" is wrong: Expected union value (Foreign origins whose pages may connect: a list of `https://host:port`, or a function that decides)'],
    [{ codecs: [] }, 'fastify-devices: the option "codecs" is wrong: Expected array length to be greater or equal to 1 (Wire protocols, chosen by subprotocol. A device that offers no subprotocol gets the first codec of the list. JSON-RPC by default)'],
    [{ mailbox: 'disk' }, 'fastify-devices: the option "mailbox" is wrong: Expected object (Keeps letters; in memory by default)'],
    [{ mailbox: Promise.resolve({}) }, 'fastify-devices: the option "mailbox" is a promise: await it'],
    [{ toString: 1 }, 'fastify-devices has no option "toString"']
  ]
  for (const [options, words] of table) t.throws(() => settingsOf(options), new Error(words), words)
})

t.test('every option says what it is for, and its default is within its limits', async t => {
  for (const [name, schema] of Object.entries(OptionsSchema.properties)) t.ok(schema.description, name)
})
