import { Writable } from 'node:stream'
import Fastify, { type FastifyInstance } from 'fastify'
import t, { type Test } from 'tap'
import { Stats } from '../lib/connection/stats.ts'
import devices, { Failure, type Authorize, type Guard, type Operation, type Options } from '../lib/index.ts'
import { Authorizer, authorizeRoutes, routeAction } from '../lib/rest/authorizer.ts'
import { fakeLog, gate } from './fakes.ts'
import { connect, listen, open, request, until } from './support.ts'

type App = FastifyInstance & { url: string }

const byName: Guard = ({ headers }) => ({ name: headers.authorization })
const ndjson = { 'content-type': 'application/x-ndjson' }

/** The status of a request and its body, of which HEAD has none. */
async function ask (app: App, method: string, path: string, authorization = 'ann'): Promise<{ status: number, body: unknown }> {
  const payload = method === 'POST' ? { payload: {} } : {}
  const { statusCode, body } = await app.inject({ method: method as 'GET', url: path, headers: { authorization }, ...payload })
  return { status: statusCode, body: body === '' ? undefined : JSON.parse(body) }
}

/** The outcomes of the lines of one request. */
async function sendLines (app: App, lines: object[], headers: Record<string, string> = {}): Promise<any[]> {
  const { status, body } = await request(app, 'POST', '/messages', lines.map(line => JSON.stringify(line)).join('\n'), { ...ndjson, ...headers })
  if (status !== 200) return [status]
  return String(body).trim().split('\n').map(line => JSON.parse(line))
}

/** An application that notes what `authorize` is asked, and allows it. */
async function noting (t: Test, options: Options = {}): Promise<{ app: App, asked: Array<[caller: unknown, operation: Operation]> }> {
  const asked: Array<[unknown, Operation]> = []
  const app = await listen(t, { authorize: (caller, operation) => { asked.push([caller, operation]); return true }, ...options })
  return { app, asked }
}

const questions: Array<[method: string, path: string, operation: Operation]> = [
  ['GET', '/devices?prefix=d&topic=a/b&limit=2&cursor=a', { action: 'list', prefix: 'd', topic: 'a/b' }],
  ['GET', '/asyncapi.json', { action: 'asyncapi' }],
  ['HEAD', '/events', { action: 'events' }],
  ['GET', '/webhooks', { action: 'webhooks' }],
  ['GET', '/devices', { action: 'list', prefix: undefined, topic: undefined }],
  ['HEAD', '/devices/d', { action: 'describe', deviceId: 'd' }],
  ['GET', '/devices/d', { action: 'describe', deviceId: 'd' }],
  ['POST', '/devices/d/messages', { action: 'send', deviceId: 'd' }],
  ['POST', '/devices/d/messages?topic=mine&prefix=mine&method=mine', { action: 'send', deviceId: 'd' }],
  ['GET', '/devices/d/messages', { action: 'letters', deviceId: 'd' }],
  ['GET', '/devices/d/messages/m', { action: 'receipt', deviceId: 'd' }],
  ['DELETE', '/devices/d/messages/m', { action: 'cancel', deviceId: 'd' }],
  ['DELETE', '/devices/d/messages', { action: 'purge', deviceId: 'd' }],
  ['POST', '/devices/d%2De/calls/re%2Fboot', { action: 'call', deviceId: 'd-e', method: 're/boot' }],
  ['PUT', '/devices/d/topics/news%2F%23?topic=mine', { action: 'join', deviceId: 'd', topic: 'news/#' }],
  ['DELETE', '/devices/d/topics/news/+', { action: 'leave', deviceId: 'd', topic: 'news/+' }],
  ['POST', '/broadcast?topic=a', { action: 'broadcast', topic: 'a' }],
  ['POST', '/broadcast', { action: 'broadcast', topic: undefined }],
  ['DELETE', '/devices/d', { action: 'disconnect', deviceId: 'd' }]
]

t.test('authorize is asked once for each request, with what the route uses and nothing else', async t => {
  const { app, asked } = await noting(t, { guard: byName })
  for (const [method, path, operation] of questions) {
    await ask(app, method, path)
    t.strictSame(asked.splice(0), [[{ name: 'ann' }, operation]], `${method} ${path}`)
  }
})

t.test('authorize is not asked about a request that is not valid', async t => {
  const { app, asked } = await noting(t)
  for (const path of ['/devices/b a d/messages', '/devices/d/messages?ttl=-1', '/devices/d/messages?ttl=NaN', '/devices/d/calls/m?timeout=x']) t.equal((await request(app, 'POST', path, {})).status, 400, path)
  t.strictSame(asked, [])
})

t.test('the caller is the object that guard returned, at once or later', async t => {
  const caller = Object.freeze({ name: 'ann' })
  const guards: Array<[Guard | false | undefined, unknown]> = [
    [() => caller, caller], [async () => caller, caller], [() => true, undefined], [async () => true, undefined], [false, undefined], [undefined, undefined]
  ]
  for (const [guard, expected] of guards) {
    const { app, asked } = await noting(t, { guard })
    t.equal((await request(app, 'GET', '/devices')).status, 200)
    t.equal(asked[0]![0], expected)
  }
})

t.test('without authorize, a caller that guard has named may do everything', async t => {
  const app = await listen(t, { guard: byName })
  t.match(await request(app, 'POST', '/broadcast', 1), { status: 200 })
})

t.test('a guard that returns nothing, a list or an error admits nobody', async t => {
  const unreadable = new Proxy({}, { getPrototypeOf () { throw new Error('secret') } })
  const answers: unknown[] = [undefined, null, false, 0, 'ann', [], [{}], new Error('no'), Object.setPrototypeOf(new Error('no'), null), new Failure('busy'), unreadable]
  for (const answer of answers) {
    for (const guard of [() => answer, async () => answer] as Guard[]) {
      const app = await listen(t, { guard })
      t.match(await request(app, 'GET', '/devices'), { status: 401, body: { code: 'UNAUTHENTICATED' } })
      t.match(await request(app, 'GET', '/devices', undefined, { authorization: 'x' }), { status: 403, body: { code: 'FORBIDDEN' } })
    }
  }
})

t.test('a refused caller gets the same answer whether the device exists or not, and nothing is done', async t => {
  for (const authorize of [() => false, async () => false, () => 1, () => undefined] as Authorize[]) {
    const app = await listen(t, { authorize })
    const device = await connect(app.url, 'here')
    for (const [method, path] of questions) {
      const [here, away] = [await ask(app, method, path.replace(/\/d\b(%2De)?/, '/here')), await ask(app, method, path.replace(/\/d\b(%2De)?/, '/away'))]
      const body = { statusCode: 403, code: 'FORBIDDEN', error: 'Forbidden', message: 'Not allowed' }
      t.strictSame(here, { status: 403, body: method === 'HEAD' ? undefined : body }, `${method} ${path}`)
      t.strictSame(away, here)
    }
    t.equal(device.seen.length, 1, 'the welcome')
    t.ok(app.devices.has('here'))
    t.match(app.devices.stats().refusals, { forbidden: 2 * questions.length })
  }
})

t.test('authorize may throw the answer; any other error is logged, and is an internal error', async t => {
  const teapot = Object.assign(new Error('A teapot'), { statusCode: 418, code: 'TEAPOT' })
  const { app, lines } = await logging(t, {
    authorize (_caller, { topic }) {
      if (topic === 'teapot') throw teapot
      if (topic === 'later') return Promise.reject(teapot)
      if (topic === 'down') throw new Failure('unreachable')
      throw new Error('secret')
    }
  })
  const ask = async (topic: string) => await request(app, 'POST', `/broadcast?topic=${topic}`, 1)
  t.match(await ask('teapot'), { status: 418, body: { code: 'TEAPOT', message: 'A teapot' } })
  t.match(await ask('later'), { status: 418, body: { code: 'TEAPOT' } })
  t.match(await ask('down'), { status: 503, body: { code: 'BACKPLANE_DOWN' } })
  t.strictSame(lines.filter(({ msg }) => msg === 'authorize failed'), [])
  t.strictSame((await ask('bug')).body, { statusCode: 500, code: 'INTERNAL_ERROR', error: 'Internal Server Error', message: 'Internal error' })
  t.match(lines.filter(({ msg }) => msg === 'authorize failed'), [{ level: 50, err: { message: 'secret' } }])
  t.strictSame(app.devices.stats().refusals, { authorize: 2, unreachable: 1, internal: 1 })
})

t.test('each refusal of authorize is logged at debug, with what the caller asked for', async t => {
  const { app, lines } = await logging(t, { authorize: () => false })
  await request(app, 'POST', '/devices/d/calls/reboot', {})
  await sendLines(app, [{ to: 'e', data: 1 }])
  t.match(lines.filter(({ msg }) => msg === 'caller refused'), [
    { level: 20, action: 'call', deviceId: 'd', method: 'reboot', reason: 'forbidden', reqId: String },
    { level: 20, action: 'send', deviceId: 'e', reason: 'forbidden', reqId: String }
  ])
})

t.test('each line of a request is asked about, fails alone, and is answered in its place', async t => {
  const asked: unknown[] = []
  const authorize: Authorize = (caller, operation) => {
    asked.push([caller, operation])
    if (operation.deviceId === 'bug') throw new Error('secret')
    if (operation.deviceId === 'teapot') throw Object.assign(new Error('A teapot'), { statusCode: 418, code: 'TEAPOT' })
    if (operation.deviceId === 'number') throw Object.assign(new Error('A number'), { statusCode: 404, code: 7 })
    if (operation.deviceId === 'down') throw new Failure('unreachable')
    return operation.deviceId!.startsWith('mine')
  }
  for (const [name, decide] of Object.entries({ sync: authorize, async: (async (caller, operation) => await authorize(caller, operation)) as Authorize })) {
    const app = await listen(t, { guard: byName, authorize: decide })
    const [mine, theirs] = [await connect(app.url, 'mine'), await connect(app.url, 'theirs')]
    const to = ['mine', 'theirs', 'away', 'bug', 'teapot', 'number', 'down', 'b a d', 'mine']
    const outcomes = await sendLines(app, [...to.map((to, data) => ({ to, data })), { no: 'line' }], { authorization: 'ann' })
    t.match(outcomes, [
      { status: 'sent' },
      { statusCode: 403, code: 'FORBIDDEN', message: 'Not allowed' },
      { statusCode: 403, code: 'FORBIDDEN', message: 'Not allowed' },
      { statusCode: 500, code: 'INTERNAL_ERROR', message: 'Internal error' },
      { statusCode: 418, code: 'TEAPOT', message: 'A teapot' },
      { statusCode: 404, code: 'FORBIDDEN', message: 'A number' },
      { statusCode: 503, code: 'BACKPLANE_DOWN' },
      { statusCode: 400, code: 'ID_INVALID' },
      { status: 'sent' },
      { statusCode: 400, code: 'MESSAGE_MALFORMED' }
    ], name)
    t.equal(outcomes.length, 10)
    t.strictSame(asked.splice(0), to.filter(id => id !== 'b a d').map(deviceId => [{ name: 'ann' }, { action: 'send', deviceId }]))
    t.strictSame([(await mine.message()).params.data, (await mine.message()).params.data], [0, 8])
    t.equal(theirs.seen.length, 1, 'the welcome')
  }
})

t.test('lines are sent in their order, in whatever order authorize decides', async t => {
  const gates = Array.from({ length: 40 }, () => gate<boolean>())
  let asked = 0
  const app = await listen(t, { authorize: () => asked % 3 === 2 ? asked++ > 0 : gates[asked++]!.opened })
  const device = await connect(app.url, 'd')
  const answer = sendLines(app, gates.map((_, data) => ({ to: 'd', data })))
  await until(() => asked === 32)
  for (const gate of gates.toReversed()) gate.open(true)
  t.strictSame((await answer).map(({ status }) => status), gates.map(() => 'sent'))
  const messages = () => device.seen.filter(({ method }) => method === 'message')
  await until(() => messages().length === gates.length)
  t.strictSame(messages().map(({ params }) => params.data), [...gates.keys()])
})

t.test('after a decision that was awaited, lines are sent at once again', async t => {
  const app = await listen(t, { authorize: (_caller, { deviceId }) => deviceId === 'later' ? Promise.resolve(true) : true })
  await connect(app.url, 'later')
  await connect(app.url, 'now')
  const lines = Array.from({ length: 300 }, (_, count) => ({ to: count % 100 === 0 ? 'later' : 'now', data: count }))
  t.strictSame((await sendLines(app, lines)).map(({ status }) => status), lines.map(() => 'sent'))
})

t.test('an error that changes while it is read fails its line, and nothing else', async t => {
  const changing = () => {
    let reads = 0
    return Object.defineProperty(Object.assign(new Error('secret'), { statusCode: 403 }), 'code', {
      enumerable: true, get () { if (++reads > 2) throw new Error('secret') }
    })
  }
  for (const authorize of [() => { throw changing() }, () => Promise.reject(changing())] as Authorize[]) {
    const app = await listen(t, { authorize: (caller, operation) => operation.deviceId === 'odd' ? authorize(caller, operation) : true })
    t.match(await sendLines(app, [{ to: 'odd', data: 1 }, { to: 'd', data: 1, ttl: 60 }]), [{ statusCode: 500, code: 'INTERNAL_ERROR' }, { status: 'queued' }])
  }
})

t.test('routes of the application that it protects ask guard and authorize like the REST routes', async t => {
  const asked: unknown[] = []
  const options: Options = { guard: ({ headers }) => headers.authorization !== undefined && { name: headers.authorization }, authorize: (caller, operation) => { asked.push(operation); return caller.name === 'ann' } }
  for (const shared of [options, {}, { ...options, rest: false }, { ...options, prefix: '/api' }]) {
    const app = Fastify()
    await app.register(devices, { authenticate: false, ...shared })
    await app.register(async scope => {
      app.devices.protect(scope, 'metrics')
      scope.get('/figures', async () => 'figures')
    })
    app.get('/open', async () => 'open')
    const statusOf = async (url: string, request: object) => (await app.inject({ url, ...request })).statusCode
    const foreign = { headers: { host: 'example.com' }, remoteAddress: '192.0.2.1' }
    t.equal(await statusOf('/open', foreign), 200)
    t.equal(await statusOf('/figures', { headers: { origin: 'https://other.example', authorization: 'ann' } }), 403, 'the origin')
    if (shared.guard) {
      t.equal(await statusOf('/figures', foreign), 401)
      t.equal(await statusOf('/figures', { headers: { authorization: 'bob' } }), 403)
      t.equal(await statusOf('/figures', { headers: { authorization: 'ann' } }), 200)
      t.strictSame(asked.splice(0), [{ action: 'metrics' }, { action: 'metrics' }])
    } else {
      t.equal(await statusOf('/figures', foreign), 403, 'protected mode')
      t.equal(await statusOf('/figures', {}), 200)
    }
    await app.close()
  }
})

t.test('a decision that is no promise is no promise inside', async t => {
  const app = Fastify()
  const authorizer = new Authorizer(app, (_caller, { action }) => action === 'list', new Stats(fakeLog()))
  const request = { log: app.log } as never
  t.equal(authorizer.refusal(request, { action: 'list' }), undefined)
  t.match(authorizer.refusal(request, { action: 'broadcast' }), { reason: 'forbidden' })
})

t.test('a route that does not say what its caller does cannot be added', async t => {
  const app = Fastify()
  authorizeRoutes(app, undefined)
  t.throws(() => app.get('/new', async () => 1), { message: /GET \/new/ })
  t.doesNotThrow(() => app.get('/old', { config: routeAction('list') }, async () => 1))
})

t.test('the hooks that a plugin of the host has added to a route run before authorize', async t => {
  const app = Fastify()
  const order: string[] = []
  app.addHook('onRoute', route => { route.preHandler = (_request, _reply, done) => { order.push('host'); done() } })
  await app.register(devices, { authorize: () => { order.push('authorize'); return true } })
  await open(t, app)
  await app.inject('/devices')
  t.strictSame(order, ['host', 'authorize'])
})

t.test('the guards and decisions of two applications in one process do not meet', async t => {
  const app = Fastify()
  for (const name of ['one', 'two']) {
    await app.register(async scope => {
      await scope.register(devices, { prefix: `/${name}`, path: '/ws', guard: () => ({ name }), authorize: caller => caller.name === name })
    })
  }
  await open(t, app)
  for (const name of ['one', 'two']) t.equal((await app.inject(`/${name}/devices`)).statusCode, 200)
})

/** An application with the lines of its log. */
async function logging (t: Test, options: Options): Promise<{ app: App, lines: any[] }> {
  const lines: any[] = []
  const stream = new Writable({ write (chunk, _encoding, done) { lines.push(JSON.parse(String(chunk))); done() } })
  return { app: await listen(t, options, { logger: { level: 'debug', stream } }), lines }
}
