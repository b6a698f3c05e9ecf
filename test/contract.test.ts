import { Type } from '@sinclair/typebox'
import t from 'tap'
import WebSocket from 'ws'
import { z } from 'zod'
import { connect as connectClient } from '../lib/client/index.ts'
import { contract, localBackplane, jsonrpc, type Contract } from '../lib/index.ts'
import { ocpp } from '../lib/protocol/ocpp.ts'
import { injectDevice } from '../lib/testing/index.ts'
import { createWorker } from '../lib/workers/worker.ts'
import { all, fakeLog, reasonOf } from './fakes.ts'
import { connect, listen, request } from './support.ts'

const kiosk = contract({
  methods: { sale: { params: Type.Object({ total: Type.Number() }), result: Type.Object({ no: Type.Integer() }) } },
  commands: {
    reboot: { params: Type.Object({ delay: Type.Number() }), result: Type.Object({ at: Type.String() }) },
    identify: { result: Type.String() }
  },
  topics: { 'prices/+': Type.Object({ cents: Type.Integer() }), 'news/#': Type.String() },
  message: Type.Object({ show: Type.String() })
})

const overlapping = contract({
  topics: { 'x/+': Type.Object({ a: Type.Number() }), 'x/#': Type.Object({ b: Type.Number() }) },
  commands: { maybe: { params: z.object({}).optional() } }
})

const invalid = (message: string) => ({ statusCode: 400, code: 'PARAMS_INVALID', message })

t.test('params of a call that do not fit never leave, and a result that does not fit is no result', async t => {
  const app = await listen(t, { contract: kiosk })
  const device = await connect(app.url, 'k1')
  const asked: unknown[] = []
  device.handle('reboot', params => {
    asked.push(params)
    return { at: params.delay === 0 ? null : 'noon' }
  })
  t.strictSame(await app.devices.call('k1', 'reboot', { delay: 5 }), { at: 'noon' })
  for (const params of [{ delay: '5' }, {}, undefined]) await t.rejects(app.devices.call('k1', 'reboot', params), { statusCode: 400, code: 'PARAMS_INVALID', message: /^params/ })
  await t.rejects(app.devices.call('k1', 'reboot', { delay: 0 }), { statusCode: 502, code: 'DEVICE_ANSWER_INVALID', message: 'The result does not fit the contract: result/at: Expected string' })
  t.strictSame(asked, [{ delay: 5 }, { delay: 0 }])
  const call = async (body: object) => await request(app, 'POST', '/devices/k1/calls/reboot', body)
  t.match(await call({ delay: 5 }), { status: 200, body: { at: 'noon' } })
  t.match(await call({}), { status: 400, body: invalid('params/delay: Expected required property') })
  t.match(await call({ delay: 0 }), { status: 502, body: { code: 'DEVICE_ANSWER_INVALID' } })
  t.equal(asked.length, 4)
})

t.test('whatever a contract does not name is not checked', async t => {
  const app = await listen(t, { contract: contract({ commands: { bare: {} } }) })
  const device = await connect(app.url, 'k1')
  for (const method of ['bare', 'other', 'constructor']) {
    device.handle(method, params => params)
    t.strictSame(await app.devices.call('k1', method, { any: 1 }), { any: 1 })
  }
  await app.devices.send('k1', 5)
  await app.devices.broadcast(null, { topic: 'any' })
  app.devices.handle('toString', params => params)
  t.strictSame((await device.ask('toString', { any: 1 })).result, { any: 1 })
})

t.test('messages and publications that do not fit go nowhere, over REST, in bulk and from devices', async t => {
  const app = await listen(t, { contract: kiosk })
  const device = await connect(app.url, 'k1')
  await device.ask('subscribe', { topics: ['prices/+', 'news/#'] })
  const good = { show: 'hello' }
  const bad = { show: 1 }
  const message = 'message/show: Expected string'
  t.match(await app.devices.send('k1', good), { status: 'sent' })
  await t.rejects(async () => await app.devices.send('k1', bad), invalid(message))
  await t.rejects(app.devices.send('k1', bad, { ttl: 1_000, key: 'k' }), invalid(message))
  t.match(await all(app.devices.sendMany([{ to: 'k1', data: bad }, { to: 'k1', data: good }])), [invalid(message), { status: 'sent' }])
  await t.rejects(app.devices.broadcast(bad), invalid(message))
  t.match(await app.devices.broadcast(good), { sent: 1 })
  t.match(await app.devices.broadcast({ cents: 5 }, { topic: 'prices/milk' }), { sent: 1 })
  await t.rejects(app.devices.broadcast({ cents: 0.5 }, { topic: 'prices/milk' }), invalid('message/cents: Expected integer'))
  await t.rejects(app.devices.broadcast(5, { topic: 'news/a/b' }), invalid('message: Expected string'))
  t.match((await device.ask('publish', { topic: 'prices/milk', data: {} })).error, { code: -32602 })
  t.strictSame((await device.ask('publish', { topic: 'news', data: 'x' })).result, {})
  t.match(await request(app, 'POST', '/devices/k1/messages', bad), { status: 400, body: invalid(message) })
  t.match(await request(app, 'POST', '/broadcast', bad), { status: 400, body: invalid(message) })
  t.match(await request(app, 'POST', '/broadcast?topic=prices/milk', {}), { status: 400 })
  const lines = [bad, good].map(data => JSON.stringify({ to: 'k1', data })).join('\n')
  const { body } = await request(app, 'POST', '/messages', lines, { 'content-type': 'application/x-ndjson' })
  t.match(String(body), /"PARAMS_INVALID".*\n.*"sent"/)
  await device.ask('ping')
  const received = device.seen.filter(({ method }) => method === 'message').map(({ params }) => params.data)
  t.strictSame(received, [good, good, good, { cents: 5 }, 'x', good])
})

t.test('what a handler sends to its device and calls there is checked', async t => {
  const app = await listen(t, { contract: kiosk })
  app.devices.handle('try', async ({ data }: any, { device }) => {
    device.send(data)
    return await device.call('reboot', data)
  })
  const device = await connect(app.url, 'k1')
  device.handle('reboot', () => ({ at: 'noon' }))
  t.strictSame((await device.ask('try', { data: { show: 'x', delay: 1 } })).result, { at: 'noon' })
  t.equal((await device.ask('try', { data: { show: 1, delay: 1 } })).error!.code, -32602)
  t.equal((await device.ask('try', { data: { show: 'x' } })).error!.code, -32602)
})

t.test('authorize is asked for a command of the contract as for any other method', async t => {
  const asked: unknown[] = []
  const app = await listen(t, {
    contract: kiosk,
    authorize (_caller, operation) {
      asked.push(operation)
      return operation.method !== 'reboot'
    }
  })
  const device = await connect(app.url, 'k1')
  for (const method of ['reboot', 'identify', 'other']) device.handle(method, () => 'x')
  const statuses = []
  for (const method of ['reboot', 'identify', 'other']) statuses.push((await request(app, 'POST', `/devices/k1/calls/${method}`, {})).status)
  t.strictSame(statuses, [403, 200, 200])
  t.strictSame(asked, ['reboot', 'identify', 'other'].map(method => ({ action: 'call', deviceId: 'k1', method })))
})

t.test('a handler without schemas has those of the contract', async t => {
  const app = await listen(t, { contract: kiosk })
  app.devices.as(kiosk).handle('sale', ({ total }) => ({ no: total }))
  const device = await connect(app.url, 'k1')
  t.strictSame((await device.ask('sale', { total: 7 })).result, { no: 7 })
  t.equal((await device.ask('sale', { total: '7' })).error!.code, -32602)
  t.equal((await device.ask('sale', { total: 0.5 })).error!.code, -32603)
})

t.test('a wrong contract throws at registration and is named', async t => {
  const odd = { type: 'text' }
  const wrong: Array<[contract: object, message: RegExp]> = [
    [{ metods: {} }, /contract has no option "metods"/],
    [{ methods: { sale: { param: odd } } }, /The method "sale" of the contract has no option "param"/],
    [{ methods: { subscribe: {} } }, /the method "subscribe", which is built in/],
    [{ methods: { sale: { params: odd } } }, /The schema "params" of the method "sale" cannot be compiled/],
    [{ commands: { welcome: {} } }, /the command "welcome", which is built in/],
    [{ commands: { reboot: { result: odd } } }, /The schema "result" of the command "reboot" cannot be compiled/],
    [{ topics: { 'a/#/b': {} } }, /a topic "a\/#\/b", which is not a valid filter/],
    [{ methods: [] }, /The member "methods" of the contract is not an object/],
    [{ commands: new Map() }, /The member "commands" of the contract is not an object/],
    [{ topics: null }, /The member "topics" of the contract is not an object/],
    [{ commands: { reboot: null } }, /The command "reboot" of the contract is not an object of schemas/],
    [{ commands: { reboot: { params: null } } }, /The schema "params" of the command "reboot" cannot be compiled: it is not a schema/],
    [{ message: false }, /The schema "message" cannot be compiled: it is not a schema/],
    [{ topics: { a: odd } }, /The schema of the topic "a" cannot be compiled/],
    [{ message: Type.String({ format: 'colour' }) }, /The schema "message" cannot be compiled: unknown format "colour"/]
  ]
  for (const [contract, message] of wrong) await t.rejects(listen(t, { contract: contract as Contract }), { message })
})

t.test('the devices are typed by their own contract only', async t => {
  const app = await listen(t, { contract: kiosk })
  t.equal(app.devices.as(kiosk), app.devices)
  t.throws(() => app.devices.as(contract({})), { message: 'as() takes the contract of the option "contract"' })
})

t.test('schemas of a contract may transform; where several filters match, what was given is sent', async t => {
  const changing = contract({
    commands: { time: { params: z.object({ at: z.number() }).transform(({ at }) => ({ at: at + 1 })), result: z.string().transform(text => new Date(text)) } },
    topics: { 'a/+': z.string().transform(text => `${text}b`), 'a/#': z.string().transform(Number) },
    message: z.string().transform(text => text.toUpperCase())
  })
  const app = await listen(t, { contract: changing })
  const devices = app.devices.as(changing)
  const device = await connect(app.url, 'k1')
  device.handle('time', ({ at }) => new Date(at).toISOString())
  const time: Date = await devices.call('k1', 'time', { at: 0 })
  t.equal(time.getTime(), 1)
  t.match(await devices.send('k1', 'x'), { status: 'sent' })
  await device.ask('subscribe', { topics: ['a/#'] })
  await devices.broadcast('5', { topic: 'a/b' })
  await devices.broadcast('5', { topic: 'a/b/c' })
  const received = []
  while (received.length < 3) received.push((await device.message()).params.data)
  t.strictSame(received, ['X', '5', 5])
})

t.test('a retry gets the same result, although the schema makes something else of the same message', async t => {
  let count = 0
  const app = await listen(t, { contract: contract({ message: z.string().transform(text => `${text} ${++count}`) }) })
  const device = await connect(app.url, 'k1')
  const first = await app.devices.send('k1', 'x', { key: '1' })
  t.strictSame(await app.devices.send('k1', 'x', { key: '1' }), first)
  t.equal(await reasonOf(app.devices.send('k1', 'y', { key: '1' })), 'key-mismatch')
  await device.ask('ping')
  t.strictSame(device.seen.filter(({ method }) => method === 'message').map(({ params }) => params.data), ['x 1'])
})

t.test('what is sent to a device arrives in order', async t => {
  const app = await listen(t, { contract: kiosk })
  app.devices.on('connected', device => {
    device.call('identify').catch(() => {})
    device.send({ show: '0' })
  })
  const device = await connect(app.url, 'k1')
  device.handle('identify', () => 'x')
  await device.message()
  const sent = [app.devices.broadcast({ show: '1' }), app.devices.send('k1', { show: '2' }), app.devices.call('k1', 'identify'), app.devices.send('k1', { show: '3' })]
  await Promise.all(sent)
  await device.ask('ping')
  const received = device.seen.filter(({ method }) => method === 'message' || method === 'identify').map(({ method, params }) => params?.data?.show ?? method)
  t.strictSame(received, ['identify', '0', '1', '2', 'identify', '3'])
})

t.test('a schema that is asynchronous, or fails, is an internal error, and logged', async t => {
  const log = fakeLog()
  const odd = contract({
    message: z.string().refine(async () => true),
    topics: { broken: z.string().transform(() => { throw new Error('broken') }) },
    commands: { late: { params: { '~standard': { version: 1 as const, vendor: 'test', validate: () => Promise.reject(new Error('late')) } } } }
  })
  const app = await listen(t, { contract: odd }, { loggerInstance: log })
  const device = await connect(app.url, 'k1')
  t.equal(await reasonOf(app.devices.send('k1', 'x')), 'internal')
  t.match(await all(app.devices.sendMany([{ to: 'k1', data: 'x' }])), [{ reason: 'internal' }])
  t.equal(await reasonOf(app.devices.broadcast('x', { topic: 'broken' })), 'internal')
  t.equal(await reasonOf(app.devices.call('k1', 'late', {})), 'internal')
  t.equal(await reasonOf(app.devices.get('k1')!.call('late', {})), 'internal')
  t.equal((await device.ask('publish', { topic: 'broken', data: 'x' })).error!.code, -32603)
  const failed = log.lines.filter(({ level, words }) => level === 'error' && words.endsWith(' failed')).map(({ words }) => words)
  t.strictSame(failed, [
    'The schema "message" failed', 'The schema "message" failed', 'The schema of the topic "broken" failed', 'The schema "params" of the command "late" failed',
    'The schema "params" of the command "late" failed', 'The schema of the topic "broken" failed'
  ])
})

t.test('a command keeps its name where the router ignores case', async t => {
  const app = await listen(t, { contract: contract({ commands: { reset: {}, Reset: {} } }) }, { routerOptions: { caseSensitive: false, maxParamLength: 128 } } as object)
  const device = await connect(app.url, 'k1')
  for (const method of ['reset', 'Reset']) device.handle(method, () => method)
  for (const method of ['reset', 'Reset']) t.equal((await request(app, 'POST', `/devices/k1/calls/${method}`, {})).body, method)
})

t.test('a worker checks by the contract, and so does the node that it asks', async t => {
  const backplane = localBackplane()
  const app = await listen(t, { backplane, contract: kiosk })
  const worker = await createWorker({ backplane, contract: kiosk })
  t.teardown(() => worker.close())
  const device = await connect(app.url, 'k1')
  device.handle('reboot', () => ({ at: 'noon' }))
  const kiosks = worker.as(kiosk)
  kiosks.handle('sale', ({ total }) => ({ no: total }))
  t.strictSame(await kiosks.call('k1', 'reboot', { delay: 1 }), { at: 'noon' })
  await t.rejects(worker.call('k1', 'reboot', {}), { code: 'PARAMS_INVALID' })
  await t.rejects(worker.send('k1', {}), { code: 'PARAMS_INVALID' })
  t.equal((await device.ask('sale', {})).error!.code, -32602)
  t.strictSame((await device.ask('sale', { total: 3 })).result, { no: 3 })
  t.throws(() => worker.as(contract({})), { message: /as\(\) takes the contract/ })
})

t.test('a charger that speaks OCPP is called by the contract', async t => {
  const charger = contract({ commands: { Reset: { params: Type.Object({ type: Type.String() }), result: Type.Object({ status: Type.String() }) } } })
  const app = await listen(t, { contract: charger, codecs: [jsonrpc(), ...ocpp()] })
  const device = await connect(app.url, 'c1', { path: '/ocpp/c1', protocols: ['ocpp1.6'], unwelcomed: true })
  device.socket.on('message', frame => {
    const [, id, , { type }] = JSON.parse(String(frame))
    device.socket.send(JSON.stringify([3, id, { status: type === 'Soft' ? 'Accepted' : 5 }]))
  })
  const chargers = app.devices.as(charger)
  t.strictSame(await chargers.call('c1', 'Reset', { type: 'Soft' }), { status: 'Accepted' })
  await t.rejects(chargers.call('c1', 'Reset', { type: 'Hard' }), { code: 'DEVICE_ANSWER_INVALID' })
  await t.rejects(app.devices.call('c1', 'Reset', {}), { code: 'PARAMS_INVALID' })
})

t.test('the client has the types of the contract, and works with it', async t => {
  const app = await listen(t, { contract: kiosk })
  app.devices.as(kiosk).handle('sale', ({ total }) => ({ no: total }))
  const device = connectClient(`${app.url}/ws`, { deviceId: 'k1', WebSocket, contract: kiosk })
  t.teardown(() => device.close())
  device.handle('reboot', ({ delay }) => ({ at: `${delay}` }))
  const { no }: { no: number } = await device.call('sale', { total: 4 })
  t.equal(no, 4)
  t.strictSame(await app.devices.as(kiosk).call('k1', 'reboot', { delay: 5 }), { at: '5' })
  const priced = new Promise<number>(resolve => { device.subscribe('prices/+', ({ data }) => resolve(data.cents)) })
  await device.call('ping')
  await device.publish('prices/milk', { cents: 3 })
  t.equal(await priced, 3)
})

t.test('an injected device has the types of the contract, and works with it', async t => {
  const app = await listen(t, { contract: kiosk })
  app.devices.as(kiosk).handle('sale', ({ total }) => ({ no: total }))
  const device = await injectDevice(app, { deviceId: 'k1', contract: kiosk, handlers: { reboot: ({ delay }) => ({ at: `${delay}` }) } })
  const { no }: { no: number } = await device.call('sale', { total: 4 })
  t.equal(no, 4)
  t.strictSame(await app.devices.as(kiosk).call('k1', 'reboot', { delay: 5 }), { at: '5' })
  await device.publish('prices/milk', { cents: 3 })
  const wrong = async () => {
    // @ts-expect-error no such method
    await device.call('sales', { total: 1 })
    // @ts-expect-error no such result
    await injectDevice(app, { deviceId: 'k2', contract: kiosk, handlers: { reboot: () => ({ on: '' }) } })
  }
  t.type(wrong, 'function')
})

t.test('the compiler finds a wrong name, param, result and topic', async t => {
  const wrong = async () => {
    const app = await listen(t, { contract: kiosk })
    const kiosks = app.devices.as(kiosk)
    const worker = (await createWorker({ backplane: localBackplane(), contract: kiosk })).as(kiosk)
    const device = connectClient('ws://localhost/ws', { deviceId: 'd', contract: kiosk })
    for (const server of [kiosks, worker]) {
      const { at } = await server.call('k1', 'reboot', { delay: 5 })
      at.toUpperCase();
      (await server.call('k1', 'identify')).toUpperCase()
      await server.broadcast({ show: 'x' })
      await server.broadcast({ cents: 5 }, { topic: 'prices/milk' })
      await server.broadcast('x', { topic: 'news' })
      // @ts-expect-error no such command
      await server.call('k1', 'rebot', { delay: 5 })
      // @ts-expect-error no such param
      await server.call('k1', 'reboot', { dely: 5 })
      // @ts-expect-error params are missing
      await server.call('k1', 'reboot')
      // @ts-expect-error no such member in the result
      await server.call('k1', 'reboot', { delay: 5 }).then(({ on }) => on)
      // @ts-expect-error no such method
      server.handle('sales', () => ({ no: 1 }))
      // @ts-expect-error no such param
      server.handle('sale', ({ sum }) => ({ no: sum }))
      // @ts-expect-error no such result
      server.handle('sale', () => ({ number: 1 }))
      // @ts-expect-error no such message
      await server.send('k1', { display: 'x' })
      // @ts-expect-error no such topic
      await server.broadcast({ cents: 5 }, { topic: 'price/milk' })
      // @ts-expect-error another topic has that
      await server.broadcast({ cents: 5 }, { topic: 'news/a' })
    }
    for (const id of ['milk']) await kiosks.broadcast({ cents: 5 }, { topic: `prices/${id}` })
    // @ts-expect-error no filter matches it
    await kiosks.broadcast({ cents: 5 }, { topic: 'prices/milk/extra' })
    // @ts-expect-error a filter is no topic
    await kiosks.broadcast({ cents: 5 }, { topic: 'prices/+' })
    // @ts-expect-error no such method after another
    kiosks.handle('sale', () => ({ no: 1 })).handle('sales', () => ({ no: 1 }))
    const several = (await listen(t, { contract: overlapping })).devices.as(overlapping)
    await several.broadcast({ a: 1, b: 2 }, { topic: 'x/y' })
    // @ts-expect-error the other filter matches, too
    await several.broadcast({ a: 1 }, { topic: 'x/y' })
    await several.call('d', 'maybe')
    const typed = connectClient<typeof kiosk>('ws://localhost/ws', { deviceId: 'd' })
    // @ts-expect-error no such command, by the type alone
    typed.handle('rebot', () => ({ at: '' }))
    // @ts-expect-error no such message in bulk
    kiosks.sendMany([{ to: 'k1', data: { display: 'x' } }])
    // @ts-expect-error no such method
    await device.call('sales', { total: 1 })
    // @ts-expect-error no such param
    await device.call('sale', { sum: 1 })
    // @ts-expect-error no such member in the result
    await device.call('sale', { total: 1 }).then(({ number }) => number)
    // @ts-expect-error no such command
    device.handle('rebot', () => ({ at: '' }))
    // @ts-expect-error no such param
    device.handle('reboot', ({ dely }) => ({ at: dely }))
    // @ts-expect-error no such result
    device.handle('reboot', () => ({ on: '' }))
    // @ts-expect-error no such topic
    device.subscribe('price/+', () => {})
    // @ts-expect-error no such member in the message
    device.subscribe('prices/milk', ({ data }) => data.euros)
    // @ts-expect-error another topic has that
    await device.publish('news/a', { cents: 5 })
  }
  t.type(wrong, 'function')
})
