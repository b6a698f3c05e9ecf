import { setTimeout as sleep } from 'node:timers/promises'
import { Type } from '@sinclair/typebox'
import t, { type Test } from 'tap'
import { WORKER_DISCOVERY_TOPIC, WORKERS_TOPIC, type WorkerAnnouncement, type Backplane, type Owner } from '../lib/cluster/backplane.ts'
import { localBackplane, memoryMailbox, type Devices } from '../lib/index.ts'
import { noMailbox } from '../lib/storage/none.ts'
import type { Session } from '../lib/connection/session.ts'
import { createWorker, Failure, Refusal, type Device, type Health, type Worker, type WorkerOptions } from '../lib/workers/worker.ts'
import { all, countKept, fakeLog, gate, reasonOf, turn, until } from './fakes.ts'
import { severable } from './severable.ts'
import { connect, listen, type TestDevice } from './support.ts'

type Log = ReturnType<typeof fakeLog>

/** A worker that leaves when the test ends. */
async function employ (t: Pick<Test, 'teardown'>, options: WorkerOptions): Promise<Worker> {
  const worker = await createWorker(options)
  t.teardown(() => worker.close())
  return worker
}

/** So many workers that answer `who` with their name. */
async function crew (t: Pick<Test, 'teardown'>, backplane: Backplane, names: string[]): Promise<Worker[]> {
  const workers = []
  for (const name of names) workers.push((await employ(t, { backplane })).handle('who', () => name))
  await turn()
  return workers
}

/** Who answers each of the devices. */
async function askedWho (devices: TestDevice[]): Promise<unknown[]> {
  return await Promise.all(devices.map(async device => (await device.ask('who')).result))
}

const binary = (device: TestDevice, message: object, bytes: number[]) => {
  device.socket.send(Buffer.concat([Buffer.from(JSON.stringify({ jsonrpc: '2.0', ...message }) + '\n'), Buffer.from(bytes)]))
}

const spoken = (log: Log, level: string) => log.lines.filter(line => line.level === level).map(({ words }) => words)

t.test('a worker answers what devices call, as a handler of the gateway would', async t => {
  const backplane = localBackplane()
  const log = fakeLog()
  const worker = await employ(t, { backplane, log })
  const Params = Type.Object({ celsius: Type.Number() })
  worker.handle('report', { params: Params, result: Type.Object({ fahrenheit: Type.Number() }) }, async ({ celsius }) => ({ fahrenheit: celsius * 1.8 + 32 }))
  worker.handle('refuse', () => { throw new Refusal('Too hot', 42, { limit: 90 }) })
  worker.handle('broken', async () => { throw new Error('the database is at 10.0.0.7') })
  worker.handle('wrong', { result: Type.String() }, () => 7 as never)
  worker.handle('bytes', params => ({ seen: (params as any).data instanceof Uint8Array, data: (params as any).data }))
  worker.handle('nothing', () => {})
  const app = await listen(t, { backplane })
  const device = await connect(app.url, 'd')

  t.strictSame((await device.ask('report', { celsius: 100 })).result, { fahrenheit: 212 })
  t.strictSame((await device.ask('report', { celsius: 'hot' })).error, { code: -32602, message: 'params/celsius: Expected number' })
  t.strictSame((await device.ask('refuse')).error, { code: 42, message: 'Too hot', data: { limit: 90 } })
  t.strictSame((await device.ask('broken')).error, { code: -32603, message: 'Internal error' })
  t.strictSame((await device.ask('wrong')).error, { code: -32603, message: 'Internal error' })
  t.equal((await device.ask('nothing')).result, null)
  t.strictSame((await device.ask('nobody')).error, { code: -32601, message: 'No such method' })
  binary(device, { id: 'b', method: 'bytes' }, [0, 255, 10])
  const { data, result } = await device.answer('b')
  t.strictSame([...data!], [0, 255, 10])
  t.equal(result.seen, true)
  t.strictSame(spoken(log, 'error'), ['handler failed', 'handler failed'])
  t.strictSame(app.devices.stats().answers, { ok: 3, 'bad-params': 1, refused: 1, internal: 2, 'unknown-method': 1 })
})

t.test('the types of a handler follow from its schemas, in a worker too', async t => {
  const worker = await employ(t, { backplane: localBackplane() })
  worker.handle('right', { params: Type.Object({ n: Type.Number() }), result: Type.String() }, ({ n }) => n.toFixed())
  // @ts-expect-error there is no such member in the params
  worker.handle('wrong params', { params: Type.Object({ n: Type.Number() }) }, ({ m }) => m)
  // @ts-expect-error the result has another shape
  worker.handle('wrong result', { result: Type.String() }, () => 7)
  // @ts-expect-error a worker has no transports
  worker.on('connected', () => {})
  t.throws(() => worker.handle('ping', () => {}), new Error('The method "ping" is built in'))
})

t.test('a handler in a worker gets the device that called', async t => {
  const backplane = localBackplane()
  const worker = await employ(t, { backplane })
  let seen: Device | undefined
  worker.handle('look', (_params, { device }) => { seen = device })
  const circle: Record<string, unknown> = {}
  circle.self = circle
  const credentials = { user: 'ü', roles: ['a', { b: 1 }], later() {}, big: 1n, circle, missing: undefined }
  const app = await listen(t, { backplane, node: 'n1', authenticate: () => credentials, authorizeTopic: () => true })
  const device = await connect(app.url, 'd')
  await device.ask('subscribe', { topics: ['news/+'] })
  await device.ask('look')
  const { id, node, generation, since, address, protocol, topics, left } = seen!
  const here = app.devices.get('d')!
  t.strictSame([id, node, generation, since, address, protocol, [...topics], left], ['d', 'n1', here.generation, here.since, '127.0.0.1', 'jsonrpc', ['news/+'], undefined])
  t.strictSame(seen!.credentials, { user: 'ü', roles: ['a', { b: 1 }] }, 'what JSON can tell of them')
})

t.test('a handler in a worker speaks to its device', async t => {
  const backplane = localBackplane()
  const log = fakeLog()
  const worker = await employ(t, { backplane, log })
  let caller: Device | undefined
  worker.handle('hello', async (_params, { device }) => {
    caller = device
    device.send({ n: 1 })
    device.send(Buffer.from([2]))
    return await device.call('add', { a: 1 })
  })
  const expiresAt = Date.now() + 60_000
  const app = await listen(t, { backplane, authenticate: () => ({ expiresAt }) })
  const device = (await connect(app.url, 'd')).handle('add', ({ a }) => a + 1)
  t.equal((await device.ask('hello')).result, 2)
  t.match((await device.message()).params, { data: { n: 1 } })
  t.strictSame([...(await device.message()).data!], [2])
  t.equal(await reasonOf(caller!.call('welcome')), 'bad-params', 'what the server sends by itself is not for it')

  t.throws(() => caller!.renew(Infinity), new TypeError('expiresAt is a number of milliseconds since 1970'))
  const again = (await connect(app.url, 'd')).handle('add', ({ a }) => a + 1)
  caller!.renew(1)
  await turn()
  const here = app.devices.get('d') as Session
  here.check(performance.now(), 0)
  t.equal(here.left, undefined, 'a newer connection is none of its business')
  t.equal((await again.ask('hello')).result, 2)
  t.strictSame(spoken(log, 'warn'), [])
  caller!.renew(1)
  t.equal((await again.closed).code, 4005)
  await until(() => app.devices.size === 0)
  caller!.send('too late')
  await until(() => spoken(log, 'warn').length === 1)
  t.match(log.lines.at(-1), { fields: { deviceId: 'd', err: { reason: 'offline' } }, words: 'message to device failed' })
})

t.test('the methods of a worker are known to every gateway, whichever started first', async t => {
  const backplane = localBackplane()
  const early = await listen(t, { backplane })
  const device = await connect(early.url, 'early')
  t.equal((await device.ask('who')).error!.code, -32601)
  const worker = await employ(t, { backplane })
  t.equal((await device.ask('who')).error!.code, -32601)
  worker.handle('who', () => 'w')
  await turn()
  t.equal((await device.ask('who')).result, 'w')
  const late = await listen(t, { backplane })
  t.equal((await (await connect(late.url, 'late')).ask('who')).result, 'w')
  await worker.close()
  t.equal((await device.ask('who')).error!.code, -32601)
})

t.test('several changes of a worker are announced together', async t => {
  const backplane = localBackplane()
  const told: WorkerAnnouncement[] = []
  const worker = await employ(t, { backplane })
  backplane.watch(WORKERS_TOPIC, ({ data }) => told.push(data as WorkerAnnouncement))
  const listener = () => {}
  worker.handle('a', () => {}).handle('b', () => {}).on('message', listener).on('delivered', () => {})
  await turn()
  worker.off('message', listener)
  await turn()
  t.strictSame(told.map(({ methods, leaving }) => [methods, leaving]), [[['message', 'a', 'b'], false], [['a', 'b'], false]])
})

t.test('a gateway answers itself what it has a handler for', async t => {
  const backplane = localBackplane()
  const app = await listen(t, { backplane })
  await crew(t, backplane, ['worker'])
  const device = await connect(app.url, 'd')
  t.equal((await device.ask('who')).result, 'worker')
  app.devices.handle('who', () => 'gateway')
  t.equal((await device.ask('who')).result, 'gateway')
})

t.test('messages that a worker never finishes with keep nothing of devices that have left', async t => {
  const backplane = localBackplane()
  const app = await listen(t, { backplane })
  const worker = await employ(t, { backplane })
  let heard = 0
  worker.on('message', () => { heard++; return new Promise(() => {}) })
  await turn()
  const left: Array<WeakRef<Device>> = []
  for (let count = 0; count < 10; count++) {
    const device = await connect(app.url, `d${count}`)
    left.push(new WeakRef(app.devices.get(`d${count}`)!))
    device.notify('message', { data: 1 })
    device.send({ jsonrpc: '2.0', id: 1, method: 'message', params: { data: 2 } })
    await until(() => heard === 2 * (count + 1))
    await device.close()
  }
  await until(() => countKept(left) <= 1)
  t.ok(countKept(left) <= 1)
})

t.test('a notice at which a listener of a worker fails later harms nothing', async t => {
  const backplane = localBackplane()
  const app = await listen(t, { backplane })
  const worker = await employ(t, { backplane })
  const rejections: unknown[] = []
  const onRejection = (error: unknown) => { rejections.push(error) }
  process.on('unhandledRejection', onRejection)
  t.teardown(() => process.off('unhandledRejection', onRejection))
  let heard = 0
  worker.on('message', async () => {
    heard++
    throw new Error('no disk')
  })
  await turn()
  const device = await connect(app.url, 'd')
  device.notify('message', { data: 1 })
  await until(() => heard === 1)
  t.ok((await device.ask('ping')).result)
  t.strictSame(rejections, [])
})

t.test('a message that reaches a worker after its last listener has gone is not answered as if it had been heard', async t => {
  const backplane = localBackplane()
  const app = await listen(t, { backplane })
  const worker = await employ(t, { backplane })
  const heard: unknown[] = []
  const once = (data: unknown) => {
    heard.push(data)
    worker.off('message', once)
  }
  worker.on('message', once)
  await turn()
  const device = await connect(app.url, 'd')
  device.send([1, 2].map(id => ({ jsonrpc: '2.0', id, method: 'message', params: { data: id } })))
  device.seen.length = 0 // the welcome
  await until(() => device.seen.length > 0)
  t.match(device.seen.flat().toSorted((one, other) => Number(one.id) - Number(other.id)), [{ id: 1, result: {} }, { id: 2, error: { code: -32601 } }])
  t.strictSame(heard, [1])
})

t.test('a message goes to the listeners of its gateway, and where there are none to a worker', async t => {
  const backplane = localBackplane()
  const app = await listen(t, { backplane })
  const worker = await employ(t, { backplane })
  const device = await connect(app.url, 'd')
  t.equal((await device.ask('message', { data: 0 })).error!.code, -32601, 'nobody listens')
  const heard: unknown[] = []
  const atGateway = (data: unknown, { id }: Device) => { heard.push(['gateway', data, id]) }
  const atWorker = (data: unknown, { id }: Device) => { heard.push(['worker', data, id]) }
  worker.on('message', atWorker)
  await turn()
  t.strictSame((await device.ask('message', { data: 1 })).result, {})
  t.strictSame((await device.ask('message', {})).result, {})
  binary(device, { id: 'b', method: 'message' }, [7])
  await device.answer('b')
  app.devices.on('message', atGateway)
  t.strictSame((await device.ask('message', { data: 2 })).result, {})
  app.devices.off('message', atGateway)
  worker.off('message', atWorker)
  await turn()
  t.equal((await device.ask('message', { data: 3 })).error!.code, -32601)
  t.strictSame(heard, [['worker', 1, 'd'], ['worker', null, 'd'], ['worker', Buffer.from([7]), 'd'], ['gateway', 2, 'd']])
  worker.on('message', async () => { throw new Error('no disk') })
  await turn()
  t.equal((await device.ask('message', { data: 4 })).error!.code, -32603, 'once its listeners have finished')
  t.equal((await device.ask('message', 7)).error!.code, -32600)
})

t.test('notices arrive in order, however many, also after their device has left', async t => {
  const shared = localBackplane()
  const slow: Backplane = {
    ...shared,
    async ask (...asked) {
      await sleep(20)
      return await shared.ask(...asked)
    }
  }
  const app = await listen(t, { backplane: slow, maxCalls: 4 })
  const worker = await employ(t, { backplane: shared })
  const heard: unknown[] = []
  worker.on('message', data => { heard.push(data) })
  await turn()
  const device = await connect(app.url, 'd')
  const sent = Array.from({ length: 100 }, (_, n) => n)
  for (const n of sent) device.notify('message', { data: n })
  await device.close()
  await until(() => heard.length === 100)
  t.strictSame(heard, sent)
  t.equal(app.devices.stats().answers.busy, undefined)
})

t.test('workers share the connections in turn, and each connection stays with one', async t => {
  const backplane = localBackplane()
  const gateways = [await listen(t, { backplane }), await listen(t, { backplane })]
  await crew(t, backplane, ['a', 'b', 'c'])
  const devices: TestDevice[] = []
  for (let n = 0; n < 12; n++) devices.push(await connect(gateways[n % 2]!.url, `d${n}`))
  const first: unknown[] = []
  for (const device of devices) first.push(...await askedWho([device]))
  t.strictSame(first, ['a', 'a', 'b', 'b', 'c', 'c', 'a', 'a', 'b', 'b', 'c', 'c'])
  for (let round = 0; round < 3; round++) t.strictSame(await askedWho(devices), first)

  await crew(t, backplane, ['new'])
  t.strictSame(await askedWho(devices), first, 'who comes takes nothing from the others')
  const fresh = []
  for (let n = 0; n < 4; n++) fresh.push(await connect(gateways[0]!.url, `fresh${n}`))
  t.strictSame((await askedWho(fresh)).toSorted(), ['a', 'b', 'c', 'new'])
})

t.test('workers with different methods are each found', async t => {
  const backplane = localBackplane()
  const app = await listen(t, { backplane })
  const readers = [await employ(t, { backplane }), await employ(t, { backplane })]
  const writers = [await employ(t, { backplane }), await employ(t, { backplane })]
  for (const [n, worker] of readers.entries()) worker.handle('read', () => `reader ${n}`)
  for (const [n, worker] of writers.entries()) worker.handle('write', () => `writer ${n}`)
  await turn()
  for (const at of [0, 1, 0, 1]) {
    const device = await connect(app.url, `d${Math.random()}`)
    for (let round = 0; round < 2; round++) {
      t.equal((await device.ask('read')).result, `reader ${at}`)
      t.equal((await device.ask('write')).result, `writer ${at}`)
    }
  }
})

t.test('several handlers of one method in a worker share its connections', async t => {
  const backplane = localBackplane()
  const app = await listen(t, { backplane })
  for (const name of ['a', 'b']) {
    const worker = await employ(t, { backplane })
    worker.handle('who', () => `${name}0`).handle('who', () => `${name}1`)
  }
  await turn()
  const found: unknown[] = []
  for (let n = 0; n < 8; n++) {
    const device = await connect(app.url, `d${n}`)
    const [who, ...again] = [...await askedWho([device]), ...await askedWho([device, device])]
    t.strictSame(again, [who, who])
    found.push(who)
  }
  t.strictSame(found, ['a0', 'b0', 'a1', 'b1', 'a0', 'b0', 'a1', 'b1'])
})

t.test('a leaving worker finishes its requests, and the next one takes new ones', async t => {
  const backplane = localBackplane()
  const app = await listen(t, { backplane })
  const [leaver] = await crew(t, backplane, ['a', 'b'])
  const door = gate<string>()
  leaver!.handle('work', () => door.opened)
  await turn()
  const device = await connect(app.url, 'd')
  t.equal((await device.ask('who')).result, 'a')
  const work = device.ask('work')
  await until(() => calls(app, 'd') === 1)
  let gone = false
  const leaving = leaver!.close().then(() => { gone = true })
  t.equal((await device.ask('who')).result, 'b')
  t.equal((await device.ask('work')).error!.code, -32601, 'nobody else answers this')
  t.equal(gone, false)
  door.open('done')
  t.equal((await work).result, 'done')
  await leaving
  t.equal((await device.ask('who')).result, 'b')
  await leaver!.close()
})

t.test('a leaving worker drops at its deadline what it has not finished', async t => {
  const backplane = localBackplane()
  const app = await listen(t, { backplane })
  const worker = await employ(t, { backplane, drainTimeout: 30 })
  let signal: AbortSignal | undefined
  worker.handle('hang', (_params, context) => {
    signal = context.signal
    return new Promise(() => {})
  })
  await turn()
  const device = await connect(app.url, 'd')
  const hung = device.ask('hang')
  await until(() => signal !== undefined)
  t.equal(signal!.aborted, false)
  await worker.close()
  t.equal((await hung).error!.code, -32003)
  t.equal(signal!.aborted, true)
})

t.test('requests that a killed worker had fail and do not run again, and the rest goes to others', async t => {
  const shared = localBackplane()
  const app = await listen(t, { backplane: shared })
  const doomed = severable(shared)
  const runs: unknown[] = []
  const workers = [await createWorker({ backplane: doomed.backplane }), await employ(t, { backplane: shared })]
  t.teardown(() => { void workers[0]!.close() })
  let signal: AbortSignal | undefined
  for (const [name, worker] of workers.entries()) {
    worker.handle('do', async (params, context) => {
      runs.push([name, (params as { n: number }).n])
      if ((params as { hang?: boolean }).hang) {
        signal = context.signal
        await new Promise(() => {})
      }
      return name
    })
  }
  await turn()
  const [first, second] = [await connect(app.url, 'd0'), await connect(app.url, 'd1')]
  t.equal((await first.ask('do', { n: 1 })).result, 0)
  t.equal((await second.ask('do', { n: 1 })).result, 1)
  const hung = first.ask('do', { n: 2, hang: true })
  await until(() => runs.length === 3)
  await doomed.cut()
  const after = [3, 4, 5].map(n => first.ask('do', { n }))
  t.strictSame((await hung).error, { code: -32003, message: 'The connection ended before the answer' })
  t.strictSame((await Promise.all(after)).map(({ result }) => result), [1, 1, 1])
  t.strictSame(runs, [[0, 1], [1, 1], [0, 2], [1, 3], [1, 4], [1, 5]])
  t.equal(signal!.aborted, true, 'it is told that nobody waits, in case it lives')
  t.equal((await second.ask('do', { n: 2 })).result, 1)
  t.match(app.devices.stats().answers, { ok: 6, dropped: 1 })
})

t.test('when the last worker is killed, no call stays unanswered', async t => {
  const shared = localBackplane()
  const app = await listen(t, { backplane: shared })
  const doomed = severable(shared)
  const worker = await createWorker({ backplane: doomed.backplane })
  t.teardown(() => { void worker.close() })
  worker.handle('who', () => 'w').handle('hang', () => new Promise(() => {}))
  await turn()
  const device = await connect(app.url, 'd')
  const hung = device.ask('hang')
  await turn()
  await doomed.cut()
  t.equal((await device.ask('who')).error!.code, -32003)
  t.equal((await hung).error!.code, -32003)
  t.equal((await device.ask('who')).error!.code, -32601)
})

t.test('a silent worker is given up even without calls, and one that announces itself is kept', async t => {
  const shared = localBackplane()
  const app = await listen(t, { backplane: shared })
  await crew(t, shared, ['w'])
  const frozen = severable(shared)
  const worker = await createWorker({ backplane: frozen.backplane })
  t.teardown(() => { void worker.close() })
  let begun = false
  worker.handle('hang', () => {
    begun = true
    return new Promise(() => {})
  })
  await turn()
  const device = await connect(app.url, 'd')
  const hung = device.ask('hang')
  await until(() => begun)
  frozen.freeze()
  t.equal((await hung).error!.code, -32003)
  t.equal((await device.ask('hang')).error!.code, -32601)
  t.equal((await device.ask('who')).result, 'w')
})

/** A backplane over which nothing that is asked arrives before the test says so. */
function distant (shared: Backplane): { backplane: Backplane, arrive: () => Promise<void>, arriveUntil: (done: Promise<unknown>) => Promise<void> } {
  const onTheWay: Array<() => void> = []
  const arrive = async () => {
    for (const go of onTheWay.splice(0)) go()
    await turn()
  }
  return {
    backplane: {
      ...shared,
      async ask (...asked) {
        await new Promise<void>(resolve => onTheWay.push(resolve))
        return await shared.ask(...asked)
      }
    },
    arrive,
    async arriveUntil (done) {
      const over = new AbortController()
      void done.then(() => over.abort())
      while (!over.signal.aborted) await arrive()
    }
  }
}

const calls = (app: { devices: Devices }, deviceId: string) => (app.devices.get(deviceId) as Session).calls

t.test('requests that never reached a killed worker go to another, in order', async t => {
  const shared = localBackplane()
  const { backplane, arrive, arriveUntil } = distant(shared)
  const app = await listen(t, { backplane })
  const doomed = severable(shared)
  const workers = [await createWorker({ backplane: doomed.backplane }), await employ(t, { backplane: shared })]
  t.teardown(() => { void workers[0]!.close() })
  const runs: unknown[] = []
  for (const [name, worker] of workers.entries()) worker.handle('do', params => { runs.push([name, (params as number[])[0]]) })
  await turn()
  const device = await connect(app.url, 'd')
  const early = device.ask('do', [1])
  await arriveUntil(early)
  const late = [2, 3, 4].map(n => device.ask('do', [n]))
  await until(() => calls(app, 'd') === 3)
  await doomed.cut()
  await arrive()
  const later = [5, 6].map(n => device.ask('do', [n]))
  await until(() => calls(app, 'd') === 5)
  const answers = Promise.all([...late, ...later])
  await arriveUntil(answers)
  t.strictSame((await answers).map(({ error }) => error), [undefined, undefined, undefined, undefined, undefined])
  t.strictSame(runs, [[0, 1], [1, 2], [1, 3], [1, 4], [1, 5], [1, 6]])
})

t.test('the next worker starts only after the leaving one has started all earlier requests', async t => {
  const shared = localBackplane()
  const { backplane, arriveUntil } = distant(shared)
  const app = await listen(t, { backplane })
  const workers = [await employ(t, { backplane: shared }), await employ(t, { backplane: shared })]
  const runs: unknown[] = []
  const door = gate()
  for (const [name, worker] of workers.entries()) {
    worker.handle('do', params => { runs.push([name, (params as number[])[0]]) }).handle('busy', () => door.opened)
  }
  await turn()
  const device = await connect(app.url, 'd')
  const busy = device.ask('busy')
  await until(() => calls(app, 'd') === 1)
  const before = [1, 2].map(n => device.ask('do', [n]))
  await until(() => calls(app, 'd') === 3)
  await arriveUntil(Promise.all(before))
  const onTheWay = [3, 4].map(n => device.ask('do', [n]))
  await until(() => calls(app, 'd') === 3)
  const leaving = workers[0]!.close()
  const after = [5, 6].map(n => device.ask('do', [n]))
  await until(() => calls(app, 'd') === 5)
  const answers = Promise.all([...onTheWay, ...after])
  await arriveUntil(answers)
  door.open()
  t.equal((await busy).error, undefined)
  await leaving
  t.strictSame((await answers).map(({ error }) => error), [undefined, undefined, undefined, undefined])
  t.strictSame(runs, [[0, 1], [0, 2], [0, 3], [0, 4], [1, 5], [1, 6]])
})

t.test('requests are queued behind a leaving worker; if it dies, others take them', async t => {
  const shared = localBackplane()
  const { backplane, arriveUntil } = distant(shared)
  const app = await listen(t, { backplane })
  const doomed = severable(shared)
  const workers = [await createWorker({ backplane: doomed.backplane }), await employ(t, { backplane: shared })]
  for (const [name, worker] of workers.entries()) worker.handle('do', () => name).handle('hang', () => new Promise(() => {}))
  await turn()
  const [device, other] = [await connect(app.url, 'd'), await connect(app.url, 'e')]
  const first = [device.ask('do'), device.ask('hang')]
  await until(() => calls(app, 'd') === 2)
  await arriveUntil(first[0]!)
  void workers[0]!.close()
  const held = [device.ask('do'), device.ask('do')]
  await until(() => calls(app, 'd') === 3)
  other.notify('do')
  await until(() => calls(app, 'e') === 1)
  await doomed.cut()
  await arriveUntil(Promise.all(held))
  t.strictSame((await Promise.all(held)).map(({ result }) => result), [1, 1])
  t.equal((await first[1]!).error!.code, -32003)
})

t.test('queued requests of a device that leaves are dropped', async t => {
  const shared = localBackplane()
  const { backplane, arrive } = distant(shared)
  const app = await listen(t, { backplane })
  const workers = [await employ(t, { backplane: shared }), await employ(t, { backplane: shared })]
  const runs: unknown[] = []
  for (const [name, worker] of workers.entries()) worker.handle('do', () => { runs.push(name) })
  await turn()
  const device = await connect(app.url, 'd')
  const asked = device.ask('do')
  await until(() => calls(app, 'd') === 1)
  await arrive()
  await asked
  const leaving = workers[0]!.close()
  void device.ask('do')
  await until(() => calls(app, 'd') === 1)
  await device.close()
  await until(() => app.devices.size === 0)
  await arrive()
  await leaving
  await turn()
  t.strictSame(runs, [0])
})

t.test('the signal of a handler in a worker aborts when its device leaves', async t => {
  const backplane = localBackplane()
  const app = await listen(t, { backplane })
  const worker = await employ(t, { backplane, drainTimeout: 30 })
  const signals: AbortSignal[] = []
  worker.handle('hang', (_params, { signal }) => {
    signals.push(signal)
    return new Promise(() => {})
  })
  await turn()
  const [leaver, stayer] = [await connect(app.url, 'leaver'), await connect(app.url, 'stayer')]
  leaver.notify('hang')
  await until(() => signals.length === 1)
  stayer.notify('hang')
  await until(() => signals.length === 2)
  await leaver.close()
  await until(() => signals[0]!.aborted)
  t.equal(signals[1]!.aborted, false)
  await worker.close()
  t.equal(signals[1]!.aborted, true)
})

t.test('a worker sends, calls and broadcasts as a gateway does', async t => {
  const backplane = localBackplane()
  const gateways = [await listen(t, { backplane, node: 'n0' }), await listen(t, { backplane, node: 'n1' })]
  const worker = await employ(t, { backplane, node: 'w', callTimeout: 50 })
  const devices = []
  for (const [n, { url }] of gateways.entries()) devices.push((await connect(url, `d${n}`)).handle('add', ({ a }) => a + 1).handle('message', () => 'ok'))
  t.match(await worker.send('d1', { n: 1 }), { status: 'sent' })
  t.match((await devices[1]!.message()).params, { data: { n: 1 } })
  t.match(await worker.send('d0', 2, { confirm: true }), { status: 'delivered' })
  t.equal(await worker.call('d0', 'add', { a: 41 }), 42)
  t.equal(await reasonOf(worker.call('d0', 'mute')), 'timeout')
  t.equal(await reasonOf(worker.send('away', 1)), 'offline')
  t.match(await worker.broadcast('all'), { sent: 2, nodes: 2 })
  t.strictSame(await worker.join('d1', 'news'), ['news'])
  t.match(await worker.broadcast('some', { topic: 'news' }), { sent: 1, nodes: 1 })
  t.strictSame(await worker.leave('d1', 'news'), [])
  t.match(await worker.list(), [{ deviceId: 'd0', node: 'n0' }, { deviceId: 'd1', node: 'n1' }])
  t.equal((await worker.list()).length, 2, 'a worker is no device')
  t.match(await worker.get('d1'), { connected: true, deviceId: 'd1', node: 'n1' })
  t.equal(await worker.get('away'), undefined)
  for (const id of ['$worker/w', '']) t.equal(await reasonOf(worker.get(id)), 'bad-id')
  await worker.disconnect('d1')
  t.equal((await devices[1]!.closed).code, 4511)
  await t.rejects(worker.send('away', 1, { ttl: 60_000 }), { code: 'STORE_FULL', message: /has no mailbox/ })
})

t.test('a worker sends letters with the mailbox of its gateways, which report those that expire', async t => {
  const backplane = localBackplane()
  const mailbox = memoryMailbox()
  const app = await listen(t, { backplane, mailbox })
  const worker = await employ(t, { backplane, mailbox })
  const told: unknown[] = []
  worker.on('replaced', ({ deviceId }) => { told.push(['replaced', deviceId]) })
  worker.on('expired', () => { told.push('the worker swept') })
  app.devices.on('expired', ({ deviceId }) => { told.push(['expired', deviceId]) })
  for (const data of [1, 2]) t.match(await worker.send('d', data, { ttl: 60_000, collapse: 'level' }), { status: 'queued' })
  await worker.send('e', 1, { ttl: 1 })
  t.match(await worker.get('d'), { connected: false, waiting: 1 })
  const device = (await connect(app.url, 'd')).handle('message', () => 'ok')
  t.match((await device.message()).params, { data: 2 })
  t.match(await worker.send('d', 3, { ttl: 60_000, confirm: true }), { status: 'delivered' })
  await until(() => told.length === 2)
  t.strictSame(told, [['replaced', 'd'], ['expired', 'e']])
})

t.test('without a mailbox nothing waits', async t => {
  const mailbox = noMailbox()
  t.strictSame(await all(mailbox.letters('d')), [])
  t.equal(await mailbox.settle('d', 'l', 'delivered'), false)
  t.equal(await mailbox.receipt('d', 'l'), undefined)
  t.equal(await mailbox.addAttempt('d', 'l'), 0)
  t.strictSame(await mailbox.sweep(0), [])
})

t.test('a worker that was suspended too long registers under another name', async t => {
  const backplane = localBackplane()
  const log = fakeLog()
  const names: string[] = []
  const owners: Owner[] = []
  const watched: Backplane = {
    ...backplane,
    async own (name, owner) {
      if (name.startsWith('$')) {
        names.push(name)
        owners.push(owner)
      }
      return await backplane.own(name, owner)
    }
  }
  const app = await listen(t, { backplane })
  const worker = await employ(t, { backplane: watched, log, node: 'w' })
  worker.handle('who', () => 'w').handle('hang', () => new Promise(() => {}))
  await turn()
  const device = await connect(app.url, 'd')
  const hung = device.ask('hang')
  await until(() => calls(app, 'd') === 1)

  const { now } = performance
  t.teardown(() => { performance.now = now })
  performance.now = () => now.call(performance) + 60_000
  // what had come in before it could know
  t.equal((await device.ask('who')).error!.code, -32003)
  await until(() => names.length === 2)
  t.equal((await hung).error!.code, -32003)
  t.not(names[0], names[1])
  t.ok(names.every(name => /^\$worker\/[\w-]+\/[\w-]{8}$/.test(name)))
  await until(async () => (await device.ask('who')).result === 'w')
  t.equal(await backplane.ask(names[0]!, { kind: 'reached' }), undefined)
  t.ok(spoken(log, 'warn').includes('worker was suspended too long, registers again'))
  t.equal(owners[1]!.listensTo('anything'), false)
  t.match(owners[1]!.presence, { deviceId: names[1], node: 'w' })
})

t.test('a worker logs that its backplane is down, and continues when it is back', async t => {
  const backplane = localBackplane()
  const log = fakeLog()
  let down = false
  const failing = <Args extends unknown[], T>(act: (...args: Args) => Promise<T>) => async (...args: Args) => {
    if (down) throw new Failure('unreachable')
    return await act(...args)
  }
  const shaky: Backplane = {
    ...backplane,
    publish: failing(backplane.publish),
    async own (...owned) {
      const { generation, release } = await failing(backplane.own)(...owned)
      return { generation, release: failing(release) }
    }
  }
  const app = await listen(t, { backplane })
  const worker = await employ(t, { backplane: shaky, log })
  worker.handle('who', () => 'w')
  await turn()
  const device = await connect(app.url, 'd')
  down = true
  worker.handle('new', () => 'new')
  await until(() => spoken(log, 'warn').includes('worker announcement failed'))
  const { now } = performance
  t.teardown(() => { performance.now = now })
  performance.now = () => now.call(performance) + 60_000
  await until(() => spoken(log, 'warn').includes('worker restart failed'))
  t.ok(spoken(log, 'warn').includes('worker name could not be released'))
  down = false
  await until(async () => (await device.ask('new')).result === 'new')
  down = true
  await worker.close()
  down = false
  t.equal(await reasonOf(createWorker({ backplane: { ...backplane, own: async () => { throw new Failure('unreachable') } } })), 'unreachable')
})

t.test('errors of the backplane are in the log of the worker', async t => {
  const log = fakeLog()
  const listeners: Array<(told: any) => void> = []
  const listener = (one: (told: any) => void) => { listeners.push(one) }
  await employ(t, { backplane: { ...localBackplane(), onLink: listener, onTrouble: listener }, log })
  const [link, trouble] = listeners
  link!(true)
  t.strictSame(spoken(log, 'warn'), [], 'to reach the others for the first time is nothing to warn of')
  t.equal(spoken(log, 'info').at(-1), 'cluster link up')
  link!(false)
  link!(true)
  trouble!(new Error('no room'))
  t.strictSame(spoken(log, 'warn'), ['cluster link down', 'cluster link restored'])
  t.match(log.lines.find(({ level }) => level === 'error'), { words: 'backplane error', fields: { err: { message: 'no room' } } })
})

t.test('a gateway that cannot reach its workers logs it', async t => {
  const backplane = localBackplane()
  const lines: string[] = []
  const logger = { level: 'warn', stream: { write: (line: string) => { lines.push(JSON.parse(line).msg) } } }
  let down = true
  let trouble = new Failure('unreachable')
  const shaky: Backplane = {
    ...backplane,
    async publish (publication) {
      if (publication.topic === WORKER_DISCOVERY_TOPIC) throw trouble
      return await backplane.publish(publication)
    },
    async ask (...asked) {
      if (down) throw new Failure('unreachable')
      return await backplane.ask(...asked)
    }
  }
  const early = await listen(t, { backplane: shaky }, { logger })
  t.strictSame(lines, [], 'a backplane that is not there yet says so itself')
  await early.close()
  trouble = new Failure('timeout')
  const app = await listen(t, { backplane: shaky }, { logger })
  t.strictSame(lines.splice(0), ['worker discovery failed'])
  const [worker] = await crew(t, backplane, ['w'])
  const device = await connect(app.url, 'd')
  t.equal((await device.ask('who')).error!.code, -32022)
  down = false
  t.equal((await device.ask('who')).result, 'w')
  down = true
  await worker!.close()
  await turn()
  t.strictSame(lines, ['leaving worker could not be asked'])
})

t.test('a worker whose name is taken by another process leaves', async t => {
  const backplane = localBackplane()
  const told: WorkerAnnouncement[] = []
  backplane.watch(WORKERS_TOPIC, ({ data }) => told.push(data as WorkerAnnouncement))
  await employ(t, { backplane })
  backplane.watch(WORKER_DISCOVERY_TOPIC, () => 0)
  await backplane.publish({ id: 'm', topic: WORKER_DISCOVERY_TOPIC, data: null })
  const { name } = told.at(-1)!
  await backplane.own(name, { presence: { deviceId: name, node: 'n', since: 0 }, yield () {} } as unknown as Owner)
  await until(() => told.at(-1)!.leaving)
})

t.test('a closed worker closes its backplane and mailbox once', async t => {
  const backplane = { ...localBackplane(), closed: 0, async close () { this.closed++ } }
  const mailbox = { ...memoryMailbox(), closed: 0, async close () { this.closed++; throw new Error('no disk') } }
  const worker = await createWorker({ backplane, mailbox })
  await t.rejects(worker.close(), new Error('no disk'))
  await t.rejects(worker.close(), new Error('no disk'))
  t.strictSame([backplane.closed, mailbox.closed], [1, 1])
})

t.test('a wrong option of a worker is named, and a mailbox that is not shared refused', async t => {
  const backplane = localBackplane()
  await t.rejects(createWorker({ backplane, drainTimeout: 0 }), { message: /the option "drainTimeout" is wrong/ })
  await t.rejects(createWorker({ backplane, crew: 7 } as WorkerOptions), { message: 'createWorker() has no option "crew"' })
  await t.rejects(createWorker({ backplane, pingInterval: 7 } as WorkerOptions), { message: 'createWorker() has no option "pingInterval"' }, 'nor one of the plugin that concerns no worker')
  await t.rejects(createWorker({ backplane: { ...backplane, remote: true }, mailbox: memoryMailbox() }), { message: /"mailbox" must be one that all nodes share/ })
})

t.test('a worker says whether it can reach the others', async t => {
  let backplaneHealth: Health = { ok: false, reason: 'NATS unreachable' }
  const worker = await employ(t, { backplane: { ...localBackplane(), health: async () => backplaneHealth } })
  t.strictSame(await worker.health(), { ok: false, mailbox: { ok: true }, backplane: backplaneHealth, draining: false })
  const ready = worker.ready()
  backplaneHealth = { ok: true }
  await ready
  t.match(await worker.health(), { ok: true })
  await worker.close()
  t.match(await worker.health(), { ok: false, draining: true })
  t.equal(await reasonOf(worker.ready()), 'draining')
})

t.test('a gateway that closes waits for what its workers have to answer', async t => {
  const backplane = localBackplane()
  const app = await listen(t, { backplane })
  const worker = await employ(t, { backplane })
  const door = gate<string>()
  worker.handle('work', () => door.opened)
  await turn()
  const device = await connect(app.url, 'd')
  const work = device.ask('work')
  await until(() => calls(app, 'd') === 1)
  const closing = app.close()
  door.open('done')
  t.equal((await work).result, 'done')
  await closing
})
