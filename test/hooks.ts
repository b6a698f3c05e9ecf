import { connect as connectTcp, type AddressInfo } from 'node:net'
import { text } from 'node:stream/consumers'
import Fastify, { type FastifyInstance } from 'fastify'
import WebSocket from 'ws'
import { connect as connectClient, type ConnectOptions } from '../lib/client/index.ts'
import devices, { jsonrpc, localBackplane, memoryMailbox, type Backplane, type Codec, type Transport, type Mailbox } from '../lib/index.ts'
import { createWorker } from '../lib/workers/worker.ts'
import { tcp } from '../lib/transports/tcp/index.ts'
import { things, ways } from './anything.ts'
import { connect, request, until, type TestDevice } from './support.ts'

/** What a program says of each thing that a hook gave; the process is run so that it ends with the first error that nobody catches. */
export interface Found {
  hook: string
  way: string
  thing: string
  outcome: string
}

/** These answer at once: what they give is no promise, and a rejected one would be theirs to catch. They misbehave once. */
const atOnce = new Set(['codec.decode', 'codec.encode', 'codec.mint', 'dial codec.encode', 'dial codec.decode', 'mailbox.onTrouble', 'mailbox.onDamage', 'client WebSocket'])

/** The ways that fail; in the others something comes that is of no use. */
const failing = new Set(['throws', 'rejects with'])

/** The hook that misbehaves just now, and how. */
let armed: { hook: string, misbehave: () => unknown } | undefined

/** A function of the application: what it should do, unless it is its turn to misbehave. */
function hook<Params extends unknown[], Result> (name: string, usual: (...params: Params) => Result): (...params: Params) => Result {
  return (...params) => {
    if (armed?.hook !== name) return usual(...params)
    const { misbehave } = armed
    if (atOnce.has(name)) armed = undefined
    return misbehave() as Result
  }
}

/** A part that the application made itself: each of its named methods is a hook. */
function part<Part extends object> (name: string, whole: Part, methods: Array<keyof Part & string>): Part {
  return { ...whole, ...Object.fromEntries(methods.map(method => [method, hook(`${name}.${method}`, whole[method] as () => unknown)])) }
}

const [usual, lines] = [jsonrpc(), jsonrpc({ bytes: 'base64' })]
const codec: Codec = { ...usual, subprotocol: 'theirs', decode: hook('codec.decode', usual.decode), encode: hook('codec.encode', usual.encode), mint: hook('codec.mint', () => crypto.randomUUID()) }
const door: Transport = { open: async () => {}, close: hook('door.close', async () => {}) }
const mailbox: Mailbox = part('mailbox', memoryMailbox({}), ['put', 'waiting', 'size', 'settle', 'receipt', 'addAttempt', 'sweep'])
const shared = localBackplane()
const backplane: Backplane = part('backplane', {
  ...shared,
  async own (deviceId, owner) {
    const { generation, release } = await shared.own(deviceId, owner)
    return { generation, release: hook('ownership.release', release) }
  }
}, ['own', 'ask', 'publish', 'list'])

let tellTrouble: (error: unknown) => void = () => {}
let tellDamage: (damage: any) => void = () => {}

type Reached = FastifyInstance & {
  url: string
  tcpPort: number
  /** Another node without a listener for messages: its workers get them. */
  quiet: FastifyInstance & { url: string }
}

async function serve (): Promise<Reached> {
  const app = Fastify({ logger: { level: 'trace', stream: { write () {} } } }) as unknown as FastifyInstance
  const entry = tcp({ port: 0 })
  await app.register(devices, {
    authenticate: hook('authenticate', () => true as const),
    guard: hook<unknown[], boolean | object>('guard', () => true),
    authorize: hook('authorize', () => true),
    authorizeTopic: hook('authorizeTopic', () => true),
    origins: hook('origins', () => true),
    codecs: [jsonrpc(), codec],
    transports: [entry, door],
    mailbox: { ...mailbox, onTrouble (listener) { tellTrouble = listener }, onDamage (listener) { tellDamage = listener } },
    backplane,
    rate: 1_000_000,
    burst: 1_000_000
  })
  app.devices.handle('method', hook('handler', () => 'usual'))
  app.devices.on('connected', hook('on connected', () => {}))
  app.devices.on('disconnected', hook('on disconnected', () => {}))
  app.devices.on('message', hook('on message', () => {}))
  app.devices.on('delivered', hook('on delivered', () => {}))
  app.devices.on('connected', hook('on connected everywhere', () => {}), { everywhere: true })
  const quiet = Fastify()
  await quiet.register(devices, { backplane: shared, rate: 1_000_000, burst: 1_000_000 })
  app.addHook('onClose', () => quiet.close())
  return Object.assign(app, { url: await urlOf(app), tcpPort: (entry.address as AddressInfo).port, quiet: Object.assign(quiet, { url: await urlOf(quiet) }) })
}

async function urlOf (app: FastifyInstance): Promise<string> {
  await app.listen({ port: 0, host: '127.0.0.1' })
  return `http://127.0.0.1:${(app.server.address() as AddressInfo).port}`
}

/** How an HTTP request ended. */
async function ask (app: { url: string }, method: string, path: string, body?: unknown, headers?: Record<string, string>): Promise<string> {
  const answer = await request(app, method, path, body, headers)
  return `${answer.status} ${JSON.stringify(answer.body)}`
}

/** What a device that speaks a protocol of ours, or theirs, gets; it is gone again when that is known. */
async function withDevice (app: FastifyInstance & { url: string }, act: (device: TestDevice) => Promise<unknown>, protocols: string[] = []): Promise<string> {
  const device = await connect(app.url, 'd', { protocols, unwelcomed: protocols.length === 0 })
  const ended = device.closed.then(({ code }) => `closed ${code}`)
  const outcome = await Promise.race([act(device).then(answer => JSON.stringify(answer)), ended])
  device.socket.terminate()
  await ended
  await until(() => !app.devices.has('d'))
  return outcome
}

/** With a device that speaks theirs. The first time the codec misbehaves, and the second it is as usual. */
async function twice (app: Reached, act: (device: TestDevice) => Promise<unknown>): Promise<string> {
  const later = armed
  armed = undefined
  return await withDevice(app, async device => {
    device.handle('answer', () => 'usual')
    armed = later
    void act(device)
    await until(() => armed === undefined)
    return await act(device)
  }, ['theirs'])
}

/** How the upgrade of a device was answered. */
async function upgrade (app: Reached, headers: Record<string, string> = {}): Promise<string> {
  const socket = new WebSocket(`${app.url.replace('http', 'ws')}/ws?deviceId=d`, { headers })
  socket.on('error', () => {})
  return await new Promise(resolve => {
    socket.on('open', () => { socket.terminate(); resolve('101') })
    socket.on('unexpected-response', async (_request, response) => resolve(`${response.statusCode} ${await text(response)}`))
  })
}

async function overTcp (app: Reached): Promise<string> {
  const socket = connectTcp(app.tcpPort, '127.0.0.1')
  socket.end('{"jsonrpc":"2.0","id":1,"method":"connect","params":{"deviceId":"d"}}\n')
  let said = ''
  for await (const chunk of socket) said += chunk
  return said.trim()
}

/** The states of a client of ours whose own hooks misbehave. */
async function client (app: Reached, options: Partial<ConnectOptions>, meanwhile: (device: ReturnType<typeof connectClient>) => Promise<unknown> = async () => {}): Promise<string> {
  const device = connectClient(`${app.url}/ws`, { deviceId: 'd', WebSocket: WebSocket as never, minDelay: 1, maxDelay: 1, ...options })
  device.handle('method', hook('client handler', () => 'usual'))
  for (const event of ['message', 'status', 'error'] as const) device.on(event, hook(`client on ${event}`, () => {}) as never)
  await until(() => device.status.state !== 'connecting')
  const { state } = device.status
  const outcome = await meanwhile(device)
  device.close()
  await until(() => !app.devices.has('d'))
  return outcome === undefined ? state : `${state} ${String(outcome)}`
}

const foreign = { origin: 'https://foreign.example' }
const message = (app: Reached, query: string) => ask(app, 'POST', `/devices/d/messages?${query}`, { hello: 'd' })

/** Uses each hook once. */
const uses: Record<string, (app: Reached) => Promise<string>> = {
  guard: app => ask(app, 'POST', '/broadcast', { secret: 1 }),
  authorize: app => ask(app, 'POST', '/broadcast', { secret: 1 }),
  'authorize of lines': async app => {
    const { status, body } = await request(app, 'POST', '/messages', '{"to":"d","data":"secret"}\n{"to":"e","data":"secret"}\n', { 'content-type': 'application/x-ndjson' })
    return `${status} ${String(body)}`
  },
  authenticate: app => upgrade(app),
  'authenticate over TCP': app => overTcp(app),
  origins: app => ask(app, 'POST', '/broadcast', { secret: 1 }, foreign),
  'origins of an upgrade': app => upgrade(app, foreign),
  authorizeTopic: app => withDevice(app, device => device.ask('subscribe', { topics: ['a'] })),
  handler: app => withDevice(app, device => device.ask('method')),
  'on connected': app => withDevice(app, device => device.ask('ping')),
  'on connected everywhere': app => withDevice(app, device => device.ask('ping')),
  'on disconnected': app => withDevice(app, device => device.ask('ping')),
  'on message': app => withDevice(app, device => device.ask('message', { data: 1 })),
  'on delivered': app => withDevice(app, async device => {
    device.handle('message', () => ({}))
    return await message(app, 'ttl=60&confirm=true')
  }),
  'codec.decode': app => twice(app, device => device.ask('ping')),
  'codec.encode': app => twice(app, device => device.ask('ping')),
  'codec.mint': app => twice(app, async () => await ask(app, 'POST', '/devices/d/calls/answer')),
  'mailbox.put': app => message(app, 'ttl=60'),
  'mailbox.waiting': app => withDevice(app, device => device.ask('ping')),
  'mailbox.size': async app => `${await app.devices.lettersWaiting()}`,
  'mailbox.receipt': app => ask(app, 'GET', '/devices/d/messages/one'),
  'mailbox.settle': app => ask(app, 'DELETE', '/devices/d/messages'),
  'mailbox.onTrouble': async () => { tellTrouble(thing()); return 'told' },
  'mailbox.onDamage': async () => { tellDamage(thing()); return 'told' },
  'backplane.own': app => withDevice(app, device => device.ask('ping')),
  'ownership.release': app => withDevice(app, device => device.ask('ping')),
  'backplane.publish': app => ask(app, 'POST', '/broadcast', { hello: 'all' }),
  'backplane.ask': app => message(app, 'ttl=0'),
  'backplane.list': app => ask(app, 'GET', '/devices'),
  'dial token': app => dialled(app, hook('dial token', () => 'usual')),
  'dial codec.encode': app => dialledTo(app),
  'dial codec.decode': app => dialledTo(app),
  'client token': app => client(app, { token: hook('client token', () => 'usual') }),
  'client WebSocket': app => client(app, { WebSocket: function () { return thing() } as never }),
  'client handler': app => client(app, {}, async () => await ask(app, 'POST', '/devices/d/calls/method')),
  'client on message': app => client(app, {}, async () => await message(app, 'ttl=0')),
  'client on status': app => client(app, {}),
  'client on error': app => client(app, { token: () => { throw new Error('no token') } }),
  worker: app => worker(app),
  'worker on message': app => workerListens(app, async device => {
    for (;;) {
      const answer = await device.ask('message', { data: 1 })
      if (answer.error?.code !== -32601) return answer
    }
  }),
  'worker on a notice': app => workerListens(app, async (device, isHeard) => {
    while (!isHeard()) {
      device.notify('message', { data: 1 })
      await device.ask('ping')
    }
    return await device.ask('ping')
  })
}

/** Some of them are about the same hook. */
const hooks: Record<string, string> = {
  'authorize of lines': 'authorize', 'authenticate over TCP': 'authenticate', 'origins of an upgrade': 'origins', worker: 'worker handler', 'worker on a notice': 'worker on message'
}

let thing: () => unknown = () => undefined

async function dialled (app: Reached, token: () => string): Promise<string> {
  const dial = app.devices.dial('tcp://127.0.0.1:9', { deviceId: 'e', as: 'd', token })
  await until(() => dial.status.state === 'waiting')
  dial.close()
  return 'waiting'
}

/** To our own TCP door, over a codec that misbehaves. */
async function dialledTo (app: Reached): Promise<string> {
  const codec: Codec = { ...lines, decode: hook('dial codec.decode', lines.decode), encode: hook('dial codec.encode', lines.encode) }
  const dial = app.devices.dial(`tcp://127.0.0.1:${app.tcpPort}`, { deviceId: 'e', as: 'd', codec, minDelay: 60_000, maxDelay: 60_000 })
  await until(() => dial.status.state !== 'connecting')
  const { state } = dial.status
  armed = undefined
  dial.close()
  await until(() => dial.status.state === 'stopped' && !app.devices.has('d') && !app.devices.has('e'))
  return state
}

async function worker (app: Reached): Promise<string> {
  const staff = await createWorker({ backplane })
  staff.handle('work', hook('worker handler', () => 'usual'))
  const outcome = await withDevice(app, async device => {
    for (;;) {
      const answer = await device.ask('work')
      if (answer.error?.code !== -32601) return answer
    }
  })
  await staff.close()
  return outcome
}

/** A worker listens to the messages of a device that is connected to a node without a listener. */
async function workerListens ({ quiet }: Reached, act: (device: TestDevice, isHeard: () => boolean) => Promise<unknown>): Promise<string> {
  const staff = await createWorker({ backplane: shared })
  const listener = hook('worker on message', () => {})
  let heard = false
  staff.on('message', () => {
    heard = true
    return listener()
  })
  const outcome = await withDevice(quiet, async device => await act(device, () => heard))
  await staff.close()
  return outcome
}

async function use (app: Reached, name: string, way: string, title: string): Promise<Found> {
  const make = thing = things[title]!
  armed = { hook: hooks[name] ?? name, misbehave: () => ways[way]!(make) }
  const outcome = await uses[name]!(app)
  armed = undefined
  return { hook: name === 'worker' ? 'worker handler' : name, way, thing: title, outcome }
}

/** All of them, one after the other. */
async function run (): Promise<void> {
  const app = await serve()
  for (const name of Object.keys(uses)) {
    for (const way of Object.keys(ways)) {
      if (atOnce.has(name) && way.includes('with')) continue
      for (const title of Object.keys(things)) {
        // a text is what `encode` gives, and this one the device of the test could not read
        if (name === 'codec.encode' && title.endsWith('string')) continue
        // what they tell is shown as it is
        if (/^(mailbox.receipt|backplane.(ask|list|publish))$/.test(name) && !failing.has(way)) continue
        process.send!(await use(app, name, way, title))
      }
    }
  }
  armed = { hook: 'door.close', misbehave: () => { throw undefined } } // eslint-disable-line
  await app.close()
  process.disconnect()
}

if (process.argv[2] === 'run') await run()
