import t from 'tap'
import type { FastifyBaseLogger } from 'fastify'
import type { Device } from '../lib/connection/device.ts'
import type { HandlerContext } from '../lib/gateway/handler-context.ts'
import { pluginLog } from '../lib/gateway/log.ts'
import { Methods } from '../lib/gateway/methods.ts'
import { Stats } from '../lib/connection/stats.ts'
import { jsonrpc } from '../lib/protocol/jsonrpc.ts'
import { InboundCall } from '../lib/protocol/peer.ts'
import { contextOf, requestIdIn, traceFor, traceIn, traceOf, type RequestContext } from '../lib/protocol/request-context.ts'
import { fakeLog } from './fakes.ts'

const traceId = '4bf92f3577b34da6a3ce929d0e0e4736'
const traceparent = `00-${traceId}-00f067aa0ba902b7-01`
const fresh = /^00-[0-9a-f]{32}-[0-9a-f]{16}-00$/

t.test('a traceparent is taken only if it is one of W3C Trace Context', async t => {
  t.strictSame(traceIn({ traceparent }), { traceparent })
  for (const malformed of [
    undefined, null, 7, {}, [traceparent], '', 'x', traceparent.slice(1), `${traceparent}\n`, `${traceparent}-00`, ` ${traceparent}`, traceparent.toUpperCase(),
    traceparent.replace('00-', 'ff-'), traceparent.replace('00-', '01-'), traceparent.replace(traceId, '0'.repeat(32)), traceparent.replace('00f067aa0ba902b7', '0'.repeat(16)),
    traceparent.replace('b34', 'ü34'), `${traceparent}, ${traceparent}`, traceparent.repeat(10_000)
  ]) t.equal(traceIn({ traceparent: malformed, tracestate: 'a=1' }), undefined, String(malformed).slice(0, 80))
})

t.test('a tracestate that is malformed or too long is ignored as a whole', async t => {
  const state = (tracestate: unknown) => traceIn({ traceparent, tracestate })!.tracestate
  t.equal(state('a=1'), 'a=1')
  t.equal(state(' a=1 ,\tb@c=x y/z;w ,, '), 'a=1,b@c=x y/z;w')
  t.equal(state(Array.from({ length: 32 }, (_, at) => `k${at}=v`).join(',')), Array.from({ length: 32 }, (_, at) => `k${at}=v`).join(','))
  for (const malformed of [
    undefined, null, 7, {}, ['a=1'], '', ',', 'a', 'a=', '=1', 'A=1', 'a=1=2', 'a=1\r\nx: y', 'a=ü', 'a=\u0000', 'a=1,b', '__proto__', 'a b=1',
    `a=${'1'.repeat(257)}`, `${'a'.repeat(257)}=1`, `a=${'1'.repeat(512)}`, Array.from({ length: 33 }, () => 'a=1').join(','), 'a=1,'.repeat(100_000)
  ]) t.equal(state(malformed), undefined, String(malformed).slice(0, 80))
})

t.test('the context of a request is its id and what is well-formed of its trace', async t => {
  t.equal(contextOf(undefined), undefined)
  t.equal(contextOf({}), undefined)
  t.strictSame(contextOf({ id: 'req-1', headers: {} }), { id: 'req-1' })
  t.strictSame(contextOf({ id: 'req-1', headers: { traceparent, tracestate: 'a=1', other: 'x' } }), { id: 'req-1', traceparent, tracestate: 'a=1' })
  t.strictSame(contextOf({ id: 'req-1', headers: { traceparent: [traceparent] } }), { id: 'req-1' })
  t.strictSame(contextOf({ id: 'req-1', traceparent, tracestate: 'a=1' }), { id: 'req-1', traceparent, tracestate: 'a=1' })
  t.strictSame(contextOf({ traceparent }), { traceparent })
  t.strictSame(contextOf({ id: 'x'.repeat(256) }), { id: 'x'.repeat(256) })
  for (const id of ['', 'x'.repeat(257), 7 as never, null as never]) t.equal(contextOf({ id }), undefined)
  t.equal(contextOf('req-1' as never), undefined)
})

t.test('what is sent to a device has the id of the request in its tracestate', async t => {
  t.strictSame(traceOf({ id: 'req-1', traceparent, tracestate: 'a=1,b=2' }), { traceparent, tracestate: 'fastify-devices=req-1,a=1,b=2' })
  t.strictSame(traceOf({ id: 'req-1', traceparent }), { traceparent, tracestate: 'fastify-devices=req-1' })
  const begun = traceOf({ id: 'req-1' })!
  t.match(begun, { traceparent: fresh, tracestate: 'fastify-devices=req-1' })
  t.not(traceOf({ id: 'req-1' })!.traceparent, begun.traceparent)
  t.equal(traceOf({}), undefined)
  t.strictSame(traceOf({ traceparent }), { traceparent })
  t.strictSame(traceOf({ traceparent, tracestate: 'a=1' }), { traceparent, tracestate: 'a=1' })
})

t.test('an id that cannot be a value of tracestate is not sent', async t => {
  for (const id of ['a,b', 'a=b', 'ü', 'a\nb', 'a\u007fb', 'ends with a space ', ' ', 'x'.repeat(257), '\ud800', '']) {
    t.strictSame(traceOf({ id, traceparent, tracestate: 'a=1' }), { traceparent, tracestate: 'a=1' }, JSON.stringify(id).slice(0, 80))
    t.equal(traceOf({ id }), undefined)
  }
  for (const id of ['a b', '{"a":1}', '!', "'; drop table", '~'.repeat(256), ' a']) t.equal(requestIdIn(traceOf({ id })!), id)
})

t.test('a caller cannot set the id that a device is sent', async t => {
  const forged = 'fastify-devices=forged,a=1,fastify-devices=again'
  t.strictSame(traceOf({ id: 'req-1', traceparent, tracestate: forged }), { traceparent, tracestate: 'fastify-devices=req-1,a=1' })
  t.strictSame(traceOf({ id: 'ü', traceparent, tracestate: forged }), { traceparent, tracestate: 'a=1' })
})

t.test('a tracestate that the id makes too long loses its last members', async t => {
  const tracestate = ['a', 'b', 'c', 'd'].map(key => `${key}=${'1'.repeat(120)}`).join(',')
  const sent = traceOf({ id: 'req-1', traceparent, tracestate })!
  t.equal(sent.tracestate, ['fastify-devices=req-1', ...tracestate.split(',').slice(0, 3)].join(','))
  const many = Array.from({ length: 32 }, (_, at) => `k${at}=v`)
  t.strictSame(traceOf({ id: 'req-1', traceparent, tracestate: many.join(',') })!.tracestate!.split(','), ['fastify-devices=req-1', ...many.slice(0, 31)])
})

t.test('the id of the request is found in the trace that a device sends back', async t => {
  t.equal(requestIdIn({ tracestate: 'a=1,fastify-devices=req-1,b=2' }), 'req-1')
  for (const tracestate of [undefined, '', 'a=1', 'xfastify-devices=1', 'fastify-devices-2=1']) t.equal(requestIdIn(tracestate === undefined ? {} : { tracestate }), undefined)
})

t.test('a trace is made only for a device that asked for it', async t => {
  t.equal(traceFor(jsonrpc(), { id: 'req-1' }), undefined)
  t.equal(traceFor(jsonrpc().traced!, undefined), undefined)
  t.match(traceFor(jsonrpc().traced!, { id: 'req-1' }), { tracestate: 'fastify-devices=req-1' })
})

/** Calls a handler, and returns its context. */
function contextFor (request?: RequestContext, log: FastifyBaseLogger = fakeLog()): HandlerContext {
  const methods = new Methods(new Stats(fakeLog()), pluginLog(log))
  let seen: HandlerContext
  methods.handle('look', {}, (_params, context) => { seen = context })
  methods.answer('look', undefined, { id: 'd1' } as Device, new InboundCall(), request)
  return seen!
}

t.test('a handler is given the id of the request and the trace, if its device sent them back', async t => {
  const { id, traceparent: parent, tracestate } = contextFor({ traceparent, tracestate: 'fastify-devices=req-1,a=1' })
  t.strictSame([id, parent, tracestate], ['req-1', traceparent, 'fastify-devices=req-1,a=1'])
  t.equal(contextFor({ id: 'of the gateway', traceparent, tracestate: 'fastify-devices=req-1' }).id, 'of the gateway')
})

t.test('a handler that no known request has caused is given an id of its own', async t => {
  const methods = new Methods(new Stats(fakeLog()), fakeLog())
  const ids: string[] = []
  methods.handle('look', {}, (_params, context) => { ids.push(context.id, context.id) })
  for (const request of [undefined, { traceparent }, { traceparent, tracestate: 'a=1' }]) methods.answer('look', undefined, { id: 'd1' } as Device, new InboundCall(), request)
  t.equal(ids.length, 6)
  t.equal(new Set(ids).size, 3)
  const { traceparent: parent, tracestate } = contextFor()
  t.strictSame([parent, tracestate], [undefined, undefined])
})

t.test('the log of a handler names the request, the device and the method, and is made when it is read', async t => {
  const children: object[] = []
  const child = fakeLog()
  const log = { ...fakeLog(), child: (fields: object) => { children.push(fields); return { ...child, child: log.child } } } as unknown as FastifyBaseLogger
  const context = contextFor({ traceparent, tracestate: 'fastify-devices=req-1' }, log)
  t.strictSame(children.slice(1), [])
  context.log.info({ at: 1 }, 'seen')
  t.equal(context.log, context.log)
  t.strictSame(children.slice(1), [{ reqId: 'req-1', deviceId: 'd1', method: 'look' }])
  t.match(child.lines, [{ fields: { at: 1 }, words: 'seen' }])
  const childless = { ...fakeLog(), child: undefined } as unknown as ReturnType<typeof fakeLog>
  contextFor(undefined, childless).log.warn({}, 'without a child')
  t.match(childless.lines, [{ words: 'without a child' }])
})

t.test('the lines about a call that fails have the id that its handler was given', async t => {
  const log = fakeLog()
  const methods = new Methods(new Stats(fakeLog()), log)
  const ids: string[] = []
  methods.handle('fail', {}, (_params, { id }) => {
    ids.push(id)
    throw new Error('broken')
  })
  const answer = (name: string, request?: RequestContext) => methods.answer(name, undefined, { id: 'd1' } as Device, new InboundCall(), request)
  t.throws(() => answer('fail'))
  t.throws(() => answer('fail', { traceparent, tracestate: 'fastify-devices=req-1' }))
  t.throws(() => answer('nobody', { traceparent, tracestate: 'fastify-devices=req-2' }))
  t.strictSame(log.lines.map(({ fields, words }) => [words, fields.reqId]), [['handler failed', ids[0]], ['handler failed', 'req-1'], ['call refused', 'req-2']])
})
