import { spawn } from 'node:child_process'
import { once } from 'node:events'
import { request as httpRequest } from 'node:http'
import { join } from 'node:path'
import { createInterface } from 'node:readline'
import { Type } from '@sinclair/typebox'
import { createRPCError, RPCClient } from 'ocpp-rpc'
import t, { type Test } from 'tap'
import WebSocket from 'ws'
import { ocpp, type OcppVersion } from '../lib/protocol/ocpp.ts'
import { reasons, Failure, Refusal, type Reason } from '../lib/protocol/errors.ts'
import { jsonrpc, type Options } from '../lib/index.ts'
import type { Codec } from '../lib/protocol/message.ts'
import { codecContract } from './contracts/codec.ts'
import { reasonOf, turn, until } from './fakes.ts'
import { root } from './root.ts'
import { connect, listen, refusal, request } from './support.ts'

const versions = ['ocpp1.6', 'ocpp2.0.1', 'ocpp2.1'] as const
const codecOf = (version: OcppVersion): Codec => ocpp({ versions: [version] })[0]!
const codecs = [jsonrpc(), ...ocpp()]

for (const version of versions) codecContract(t, version, () => codecOf(version))

// What the specification says of frames (OCPP-J 1.6, 4; OCPP 2.0.1 and 2.1, part 4, chapter 4).

const invalid = (reason: string, id: string | null = null, code?: string) => ({ kind: 'invalid', id, reason, ...(code && { detail: { code, message: String } }) })
const ignored = invalid('answer-invalid')
const nested = (levels: number): unknown => levels === 0 ? 1 : [nested(levels - 1)]
const longest = 'x'.repeat(36)
const all = versions as readonly OcppVersion[]
const second = ['ocpp2.0.1', 'ocpp2.1'] as const

const frames: Array<[what: string, frame: unknown, expected: unknown, of?: readonly OcppVersion[]]> = [
  // good ones
  ['a CALL', [2, 'a', 'Heartbeat', {}], { kind: 'call', id: 'a', method: 'Heartbeat', params: {} }],
  ['a CALL with a payload', [2, 'a', 'Authorize', { idTag: '04' }], { kind: 'call', id: 'a', method: 'Authorize', params: { idTag: '04' } }],
  ['a CALL whose payload is null', [2, 'a', 'Heartbeat', null], { kind: 'call', id: 'a', method: 'Heartbeat', params: {} }],
  ['the longest id', [2, longest, 'Heartbeat', {}], { kind: 'call', id: longest, method: 'Heartbeat', params: {} }],
  ['the deepest payload', [2, 'a', 'Heartbeat', { a: nested(30) }], { kind: 'call', id: 'a', method: 'Heartbeat', params: { a: nested(30) } }],
  ['a CALLRESULT', [3, 'a', { status: 'Accepted' }], { kind: 'result', id: 'a', result: { status: 'Accepted' } }],
  ['a CALLRESULT whose payload is null', [3, 'a', null], { kind: 'result', id: 'a', result: {} }],
  ['a CALLERROR', [4, 'a', 'InternalError', 'no', { at: 1 }], { kind: 'failure', id: 'a', reason: 'refused', detail: { code: 'InternalError', message: 'no', data: { at: 1 } } }],
  ['a CALLERROR without details', [4, 'a', 'GenericError', '', {}], { kind: 'failure', id: 'a', reason: 'refused', detail: { code: 'GenericError', message: '' } }],
  ['a CALLERROR cut short', [4, 'a', 'GenericError'], { kind: 'failure', id: 'a', reason: 'refused', detail: { code: 'GenericError', message: '' } }],
  ['a CALLERROR whose description is null', [4, 'a', 'NotImplemented', null, null], { kind: 'failure', id: 'a', reason: 'unknown-method', detail: { code: 'NotImplemented', message: '' } }],
  ['a CALLERROR with a name of its own', [4, 'a', 'Tired', 'z', null], { kind: 'failure', id: 'a', reason: 'refused', detail: { code: 'Tired', message: 'z' } }],
  ['a CALLERROR about a message that could not be read', [4, '-1', 'RpcFrameworkError', '', {}], { kind: 'failure', id: null, reason: 'refused' }, second],
  ['a SEND', [6, 'a', 'NotifyPeriodicEventStream', { id: 1 }], { kind: 'notice', method: 'NotifyPeriodicEventStream', params: { id: 1 } }, ['ocpp2.1']],
  ['a CALLRESULTERROR', [5, 'a', 'FormatViolation', 'no', {}], { kind: 'failure', id: null, reason: 'refused', detail: { code: 'FormatViolation', message: 'no' } }, ['ocpp2.1']],

  // ignored
  ['nothing', '', ignored],
  ['a message type that is not known', [7, 'a', 'Heartbeat', {}], ignored, ['ocpp1.6', 'ocpp2.1']],
  ['a SEND before there was one', [6, 'a', 'Heartbeat', {}], ignored, ['ocpp1.6']],
  ['a CALLRESULTERROR before there was one', [5, 'a', 'FormatViolation', '', {}], ignored, ['ocpp1.6']],
  ['a SEND that is wrong', [6, 'a', 7, {}], ignored, ['ocpp2.1']],
  ['a SEND without an id', [6, null, 'Tell', {}], ignored, ['ocpp2.1']],
  ['a SEND whose bytes are none', [6, 'a', 'Tell', { base64: '*' }], ignored, ['ocpp2.1']],

  // told
  ['a message type that is not known', [7, 'a', 'Heartbeat', {}], invalid('malformed', 'a', 'MessageTypeNotSupported'), ['ocpp2.0.1']],
  ['a message type that is not known, without an id', [7], invalid('malformed', null, 'MessageTypeNotSupported'), ['ocpp2.0.1']],
  ['no JSON', '[2,"a"', invalid('unreadable')],
  ['bytes that are no UTF-8', Uint8Array.of(0x5b, 0xff, 0x5d), invalid('unreadable')],
  ['an object', { method: 'Heartbeat' }, invalid('malformed')],
  ['a number', 7, invalid('malformed')],
  ['an empty list', [], invalid('malformed')],
  ['a message type that is text', ['2', 'a', 'Heartbeat', {}], invalid('malformed', 'a')],
  ['a message type with a fraction', [2.5, 'a', 'Heartbeat', {}], invalid('malformed', 'a')],
  ['an id that is a number', [2, 1, 'Heartbeat', {}], invalid('malformed')],
  ['an id that is too long', [2, `${longest}x`, 'Heartbeat', {}], invalid('malformed', `${longest}x`, 'RpcFrameworkError')],
  ['an id that is far too long', [2, 'x'.repeat(256), 'Heartbeat', {}], invalid('malformed')],
  ['an action that is no text', [2, 'a', 7, {}], invalid('malformed', 'a')],
  ['a CALL without a payload', [2, 'a', 'Heartbeat'], invalid('malformed', 'a')],
  ['a CALL with too much', [2, 'a', 'Heartbeat', {}, {}], invalid('malformed', 'a')],
  ['a payload that is a list', [2, 'a', 'Heartbeat', []], invalid('malformed', 'a', 'FormatViolation')],
  ['a payload that is text', [2, 'a', 'Heartbeat', 'x'], invalid('malformed', 'a', 'FormatViolation')],
  ['a payload that is too deep', [2, 'a', 'Heartbeat', { a: nested(31) }], invalid('malformed', 'a', 'FormatViolation')],
  ['a payload whose bytes are none', [2, 'a', 'Heartbeat', { base64: '*' }], invalid('malformed', 'a')],
  ['a payload that reaches a prototype', '[2,"a","Heartbeat",{"__proto__":{}}]', invalid('malformed', 'a', 'FormatViolation')],

  // answers that are none: never answered themselves
  ['a CALLRESULT without a payload', [3, 'a'], invalid('answer-invalid', 'a')],
  ['a CALLRESULT with too much', [3, 'a', {}, {}], invalid('answer-invalid', 'a')],
  ['a CALLRESULT with a list', [3, 'a', []], invalid('answer-invalid', 'a')],
  ['a CALLRESULT that is too deep', [3, 'a', { a: nested(31) }], invalid('answer-invalid', 'a')],
  ['a CALLRESULT to nobody', [3, 1, {}], ignored],
  ['a CALLERROR without a name', [4, 'a'], invalid('answer-invalid', 'a')],
  ['a CALLERROR whose description is a number', [4, 'a', 'GenericError', 1, {}], invalid('answer-invalid', 'a')],
  ['a CALLERROR that is too deep', [4, 'a', 'GenericError', '', { a: nested(31) }], invalid('answer-invalid', 'a')]
]

t.test('frames are read as the specification says', async t => {
  for (const [what, frame, expected, of = all] of frames) {
    for (const version of of) {
      const raw = typeof frame === 'string' || frame instanceof Uint8Array ? frame : JSON.stringify(frame)
      t.match(codecOf(version).decode(raw), expected as object, `${version}: ${what}`)
      if (typeof raw === 'string') t.strictSame(codecOf(version).decode(Buffer.from(raw)), codecOf(version).decode(raw))
    }
  }
})

t.test('messages are written as the specification says', async t => {
  const [one, two, three] = versions.map(codecOf) as [Codec, Codec, Codec]
  const parsed = (frame: unknown) => frame === undefined ? undefined : JSON.parse(String(frame))
  for (const codec of [one, two, three]) {
    t.strictSame(parsed(codec.encode({ kind: 'call', id: 7, method: 'ClearCache' })), [2, '7', 'ClearCache', {}], 'no payload is an empty object')
    t.strictSame(parsed(codec.encode({ kind: 'result', id: 'a', result: null })), [3, 'a', {}])
    t.strictSame(parsed(codec.encode({ kind: 'failure', id: 'a', reason: 'refused', detail: { code: 17, message: 'x'.repeat(300), data: [1] } })),
      [4, 'a', 'GenericError', 'x'.repeat(255), { data: [1] }], 'details are an object')
    t.equal(codec.encode({ kind: 'failure', id: null, reason: 'too-fast' }), undefined, 'what has no id is not told that it was too much')
    t.throws(() => codec.encode({ kind: 'call', id: 'a', method: 'Reset', params: [1] }), { message: /object/ })
    t.throws(() => codec.encode([{ kind: 'result', id: 'a', result: {} }]), { message: /batches/ })
  }
  t.equal(one.encode({ kind: 'invalid', id: null, reason: 'unreadable' }), undefined, '1.6 has no id for it')
  t.strictSame(parsed(two.encode({ kind: 'invalid', id: null, reason: 'unreadable' })), [4, '-1', 'RpcFrameworkError', 'Not readable as a message', {}])
  t.equal(one.encode({ kind: 'notice', method: 'Tell' }), undefined)
  t.equal(two.encode({ kind: 'notice', method: 'Tell' }), undefined)
  t.match(parsed(three.encode({ kind: 'notice', method: 'Tell' })), [6, /^.{36}$/, 'Tell', {}])
})

t.test('each name of an error is produced and understood, in the spelling of each version', async t => {
  const common = ['NotImplemented', 'NotSupported', 'InternalError', 'ProtocolError', 'SecurityError', 'PropertyConstraintViolation', 'TypeConstraintViolation', 'GenericError']
  const own = {
    'ocpp1.6': ['FormationViolation', 'OccurenceConstraintViolation'],
    'ocpp2.0.1': ['FormatViolation', 'OccurrenceConstraintViolation', 'MessageTypeNotSupported', 'RpcFrameworkError'],
    'ocpp2.1': ['FormatViolation', 'OccurrenceConstraintViolation', 'MessageTypeNotSupported', 'RpcFrameworkError']
  }
  for (const version of versions) {
    const codec = codecOf(version)
    const names = [...common, ...own[version]]
    for (const code of names) {
      const frame = codec.encode({ kind: 'failure', id: 'a', reason: 'refused', detail: { code, message: 'no', data: { at: 1 } } })!
      t.strictSame(JSON.parse(String(frame)), [4, 'a', code, 'no', { at: 1 }])
      const reason = ['NotImplemented', 'NotSupported'].includes(code) ? 'unknown-method' : 'refused'
      t.strictSame(codec.decode(frame), { kind: 'failure', id: 'a', reason, detail: { code, message: 'no', data: { at: 1 } } })
    }
    const nameOf = (failure: object) => JSON.parse(String(codec.encode({ kind: 'failure', id: 'a', reason: 'refused', ...failure })))[2]
    for (const code of new Set(Object.values(own).flat())) t.ok(names.includes(nameOf({ detail: { code, message: '' } })), `${version} has a name for ${code}`)
    for (const reason of Object.keys(reasons) as Reason[]) t.ok(names.includes(nameOf({ reason })), `${version} has a name for ${reason}`)
    t.equal(nameOf({ detail: { code: 'constructor', message: '' } }), 'GenericError')
    t.equal(nameOf({ reason: 'forbidden' }), 'SecurityError')
    t.match(nameOf({ reason: 'bad-params', flaw: 'occurrence' }), /^Occurr?enceConstraintViolation$/)
    t.equal(nameOf({ reason: 'bad-params', flaw: 'type' }), 'TypeConstraintViolation')
    t.equal(nameOf({ reason: 'bad-params', flaw: 'value' }), 'PropertyConstraintViolation')
  }
})

// A central system, with chargers of an independent library.

interface Charger extends RPCClient {
  /** The actions and payloads of the calls that it got. */
  got: Array<[action: string, payload: any]>
}

const open = { codecs, authenticate: false, guard: false } satisfies Options

async function charger (t: Pick<Test, 'teardown'>, url: string, identity: string, options: object = {}): Promise<Charger> {
  const client = new RPCClient({ endpoint: `${url.replace('http', 'ws')}/ocpp`, identity, protocols: ['ocpp1.6'], strictMode: true, reconnect: false, ...options } as any) as Charger
  client.got = []
  client.handle((async ({ method, params }: any) => {
    client.got.push([method, params])
    return { status: 'Accepted' }
  }) as any)
  t.teardown(() => client.close({ force: true }))
  await client.connect()
  return client
}

t.test('a charger boots, heartbeats and is started over REST, beside a JSON-RPC device on the same port', async t => {
  const app = await listen(t, open)
  app.devices.handle('BootNotification', () => ({ status: 'Accepted', currentTime: '2026-01-01T00:00:00.000Z', interval: 300 }))
  app.devices.handle('Heartbeat', () => ({ currentTime: '2026-01-01T00:00:00.000Z' }))
  const device = await connect(app.url, 'plain')
  const client = await charger(t, app.url, 'CP001')
  t.match(await client.call('BootNotification', { chargePointVendor: 'V', chargePointModel: 'M' }), { status: 'Accepted', interval: 300 })
  t.match(await client.call('Heartbeat', {}), { currentTime: /^2026/ })
  t.match(await request(app, 'POST', '/devices/CP001/calls/RemoteStartTransaction', { idTag: '04' }), { status: 200, body: { status: 'Accepted' } })
  t.match(await request(app, 'POST', '/devices/CP001/calls/ClearCache'), { status: 200, body: { status: 'Accepted' } }, 'no body is an empty payload')
  t.strictSame(client.got, [['RemoteStartTransaction', { idTag: '04' }], ['ClearCache', {}]], 'and no welcome')
  t.match(await request(app, 'GET', '/devices/CP001'), { status: 200, body: { connected: true, protocol: 'ocpp1.6', inFlight: 0 } })
  t.match(await request(app, 'POST', '/devices/CP001/calls/Reset', [1]), { status: 400, body: { code: 'PARAMS_INVALID' } })

  t.match((await request(app, 'POST', '/broadcast', { hello: 'all' })).body, { sent: 1 }, 'a broadcast is for those who know what it is')
  t.match(await device.message(), { params: { data: { hello: 'all' } } })
  t.match(await device.ask('Heartbeat'), { result: { currentTime: /^2026/ } }, 'a handler answers whoever calls')
})

t.test('calls to one charger go out one at a time, in order, and each gets its own answer', async t => {
  const app = await listen(t, { ...open, maxCalls: 500, callTimeout: 60_000 })
  let atOnce = 0
  let most = 0
  const client = await charger(t, app.url, 'CP001', { strictMode: false })
  client.handle('DataTransfer', async ({ params }: any) => {
    most = Math.max(most, ++atOnce)
    await turn()
    atOnce--
    client.got.push(['DataTransfer', params.number])
    return { number: params.number }
  })
  const replies = await Promise.all(Array.from({ length: 500 }, (_, number) => request(app, 'POST', '/devices/CP001/calls/DataTransfer', { number })))
  t.strictSame(replies.map(({ status, body }) => [status, body.number]), replies.map((_, number) => [200, number]))
  t.equal(most, 1)
  const calls = Array.from({ length: 50 }, (_, at) => app.devices.call('CP001', 'DataTransfer', { number: 500 + at }))
  await Promise.all(calls)
  t.strictSame(client.got.slice(500).map(([, number]) => number), calls.map((_, at) => 500 + at), 'those who wait keep their order')
})

t.test('errors keep their names both ways', async t => {
  const app = await listen(t, open)
  const Meter = Type.Object({ connectorId: Type.Integer({ minimum: 0 }), values: Type.Array(Type.String(), { minItems: 1 }) })
  app.devices.handle('MeterValues', { params: Meter }, () => ({}))
  app.devices.handle('Authorize', ({ name }: any) => { throw new Refusal('no', name, { at: 1 }) })
  app.devices.handle('Broken', () => 'not an object')
  for (const version of ['ocpp1.6', 'ocpp2.0.1'] as const) {
    const client = await charger(t, app.url, version, { strictMode: false, protocols: [version] })
    const occurrence = version === 'ocpp1.6' ? 'OccurenceConstraintViolation' : 'OccurrenceConstraintViolation'
    const failing = async (action: string, payload: unknown) => await client.call(action, payload).then(() => 'answered', (error: any) => error.rpcErrorCode)
    t.equal(await failing('Unheard', {}), 'NotImplemented')
    t.equal(await failing('MeterValues', { values: ['1'] }), occurrence)
    t.equal(await failing('MeterValues', { connectorId: 0, values: [] }), occurrence)
    t.equal(await failing('MeterValues', { connectorId: 'one', values: ['1'] }), 'TypeConstraintViolation')
    t.equal(await failing('MeterValues', { connectorId: -1, values: ['1'] }), 'PropertyConstraintViolation')
    t.equal(await failing('MeterValues', [1]), version === 'ocpp1.6' ? 'FormationViolation' : 'FormatViolation')
    t.equal(await failing('Authorize', { name: 'SecurityError' }), 'SecurityError')
    t.equal(await failing('Broken', {}), 'InternalError', 'a payload is an object')
    for (const builtin of ['subscribe', 'unsubscribe', 'publish', 'message', 'ping']) t.equal(await failing(builtin, { topics: [], topic: 'a' }), 'NotImplemented')

    const wanted: Array<[name: string, status: number, code: string]> = [
      ['NotImplemented', 501, 'METHOD_UNKNOWN'], ['NotSupported', 501, 'METHOD_UNKNOWN'], ['InternalError', 422, 'DEVICE_REFUSED'], [occurrence, 422, 'DEVICE_REFUSED']
    ]
    client.handle('Reset', ({ params }: any) => { throw createRPCError(params.name, 'not now', { at: 1 }) })
    for (const [name, status, code] of wanted) {
      const { status: got, body } = await request(app, 'POST', `/devices/${version}/calls/Reset`, { name })
      t.match([got, body.code], [status, code])
      // the library writes one of the names of 1.6 as later versions do
      t.match(body.device, { code: name.startsWith('Occur') ? /^Occurr?enceConstraintViolation$/ : name, message: 'not now', data: { at: 1 } })
    }
  }
})

t.test('a letter is a call of the method that it names', async t => {
  const app = await listen(t, open)
  const put = async (id: string, body: unknown, query = 'ttl=60') => await request(app, 'POST', `/devices/${id}/messages?${query}`, body)
  const statusOf = async (id: string, messageId: string) => (await request(app, 'GET', `/devices/${id}/messages/${messageId}`)).body
  const reset = { method: 'Reset', params: { type: 'Soft' } }

  const [first, wrong, keyed] = [
    await put('CP001', { method: 'ChangeAvailability', params: { connectorId: 0, type: 'Operative' } }),
    await put('CP001', { hello: 'charger' }),
    await request(app, 'POST', '/devices/CP001/messages?ttl=60', { method: 'ClearCache' }, { 'idempotency-key': 'once' })
  ]
  t.strictSame([first.status, wrong.status, keyed.status], [202, 202, 202], 'nobody knows yet what it will speak')
  const client = await charger(t, app.url, 'CP001')
  await until(async () => (await statusOf('CP001', keyed.body.id)).status === 'delivered')
  t.strictSame(client.got, [['ChangeAvailability', { connectorId: 0, type: 'Operative' }], ['ClearCache', {}]])
  t.match(await statusOf('CP001', first.body.id), { status: 'delivered' })
  t.match(await statusOf('CP001', wrong.body.id), { status: 'refused', device: { code: 'PARAMS_INVALID', message: /ocpp1\.6/ } })

  for (const query of ['ttl=60', '', 'confirm=true']) {
    t.match(await put('CP001', { hello: 'charger' }, query), { status: 400, body: { code: 'PARAMS_INVALID', message: /"method"/ } }, query)
  }
  t.match(await put('CP001', reset, ''), { status: 200, body: { status: 'sent' } })
  t.match(await put('CP001', reset, 'confirm=true'), { status: 200, body: { status: 'delivered' } })
  t.match(await put('CP001', reset, 'ttl=60&confirm=true'), { status: 200, body: { status: 'delivered' } })
  app.devices.get('CP001')!.send(reset)
  await until(() => client.got.length === 6)
  t.strictSame(client.got.slice(2), Array.from({ length: 4 }, () => ['Reset', { type: 'Soft' }]))
  t.throws(() => app.devices.get('CP001')!.send('hello'), { code: 'PARAMS_INVALID' })

  client.handle('Reset', () => { throw createRPCError('InternalError', 'stuck', {}) })
  t.match(await put('CP001', reset, 'ttl=60&confirm=true'), { status: 422, body: { code: 'DEVICE_REFUSED', device: { code: 'InternalError', message: 'stuck' } } })
  t.match(await put('CP001', reset, ''), { status: 200, body: { status: 'sent' } }, 'now or never asks for no answer')
  await until(() => app.devices.stats().calls.refused === 1)
})

t.test('a now-or-never message that would wait behind too many calls is refused', async t => {
  const app = await listen(t, { ...open, maxCalls: 1 })
  const client = await charger(t, app.url, 'CP001')
  client.handle('Reset', () => new Promise(() => {}))
  const waiting = reasonOf(app.devices.call('CP001', 'Reset', {}))
  t.equal(await reasonOf(app.devices.send('CP001', { method: 'ClearCache' })), 'busy')
  await client.close({ force: true })
  t.equal(await waiting, 'dropped')
})

t.test('a letter that is not answered gives way, comes again, and is dead-lettered', async t => {
  const app = await listen(t, { ...open, callTimeout: 50, attempts: 2 })
  const client = await charger(t, app.url, 'CP001')
  let asked = 0
  client.handle('Reset', () => { asked++; return new Promise(() => {}) })
  const { id } = await app.devices.send('CP001', { method: 'Reset', params: { type: 'Hard' } }, { ttl: 60_000 })
  await until(() => asked === 1)
  t.strictSame(await app.devices.call('CP001', 'ClearCache', {}, { timeout: 5_000 }), { status: 'Accepted' }, 'calls go on')
  await until(async () => (await app.devices.receipt('CP001', id)).status === 'dead-lettered')
  t.equal(asked, 2)
})

t.test('a letter that was taken back while it went unanswered does not come again', async t => {
  const app = await listen(t, { ...open, callTimeout: 50 })
  const client = await charger(t, app.url, 'CP001')
  let asked = 0
  client.handle('Reset', () => { asked++; return new Promise(() => {}) })
  const { id } = await app.devices.send('CP001', { method: 'Reset', params: { type: 'Hard' } }, { ttl: 60_000 })
  await until(() => asked === 1)
  await app.devices.cancel('CP001', id)
  await app.devices.send('CP001', { method: 'ClearCache' }, { ttl: 60_000, confirm: true, timeout: 5_000 })
  t.equal(asked, 1)
})

/** A charger of a few lines, for what the library does not do. */
async function raw (url: string, identity: string, protocols: string | string[]): Promise<{ socket: WebSocket, next: () => Promise<any> }> {
  const socket = new WebSocket(`${url.replace('http', 'ws')}/ocpp/${identity}`, protocols)
  const seen: unknown[] = []
  socket.on('message', data => seen.push(JSON.parse(data.toString())))
  await once(socket, 'open')
  let taken = 0
  return {
    socket,
    next: async () => {
      await until(() => seen.length > taken)
      return seen[taken++]
    }
  }
}

t.test('what is sent without wanting an answer gets none', async t => {
  const app = await listen(t, { ...open, rate: 1, burst: 8 })
  const told: unknown[] = []
  app.devices.handle('NotifyPeriodicEventStream', params => { told.push(params) })
  const { socket, next } = await raw(app.url, 'CS001', ['ocpp2.1', 'ocpp2.0.1'])
  t.equal(socket.protocol, 'ocpp2.1', 'the first that the charger offers')
  for (const frame of ['', '[7,"a"]', '[6,"a","NotifyPeriodicEventStream",{"id":1}]', '[6,"b","Unheard",{}]', '[6,"c",1,{}]', '[5,"d","GenericError","",{}]', '[2,"e","Unheard",{}]']) {
    socket.send(frame)
  }
  t.match(await next(), [4, 'e', 'NotImplemented'])
  t.strictSame(told, [{ id: 1 }])
  t.match(app.devices.stats(), { unexpected: { 'answer-invalid': 3, refused: 1 } })
  for (const id of ['f', 'g', 'h', 'i']) socket.send(`[6,"${id}","NotifyPeriodicEventStream",{}]`)
  socket.send('[2,"j","Unheard",{}]')
  t.match(await next(), [4, 'j', 'GenericError', 'Too many messages'])
  socket.terminate()
})

t.test('a message that cannot be read is told of where the version has words for it', async t => {
  const app = await listen(t, open)
  const [old, recent] = [await raw(app.url, 'CP001', 'ocpp1.6'), await raw(app.url, 'CS001', 'ocpp2.0.1')]
  for (const { socket } of [old, recent]) {
    socket.send('{')
    socket.send('[8,"a"]')
    socket.send('[2,"b","Unheard",{}]')
  }
  t.match(await old.next(), [4, 'b', 'NotImplemented'])
  t.match(await recent.next(), [4, '-1', 'RpcFrameworkError'])
  t.match(await recent.next(), [4, 'a', 'MessageTypeNotSupported'])
  t.match(await recent.next(), [4, 'b', 'NotImplemented'])
  for (const { socket } of [old, recent]) socket.terminate()
})

t.test('bytes go as base64', async t => {
  const app = await listen(t, open)
  const client = await charger(t, app.url, 'CP001', { strictMode: false })
  client.handle('DataTransfer', ({ params }: any) => params)
  const { status, body, headers } = await request(app, 'POST', '/devices/CP001/calls/DataTransfer', Uint8Array.of(0, 1, 255))
  t.match([status, headers.get('content-type'), [...body]], [200, 'application/octet-stream', [0, 1, 255]])
})

t.test('the id is in the path, percent-encoded', async t => {
  const app = await listen(t, { ...open, codecs: [jsonrpc(), ...ocpp({ path: '/central/ocppj', versions: ['ocpp1.6'] })] })
  const endpoint = `${app.url.replace('http', 'ws')}/central/ocppj`
  await charger(t, app.url, 'DE+:@=~._-1', { endpoint })
  t.ok(app.devices.has('DE+:@=~._-1'))
  t.match(await refusal(app.url, '/central/ocppj/RDAM%20123', { protocols: ['ocpp1.6'] }), { status: 400, body: { code: 'ID_INVALID' } })
  t.match(await refusal(app.url, '/central/ocppj/a%2Fb', { protocols: ['ocpp1.6'] }), { status: 400, body: { code: 'ID_INVALID' } })
  t.equal((await refusal(app.url, '/central/ocppj?deviceId=CP1', { protocols: ['ocpp1.6'] })).status, 404, 'and nowhere else')
  t.match(await request(app, 'GET', '/central/ocppj/CP001'), { status: 426, body: { code: 'UPGRADE_REQUIRED' } })
})

t.test('each path has its own protocols; a charger that speaks none of them is told so as OCPP-J asks', async t => {
  const app = await listen(t, { ...open, codecs: [...ocpp({ versions: ['ocpp1.6'] }), jsonrpc()] })
  t.match(await refusal(app.url, '/ws?deviceId=d', { protocols: ['ocpp1.6'] }), { status: 400, body: { code: 'PROTOCOL_UNKNOWN' } })
  t.equal((await connect(app.url, 'd')).socket.protocol, '', 'the first without a path of its own is for those who offer none')
  for (const offered of [undefined, 'ocpp1.5, jsonrpc']) {
    const { headers, opcode, code } = await handshake(app.url, '/ocpp/CP001', offered)
    t.equal(headers['sec-websocket-protocol'], undefined)
    t.strictSame([opcode, code], [8, 4506])
  }
  t.match(app.devices.stats().refusals, { 'bad-protocol': 3 })
  t.equal(app.devices.has('CP001'), false)
})

/** The answer to an upgrade, and the code of the close frame that follows. */
async function handshake (url: string, path: string, offered: string | undefined) {
  const asked = httpRequest(url + path, {
    headers: {
      connection: 'Upgrade',
      upgrade: 'websocket',
      'sec-websocket-version': '13',
      'sec-websocket-key': 'AAAAAAAAAAAAAAAAAAAAAA==',
      ...(offered !== undefined && { 'sec-websocket-protocol': offered })
    }
  }).end()
  const [{ headers }, socket, head] = await once(asked, 'upgrade')
  const frame: Buffer = head.length > 0 ? head : (await once(socket, 'data'))[0]
  socket.destroy()
  return { headers, opcode: frame[0]! & 15, code: frame.readUInt16BE(2) }
}

t.test('a name and a password are handed to authenticate', async t => {
  const given: unknown[] = []
  const app = await listen(t, {
    ...open,
    authenticate: ({ deviceId, username, password, token }) => {
      given.push([username, password, token])
      if (deviceId === 'stranger') throw new Failure('offline', { message: 'No such charger' })
      return username === deviceId && password === 'sesame:ü'
    }
  })
  await charger(t, app.url, 'CP:001', { password: 'sesame:ü' })
  t.ok(app.devices.has('CP:001'), 'a colon in the id is no end of the name')
  const refused = async (authorization?: string, id = 'CP1') => (await refusal(app.url, `/ocpp/${id}`, { protocols: ['ocpp1.6'], ...(authorization && { headers: { authorization } }) })).status
  const basic = (bytes: Buffer) => `Basic ${bytes.toString('base64')}`
  t.equal(await refused(), 401)
  t.equal(await refused(basic(Buffer.from('CP2:sesame:ü'))), 401)
  t.equal(await refused(basic(Buffer.from('no colon'))), 401)
  t.equal(await refused(basic(Buffer.from([0x43, 0x3a, 0xff, 0x00]))), 401)
  t.equal(await refused('Bearer abc'), 401)
  t.equal(await refused(undefined, 'stranger'), 404, 'as OCPP-J would have it for a charger that is not known')
  t.strictSame(given, [
    ['CP:001', 'sesame:ü', undefined],
    [undefined, undefined, undefined],
    ['CP2', 'sesame:ü', undefined],
    [undefined, undefined, undefined],
    ['C', '\u00ff\u0000', undefined],
    [undefined, undefined, 'abc'],
    [undefined, undefined, undefined]
  ])
})

t.test('the example is a central system', async t => {
  const { NODE_OPTIONS: _, ...env } = process.env
  const program = spawn(process.execPath, [join(root, 'dist/example/ocpp.js')], { env: { ...env, PORT: '0', PASSWORD: 'sesame' }, stdio: ['ignore', 'pipe', 'inherit'] })
  t.teardown(() => program.kill('SIGKILL'))
  let url = ''
  for await (const line of createInterface(program.stdout)) {
    url = line.match(/^Listening on (.*)$/)?.[1] ?? ''
    if (url) break
  }
  await t.rejects(charger(t, url, 'CP001', { password: 'wrong' }))
  const client = await charger(t, url, 'CP001', { password: 'sesame' })
  t.match(await client.call('BootNotification', { chargePointVendor: 'V', chargePointModel: 'M' }), { status: 'Accepted' })
  t.match(await client.call('Heartbeat', {}), { currentTime: String })
  t.match(await client.call('Authorize', { idTag: '04' }), { idTagInfo: { status: 'Accepted' } })
  t.match(await client.call('StatusNotification', { connectorId: 1, errorCode: 'NoError', status: 'Available' }), {})
  t.match(await client.call('MeterValues', { connectorId: 1, meterValue: [{ timestamp: '2026-01-01T00:00:00Z', sampledValue: [{ value: '7' }] }] }), {})
  t.match(await client.call('StartTransaction', { connectorId: 1, idTag: '04', meterStart: 0, timestamp: '2026-01-01T00:00:00Z' }), { transactionId: 1 })
  t.match(await client.call('StopTransaction', { transactionId: 1, meterStop: 1, timestamp: '2026-01-01T00:00:00Z' }), {})
  t.match(await request({ url }, 'POST', '/devices/CP001/calls/RemoteStartTransaction', { idTag: '04' }), { status: 200, body: { status: 'Accepted' } })
  t.match((await request({ url }, 'GET', '/connectors')).body, { statuses: { 'CP001/1': 'Available' }, meters: { 'CP001/1': { sampledValue: [{ value: '7' }] } } })
  program.kill('SIGTERM')
  t.strictSame((await once(program, 'exit'))[0], 0)
})
