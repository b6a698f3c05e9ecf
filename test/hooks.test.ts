import { fork } from 'node:child_process'
import { once } from 'node:events'
import { join } from 'node:path'
import Fastify from 'fastify'
import t from 'tap'
import devices, { jsonrpc, type Codec, type Transport } from '../lib/index.ts'
import { things, ways } from './anything.ts'
import type { Found } from './hooks.ts'
import { root } from './root.ts'
import { connect, listen } from './support.ts'

const internal = /^500 \{"statusCode":500,"code":"INTERNAL_ERROR","error":"Internal Server Error","message":"Internal error"\}$/
const refused = /^40[13] \{"statusCode":40[13],"code":"(UNAUTHENTICATED|FORBIDDEN|ORIGIN_REFUSED)"/
const pong = /^\{"jsonrpc":"2.0","id":"ask-\d","result":\{"now":\d+\}\}$/
const error = /"error":\{"code":-32(603,"message":"Internal error"|008,"message":"Not allowed")\}\}$/

/** How a use may end whose hook gave anything at all: carried out only where the hook has no say in that. */
const outcomes: Record<string, RegExp[]> = {
  // an object is the caller, whatever it holds
  guard: [refused, internal, /^200 \{"id":/],
  authorize: [refused, internal],
  'authorize of lines': [/^200 (\{"statusCode":403,"code":"FORBIDDEN","message":"[^"]*"\}\n){2}$/, /^200 (\{"statusCode":500,"code":"INTERNAL_ERROR","message":"Internal error"\}\n){2}$/],
  // an object is credentials, whatever it holds
  authenticate: [refused, internal, /^101$/],
  'authenticate over TCP': [/^\{"jsonrpc":"2.0","id":1,"error":.*\n\{"jsonrpc":"2.0","method":"close","params":\{"code":(450[13]|1013),/, /^\{"jsonrpc":"2.0","id":1,"result":\{\}\}\n/],
  origins: [refused],
  'origins of an upgrade': [refused],
  authorizeTopic: [error],
  handler: [error, /"result":/],
  'on connected': [pong],
  'on connected everywhere': [pong],
  'on disconnected': [pong],
  'on message': [/"error":\{"code":-32603,"message":"Internal error"\}\}$/, /"result":\{\}\}$/],
  'on delivered': [/^"200 .*\\"status\\":\\"delivered\\"\}"$/],
  'codec.decode': [/^closed 1011$/, pong],
  'codec.encode': [/^closed 1011$/, pong],
  'codec.mint': [/^"200 \\"usual\\""$/],
  'mailbox.put': [internal, refused],
  'mailbox.waiting': [/^closed 1013$/, pong],
  'mailbox.size': [/^(undefined|0|7)$/],
  'mailbox.receipt': [internal, refused],
  'mailbox.settle': [internal, refused, /^200 \{"cancelled":[01]\}$/],
  'mailbox.onTrouble': [/^told$/],
  'mailbox.onDamage': [/^told$/],
  'backplane.own': [/^closed 1013$/],
  'ownership.release': [pong],
  'backplane.publish': [internal, refused],
  'backplane.ask': [internal, refused],
  'backplane.list': [internal, refused],
  'dial token': [/^waiting$/],
  'dial codec.encode': [/^(connected|waiting|stopped)$/],
  'dial codec.decode': [/^(connected|waiting|stopped)$/],
  'client token': [/^(connected|waiting)$/],
  'client WebSocket': [/^waiting$/],
  'client handler': [/^connected (200 |403 |500 |502 |422 )/],
  'client on message': [/^connected 200 .*"status":"sent"/],
  'client on status': [/^connected$/],
  'client on error': [/^waiting$/],
  'worker handler': [error, /"result":/],
  'worker on message': [/"error":\{"code":-32603,"message":"Internal error"\}\}$/, /"result":\{\}\}$/],
  'worker on a notice': [pong]
}

/** What a guard may give to admit a caller. */
const callers = new Set(['a circle', 'an object that throws when it is read', 'an object that throws when it is written', 'a frozen object'])

/** What these give is told to whoever asked; of all others nothing gets out. */
const told = /handler$/

t.test('whatever a function of the application gives or throws, the process goes on, and nothing is let in or told', async t => {
  const child = fork(join(root, 'dist/test/hooks.js'), ['run'], { execArgv: [...process.execArgv, '--unhandled-rejections=strict'] })
  const found: Found[] = []
  child.on('message', one => found.push(one as Found))
  const [code, signal] = await once(child, 'exit')
  t.strictSame({ code, signal }, { code: 0, signal: null }, `the last was ${JSON.stringify(found.at(-1))}`)
  t.strictSame(new Set(found.map(({ hook }) => hook)), new Set(Object.keys(outcomes)))
  t.strictSame(new Set(found.map(({ way }) => way)), new Set(Object.keys(ways)))
  t.strictSame(new Set(found.map(({ thing }) => thing)), new Set(Object.keys(things)))
  t.strictSame(found.filter(({ hook, outcome }) => !outcomes[hook]!.some(pattern => pattern.test(outcome))), [])
  t.strictSame(found.filter(({ hook, outcome }) => outcome.includes('secret') && !told.test(hook)), [])
  const admitted = found.filter(({ hook, outcome }) => hook === 'guard' && outcome.startsWith('200'))
  t.strictSame(new Set(admitted.map(({ way }) => way)), new Set(['gives', 'resolves with']))
  t.strictSame(new Set(admitted.map(({ thing }) => thing)), callers)
  const failed = found.filter(({ hook, outcome }) => hook === 'worker on message' && outcome.includes('-32603'))
  t.strictSame(new Set(failed.map(({ way }) => way)), new Set(['throws', 'rejects with', 'gives', 'resolves with']), 'the listener of the worker was reached')
  t.comment(`${found.length} uses of ${Object.keys(outcomes).length} hooks`)
})

t.test('a device whose codec has no words even for a failure is let go', async t => {
  const codec: Codec = { ...jsonrpc(), subprotocol: 'mute', encode: () => { throw null } } // eslint-disable-line
  const app = await listen(t, { codecs: [codec, jsonrpc()] })
  const device = await connect(app.url, 'd', { protocols: ['mute'], unwelcomed: true })
  t.match(await device.closed, { code: 1013 })

  const later: Codec = { ...jsonrpc(), subprotocol: 'later', encode: message => 'method' in message ? jsonrpc().encode(message) : codec.encode(message) }
  const other = await listen(t, { codecs: [later] })
  const talking = await connect(other.url, 'd', { protocols: ['later'] })
  talking.notify('ping')
  talking.send({ jsonrpc: '2.0', id: 1, method: 'message' })
  t.match(await talking.closed, { code: 1011, reason: 'internal error' })
  other.devices.handle('slow', async () => await new Promise(resolve => setImmediate(resolve)))
  const waiting = await connect(other.url, 'd', { protocols: ['later'] })
  waiting.send({ jsonrpc: '2.0', id: 1, method: 'slow' })
  t.match(await waiting.closed, { code: 1011 })
})

t.test('a transport that rejects without a reason fails the registration', async t => {
  const door: Transport = { open: async () => { throw undefined }, close: async () => {} } // eslint-disable-line
  const app = Fastify()
  await t.rejects(async () => await app.register(devices, { transports: [door] }), { message: /without a reason/ })
})
