import t from 'tap'
import { jsonrpc } from '../lib/protocol/jsonrpc.ts'
import { Frame } from '../lib/connection/frame.ts'
import { isSafeJson } from '../lib/protocol/safe-json.ts'
import type { Message } from '../lib/protocol/message.ts'
import { toWire } from '../lib/transports/websocket/frame.ts'
import { codecContract, isMessage } from './contracts/codec.ts'
import { random } from './fakes.ts'

codecContract(t, 'jsonrpc()', () => jsonrpc())
codecContract(t, "jsonrpc({ bytes: 'base64' })", () => jsonrpc({ bytes: 'base64' }))
codecContract(t, 'jsonrpc() for devices that asked for trace context', () => jsonrpc().traced!)

const invalid = (reason: string, id: string | number | null = null) => ({ kind: 'invalid', id, reason })
const rpc = (members: object) => JSON.stringify({ jsonrpc: '2.0', ...members })
const traceparent = '00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01'
const nested = (levels: number): unknown => levels === 0 ? 1 : [nested(levels - 1)]

function binary (head: string, body: string | Uint8Array = 'bytes'): Uint8Array {
  return Buffer.concat([Buffer.from(`${head}\n`), Buffer.from(body)])
}

const frames: Array<[what: string, frame: string | Uint8Array, expected: unknown]> = [
  // good ones
  ['a call', rpc({ id: 1, method: 'read' }), { kind: 'call', id: 1, method: 'read' }],
  ['a call with members', rpc({ id: 'a', method: 'read', params: { at: 1 } }), { kind: 'call', id: 'a', method: 'read', params: { at: 1 } }],
  ['a call with a list', rpc({ id: 'a', method: 'read', params: [1, 2] }), { kind: 'call', id: 'a', method: 'read', params: [1, 2] }],
  ['an id that is zero', rpc({ id: 0, method: 'read' }), { kind: 'call', id: 0, method: 'read' }],
  ['an id that is negative', rpc({ id: -7, method: 'read' }), { kind: 'call', id: -7, method: 'read' }],
  ['an id that is empty', rpc({ id: '', method: 'read' }), { kind: 'call', id: '', method: 'read' }],
  ['the longest id', rpc({ id: 'x'.repeat(255), method: 'read' }), { kind: 'call', id: 'x'.repeat(255), method: 'read' }],
  ['a method without a name', rpc({ id: 1, method: '' }), { kind: 'call', id: 1, method: '' }],
  ['a notice', rpc({ method: 'tell', params: {} }), { kind: 'notice', method: 'tell', params: {} }],
  ['members nobody knows', rpc({ method: 'tell', extra: true }), { kind: 'notice', method: 'tell' }],
  ['a result', rpc({ id: 1, result: { at: 1 } }), { kind: 'result', id: 1, result: { at: 1 } }],
  ['a result that is null', rpc({ id: 1, result: null }), { kind: 'result', id: 1, result: null }],
  ['a result that is false', rpc({ id: 1, result: false }), { kind: 'result', id: 1, result: false }],
  ['a batch', `[${rpc({ id: 1, method: 'a' })},${rpc({ method: 'b' })}]`, [{ kind: 'call', id: 1, method: 'a' }, { kind: 'notice', method: 'b' }]],
  ['a batch of one', `[${rpc({ id: 1, method: 'a' })}]`, [{ kind: 'call', id: 1, method: 'a' }]],
  ['white space around', ` \n\t${rpc({ id: 1, method: 'a' })}\r\n`, { kind: 'call', id: 1, method: 'a' }],

  // errors that mean the same to every peer, and those that are the other side's own
  ['the error of an unknown method', rpc({ id: 1, error: { code: -32601, message: 'no' } }), { kind: 'failure', id: 1, reason: 'unknown-method', detail: { code: -32601, message: 'no' } }],
  ['the error of being too fast', rpc({ id: 1, error: { code: -32005, message: 'no' } }), { kind: 'failure', id: 1, reason: 'too-fast', detail: { code: -32005, message: 'no' } }],
  ['the error of being busy', rpc({ id: 1, error: { code: -32006, message: 'no' } }), { kind: 'failure', id: 1, reason: 'busy', detail: { code: -32006, message: 'no' } }],
  ['an error of its own', rpc({ id: 1, error: { code: 42, message: 'no', data: [1] } }), { kind: 'failure', id: 1, reason: 'refused', detail: { code: 42, message: 'no', data: [1] } }],
  ['an internal error of the other side', rpc({ id: 1, error: { code: -32603, message: 'no' } }), { kind: 'failure', id: 1, reason: 'refused', detail: { code: -32603, message: 'no' } }],
  ['an error that claims to be a timeout', rpc({ id: 1, error: { code: -32002, message: 'no' } }), { kind: 'failure', id: 1, reason: 'refused', detail: { code: -32002, message: 'no' } }],
  ['an error about nothing in particular', rpc({ id: null, error: { code: -32700, message: 'no' } }), { kind: 'failure', id: null, reason: 'refused', detail: { code: -32700, message: 'no' } }],

  // the trace of a call or notice: what is malformed is ignored
  ['a call with a trace', rpc({ id: 1, method: 'read', traceparent, tracestate: 'a=1' }), { kind: 'call', id: 1, method: 'read', trace: { traceparent, tracestate: 'a=1' } }],
  ['a notice with a trace', rpc({ method: 'tell', params: {}, traceparent }), { kind: 'notice', method: 'tell', params: {}, trace: { traceparent } }],
  ['a batch with a trace', `[${rpc({ method: 'a', traceparent })},${rpc({ method: 'b' })}]`, [{ kind: 'notice', method: 'a', trace: { traceparent } }, { kind: 'notice', method: 'b' }]],
  ['bytes and a trace', binary(rpc({ method: 'a', traceparent })), { kind: 'notice', method: 'a', params: { data: Buffer.from('bytes') }, trace: { traceparent } }],
  ['a result with a trace', rpc({ id: 1, result: 1, traceparent }), { kind: 'result', id: 1, result: 1 }],
  ['a trace in a message that is none', rpc({ id: 1, method: 7, traceparent }), invalid('malformed', 1)],
  ['a trace that is a number', rpc({ id: 1, method: 'read', traceparent: 7 }), { kind: 'call', id: 1, method: 'read' }],
  ['a trace that is null', rpc({ id: 1, method: 'read', traceparent: null }), { kind: 'call', id: 1, method: 'read' }],
  ['a trace that is too long', rpc({ id: 1, method: 'read', traceparent: `${traceparent}${'0'.repeat(10_000)}` }), { kind: 'call', id: 1, method: 'read' }],
  ['a state without a trace', rpc({ id: 1, method: 'read', tracestate: 'a=1' }), { kind: 'call', id: 1, method: 'read' }],
  ['a state that is a list', rpc({ id: 1, method: 'read', traceparent, tracestate: ['a=1'] }), { kind: 'call', id: 1, method: 'read', trace: { traceparent } }],
  ['a state that is too long', rpc({ id: 1, method: 'read', traceparent, tracestate: `a=${'1'.repeat(511)}` }), { kind: 'call', id: 1, method: 'read', trace: { traceparent } }],

  // text that is no message
  ['nothing', '', invalid('unreadable')],
  ['no JSON', '{"jsonrpc":"2.0",', invalid('unreadable')],
  ['two messages in a frame', rpc({ method: 'a' }) + rpc({ method: 'b' }), invalid('unreadable')],
  ['a number', '7', invalid('malformed')],
  ['null', 'null', invalid('malformed')],
  ['text', '"hello"', invalid('malformed')],
  ['an empty object', '{}', invalid('malformed')],
  ['an id without a method or an outcome', '{"jsonrpc":"2.0","id":1}', invalid('answer-invalid', 1)],
  ['an answer whose method is wrong', '{"jsonrpc":"2.0","id":1,"method":7}', invalid('malformed', 1)],
  ['no version', '{"id":1,"method":"read"}', invalid('malformed', 1)],
  ['another version', '{"jsonrpc":"1.0","id":"a","method":"read"}', invalid('malformed', 'a')],
  ['a version that is a number', '{"jsonrpc":2.0,"id":1,"method":"read"}', invalid('malformed', 1)],
  ['another version of an answer', '{"jsonrpc":"1.0","id":1,"result":1}', invalid('answer-invalid', 1)],
  ['a method that is no text', rpc({ id: 1, method: 7 }), invalid('malformed', 1)],
  ['neither a method nor an answer', rpc({ id: 1 }), invalid('answer-invalid', 1)],
  ['params that are text', rpc({ id: 1, method: 'read', params: 'x' }), invalid('malformed', 1)],
  ['params that are null', rpc({ id: 1, method: 'read', params: null }), invalid('malformed', 1)],
  ['an id with a fraction', rpc({ id: 1.5, method: 'read' }), invalid('malformed')],
  ['an id that is too large a number', '{"jsonrpc":"2.0","id":9007199254740992,"method":"read"}', invalid('malformed')],
  ['an id that is null', rpc({ id: null, method: 'read' }), invalid('malformed')],
  ['an id that is an object', rpc({ id: {}, method: 'read' }), invalid('malformed')],
  ['an id that is a list', rpc({ id: [1], method: 'read' }), invalid('malformed')],
  ['an id that is true', rpc({ id: true, method: 'read' }), invalid('malformed')],
  ['an id that is too long', rpc({ id: 'x'.repeat(256), method: 'read' }), invalid('malformed')],

  // answers that are none
  ['both a result and an error', rpc({ id: 1, result: 1, error: { code: 1, message: 'no' } }), invalid('answer-invalid', 1)],
  ['a result and an error that is null', rpc({ id: 1, result: 1, error: null }), invalid('answer-invalid', 1)],
  ['an error that is null', rpc({ id: 1, error: null }), invalid('answer-invalid', 1)],
  ['an error that is text', rpc({ id: 1, error: 'no' }), invalid('answer-invalid', 1)],
  ['an error that is a list', rpc({ id: 1, error: [1, 'no'] }), invalid('answer-invalid', 1)],
  ['an error without a code', rpc({ id: 1, error: { message: 'no' } }), invalid('answer-invalid', 1)],
  ['an error with a code that is text', rpc({ id: 1, error: { code: '1', message: 'no' } }), invalid('answer-invalid', 1)],
  ['an error with a fraction for a code', rpc({ id: 1, error: { code: 1.5, message: 'no' } }), invalid('answer-invalid', 1)],
  ['an error without words', rpc({ id: 1, error: { code: 1 } }), invalid('answer-invalid', 1)],
  ['an error with words that are a number', rpc({ id: 1, error: { code: 1, message: 2 } }), invalid('answer-invalid', 1)],
  ['a result for nobody', rpc({ result: 1 }), invalid('answer-invalid')],
  ['a result for an id that is none', rpc({ id: [1], result: 1 }), invalid('answer-invalid')],

  // batches
  ['an empty batch', '[]', invalid('malformed')],
  ['a batch that is too large', `[${Array(21).fill(rpc({ method: 'a' })).join()}]`, invalid('malformed')],
  ['the largest batch', `[${Array(20).fill(rpc({ method: 'a' })).join()}]`, Array.from({ length: 20 }, () => ({ kind: 'notice', method: 'a' }))],
  ['a batch in a batch', `[[${rpc({ method: 'a' })}],${rpc({ method: 'b' })}]`, [invalid('malformed'), { kind: 'notice', method: 'b' }]],
  ['a batch with one bad entry', `[1,${rpc({ method: 'b' })},${rpc({ id: 3 })}]`, [invalid('malformed'), { kind: 'notice', method: 'b' }, invalid('answer-invalid', 3)]],

  // what must not be handed on
  ['the deepest message', rpc({ id: 1, method: 'a', params: nested(31) }), { kind: 'call', id: 1, method: 'a', params: nested(31) }],
  ['a message that is too deep', rpc({ id: 1, method: 'a', params: nested(32) }), invalid('malformed', 1)],
  ['an answer that is too deep', rpc({ id: 1, result: nested(32) }), invalid('answer-invalid', 1)],
  ['brackets without end', `{"jsonrpc":"2.0","method":"a","params":${'['.repeat(30_000)}${']'.repeat(30_000)}}`, invalid('malformed')],
  ['the key __proto__', '{"jsonrpc":"2.0","id":1,"method":"a","params":{"deep":[{"__proto__":{"admin":true}}]}}', invalid('malformed', 1)],
  ['the key __proto__ at the top', '{"jsonrpc":"2.0","id":1,"method":"a","__proto__":{"params":{}}}', invalid('malformed', 1)],
  ['the key __proto__ in an answer', '{"jsonrpc":"2.0","id":1,"result":{"__proto__":1}}', invalid('answer-invalid', 1)],
  ['the keys constructor.prototype', '{"jsonrpc":"2.0","id":1,"method":"a","params":{"constructor":{"prototype":{"admin":true}}}}', invalid('malformed', 1)],
  ['a constructor that is harmless', rpc({ method: 'a', params: { constructor: 'Ford' } }), { kind: 'notice', method: 'a', params: { constructor: 'Ford' } }],

  // binary frames
  ['bytes for a notice', binary(rpc({ method: 'a' }), 'x\ny'), { kind: 'notice', method: 'a', params: { data: Buffer.from('x\ny') } }],
  ['bytes among the params', binary(rpc({ id: 1, method: 'a', params: { at: 1, data: 'old' } })), { kind: 'call', id: 1, method: 'a', params: { at: 1, data: Buffer.from('bytes') } }],
  ['bytes for a result', binary(rpc({ id: 1, result: {} })), { kind: 'result', id: 1, result: { data: Buffer.from('bytes') } }],
  ['bytes for a result that is null', binary(rpc({ id: 1, result: null }), ''), { kind: 'result', id: 1, result: { data: Buffer.alloc(0) } }],
  ['a binary frame without a newline', Buffer.from(rpc({ method: 'a' })), invalid('unreadable')],
  ['an empty binary frame', Buffer.alloc(0), invalid('unreadable')],
  ['a binary frame that begins with a newline', Buffer.from('\nbytes'), invalid('unreadable')],
  ['a binary frame that is not UTF-8', Buffer.concat([Buffer.from('{"jsonrpc":"2.0","method":"'), Buffer.of(0xff), Buffer.from('"}\nbytes')]), invalid('unreadable')],
  ['a binary frame without JSON', binary('{"jsonrpc"'), invalid('unreadable')],
  ['a batch in a binary frame', binary(`[${rpc({ method: 'a' })}]`), invalid('malformed')],
  ['bytes for a call with a list', binary(rpc({ id: 1, method: 'a', params: [1] })), invalid('malformed', 1)],
  ['bytes for a notice with a list', binary(rpc({ method: 'a', params: [1] })), invalid('malformed')],
  ['bytes for a call that is none', binary(rpc({ id: 1 })), invalid('answer-invalid', 1)],
  // they are answers all the same: whoever waits for one must not wait on, and no answer is answered
  ['bytes for a result without a place for them', binary(rpc({ id: 1, result: 7 })), invalid('answer-invalid', 1)],
  ['bytes for an error', binary(rpc({ id: 1, error: { code: 1, message: 'no' } })), invalid('answer-invalid', 1)],
  ['bytes for an answer that is none', binary(rpc({ id: 1, error: 'no' })), invalid('answer-invalid', 1)]
]

t.test('frames are decoded as JSON-RPC specifies', async t => {
  const codec = jsonrpc()
  for (const [what, frame, expected] of frames) t.strictSame(plain(codec.decode(frame)), plain(expected), what)
})

t.test('in lines of text, base64 replaces data', async t => {
  const codec = jsonrpc({ bytes: 'base64' })
  const data = Uint8Array.of(0, 10, 255)
  t.equal(codec.encode({ kind: 'notice', method: 'a', params: { at: 1, data } }), '{"jsonrpc":"2.0","method":"a","params":{"at":1,"base64":"AAr/"}}')
  t.equal(codec.encode({ kind: 'result', id: 1, result: data }), '{"jsonrpc":"2.0","id":1,"result":{"base64":"AAr/"}}')
  t.strictSame(codec.decode(rpc({ method: 'a', params: { at: 1, base64: 'AAr/' } })), { kind: 'notice', method: 'a', params: { at: 1, data } })
  t.strictSame(codec.decode(`[${rpc({ id: 1, result: { base64: '' } })}]`), [{ kind: 'result', id: 1, result: { data: new Uint8Array(0) } }])
  t.strictSame(codec.decode(rpc({ method: 'a', params: { base64: 7 } })), { kind: 'notice', method: 'a', params: { base64: 7 } })
  t.strictSame(codec.decode(rpc({ method: 'a', params: ['AAr/'] })), { kind: 'notice', method: 'a', params: ['AAr/'] })
  t.strictSame(codec.decode(rpc({ id: 1, method: 'a', params: { base64: '%' } })), invalid('malformed', 1))
  t.strictSame(codec.decode(rpc({ method: 'a', params: { base64: '%' } })), invalid('malformed'))
})

t.test('an answer with invalid base64 is an invalid answer', async t => {
  t.strictSame(jsonrpc({ bytes: 'base64' }).decode(rpc({ id: 1, result: { base64: '%' } })), invalid('answer-invalid', 1))
})

t.test('messages are encoded as JSON-RPC specifies', async t => {
  const { encode } = jsonrpc()
  t.equal(encode({ kind: 'call', id: 1, method: 'a', params: [1] }), '{"jsonrpc":"2.0","id":1,"method":"a","params":[1]}')
  t.equal(encode({ kind: 'call', id: 'x', method: 'a' }), '{"jsonrpc":"2.0","id":"x","method":"a"}')
  t.equal(encode({ kind: 'notice', method: 'a', params: { data: 'x' } }), '{"jsonrpc":"2.0","method":"a","params":{"data":"x"}}')
  t.equal(encode({ kind: 'result', id: 1, result: null }), '{"jsonrpc":"2.0","id":1,"result":null}')
  t.equal(encode({ kind: 'failure', id: 1, reason: 'busy' }), '{"jsonrpc":"2.0","id":1,"error":{"code":-32006,"message":"Too many calls in flight"}}')
  t.equal(encode({ kind: 'failure', id: null, reason: 'malformed' }), '{"jsonrpc":"2.0","id":null,"error":{"code":-32600,"message":"Readable, but not a valid message"}}')
  t.equal(encode({ kind: 'invalid', id: null, reason: 'unreadable' }), '{"jsonrpc":"2.0","id":null,"error":{"code":-32700,"message":"Not readable as a message"}}')
  t.equal(encode({ kind: 'failure', id: 1, reason: 'refused', detail: { code: 7, message: 'no', data: 1 } }), '{"jsonrpc":"2.0","id":1,"error":{"code":7,"message":"no","data":1}}')
})

t.test('a trace is encoded only for devices that asked for trace context', async t => {
  const trace = { traceparent, tracestate: 'a="1"' }
  const messages: Message[] = [{ kind: 'call', id: 1, method: 'a', params: { at: 1 }, trace }, { kind: 'notice', method: 'a', trace: { traceparent } }]
  for (const bytes of ['frame', 'base64'] as const) {
    const codec = jsonrpc({ bytes })
    t.notOk(codec.isTraced)
    t.equal(codec.traced!.isTraced, true)
    for (const message of messages) {
      const { trace, ...untraced } = message as Message & { kind: 'call' }
      t.equal(codec.encode(message), codec.encode(untraced))
      t.equal(codec.traced!.encode(untraced), codec.encode(untraced))
      t.strictSame(JSON.parse(codec.traced!.encode(message) as string), { ...JSON.parse(codec.encode(message) as string), ...trace })
      t.strictSame(codec.decode(codec.traced!.encode(message)!), message)
    }
  }
  t.equal(jsonrpc().traced!.encode(messages[1]!), `{"traceparent":"${traceparent}","jsonrpc":"2.0","method":"a"}`)
  const encoded = jsonrpc().traced!.encode({ kind: 'notice', method: 'a', params: { data: Buffer.from('{\ny') }, trace: { traceparent } })
  t.equal(Buffer.from(encoded as Uint8Array).toString(), `{"traceparent":"${traceparent}","jsonrpc":"2.0","method":"a","params":{}}\n{\ny`)
})

t.test('a code that is text is replaced by a number, as JSON-RPC requires', async t => {
  const encoded = jsonrpc().encode({ kind: 'failure', id: 1, reason: 'refused', detail: { code: 'GenericError', message: 'no' } })
  t.strictSame(JSON.parse(encoded as string).error, { code: -32000, message: 'no' })
})

t.test('a batch is one text frame, with base64 for bytes', async t => {
  const { encode } = jsonrpc()
  const encoded = encode([{ kind: 'result', id: 1, result: 1 }, { kind: 'result', id: 2, result: { data: Uint8Array.of(0, 10, 255) } }])
  t.equal(encoded, '[{"jsonrpc":"2.0","id":1,"result":1},{"jsonrpc":"2.0","id":2,"result":{"base64":"AAr/"}}]')
})

t.test('bytes are sent in a binary frame, after the message and a newline', async t => {
  const encoded = jsonrpc().encode({ kind: 'notice', method: 'a', params: { at: 1, data: Buffer.from('x\ny') } })
  t.not(typeof encoded, 'string')
  t.equal(Buffer.from(encoded as Uint8Array).toString(), '{"jsonrpc":"2.0","method":"a","params":{"at":1}}\nx\ny')
})

t.test('depth and batch size are limited by the options', async t => {
  const { decode } = jsonrpc({ depth: 2, batch: 1 })
  t.match(decode(rpc({ method: 'a', params: { at: 1 } })), { kind: 'notice' })
  t.strictSame(decode(rpc({ method: 'a', params: { at: [] } })), invalid('malformed'))
  t.match(decode(`[${rpc({ method: 'a' })}]`), [{ kind: 'notice' }])
  t.strictSame(decode(`[${rpc({ method: 'a' })},${rpc({ method: 'a' })}]`), invalid('malformed'))
})

t.test('mutated frames are decoded or refused, and a decoded message can be encoded', async t => {
  const next = random(42)
  const below = (limit: number) => Math.floor(next() * limit)
  const good = frames.map(([, frame]) => Buffer.from(frame)).filter(frame => frame.length < 2_000)
  const pieces = ['"', '{', '}', '[', ']', ',', ':', 'null', '-1', '1e999', '"id":1', '"result":', '"error":', '\\ud800', '\n', '"__proto__":', '"base64":"AA=="', ' '].map(piece => Buffer.from(piece))
  const codecs = [jsonrpc(), jsonrpc({ bytes: 'base64' })].flatMap(codec => [codec, codec.traced!])
  const wrong: unknown[] = []
  let readable = 0

  for (let count = 0; count < 20_000; count++) {
    let bytes = good[below(good.length)]!
    for (let edits = below(3); edits > 0; edits--) {
      const at = below(bytes.length + 1)
      const piece = below(4) === 0 ? Buffer.of(below(256)) : pieces[below(pieces.length)]!
      bytes = Buffer.concat([bytes.subarray(0, at), piece, bytes.subarray(at + below(3))])
    }
    const frame = count % 2 === 0 ? bytes : bytes.toString()
    const codec = codecs[below(4)]!
    try {
      const decoded = codec.decode(frame)
      const messages = Array.isArray(decoded) ? decoded : [decoded]
      if (!messages.every(isMessage)) wrong.push({ frame: String(frame), decoded })
      if (messages.some(({ kind }) => kind === 'invalid')) continue
      readable++
      const encoded = codec.encode(decoded)!
      if (String(codec.encode(codec.decode(encoded))) !== String(encoded)) wrong.push({ frame: String(frame), encoded: String(encoded) })
    } catch (error) {
      wrong.push({ frame: String(frame), error })
    }
  }
  t.strictSame(wrong, [])
  t.ok(readable > 1_000, 'the tampering leaves enough that can be read')
})

t.test('JSON is safe if it is shallow and has no key that reaches a prototype', async t => {
  for (const value of [1, 'x', null, true, undefined]) t.ok(isSafeJson(value, 0), String(value))
  t.ok(isSafeJson([], 1))
  t.notOk(isSafeJson([], 0))
  t.notOk(isSafeJson({}, 0))
  t.ok(isSafeJson([{ a: [1] }], 3))
  t.notOk(isSafeJson([{ a: [1] }], 2))
  t.notOk(isSafeJson(JSON.parse('{"__proto__":1}'), 9))
  t.notOk(isSafeJson(JSON.parse('[{"a":{"__proto__":null}}]'), 9))
  t.notOk(isSafeJson({ constructor: { prototype: {} } }, 9))
  t.ok(isSafeJson({ constructor: { name: 'x' } }, 9))
  t.ok(isSafeJson({ constructor: null }, 9))
  t.ok(isSafeJson({ prototype: {} }, 9))
  t.notOk(isSafeJson({ constructor: { name: { prototype: JSON.parse('{"__proto__":1}') } } }, 9))
})

t.test('a frame is the WebSocket frame that RFC 6455 asks for, whatever its length', async t => {
  const heads: Array<[length: number, ...head: number[]]> = [
    [0, 0],
    [1, 1],
    [125, 125],
    [126, 126, 0, 126],
    [65_535, 126, 0xff, 0xff],
    [65_536, 127, 0, 0, 0, 0, 0, 1, 0, 0]
  ]
  for (const [length, ...head] of heads) {
    const text = 'x'.repeat(length)
    t.ok(toWire(text).equals(Buffer.concat([Buffer.of(0x81, ...head), Buffer.from(text)])), `${length} letters`)
    const bytes = new Uint8Array(length).fill(0xfe)
    t.ok(toWire(bytes).equals(Buffer.concat([Buffer.of(0x82, ...head), bytes])), `${length} bytes`)
  }
})

t.test('the length of a text frame is that of its UTF-8', async t => {
  t.strictSame([...toWire('€')], [0x81, 3, 0xe2, 0x82, 0xac])
  t.strictSame([...toWire('€'.repeat(42)).subarray(0, 5)], [0x81, 126, 0, 126, 0xe2])
  t.strictSame([...toWire('\ud800')], [0x81, 3, 0xef, 0xbf, 0xbd])
})

t.test('a frame is made once, however often it is sent', async t => {
  const frame = new Frame('hello')
  t.equal(frame.wire(toWire), frame.wire(toWire))
  t.equal(frame.payload, 'hello')
})

t.test('frames sent together are joined once for all connections with the same frames before', async t => {
  const [a, b, c] = ['a', 'b', 'c'].map(name => new Frame(name)) as [Frame, Frame, Frame]
  const abc = a.followedBy(b).followedBy(c)
  t.equal(a.followedBy(b).followedBy(c), abc)
  t.equal(abc.wire(toWire), abc.wire(toWire))
  t.strictSame(abc.wire(toWire), Buffer.concat([toWire('a'), toWire('b'), toWire('c')]))
  t.strictSame(abc.payloads(), ['a', 'b', 'c'])
  t.strictSame(c.payloads(), ['c'])
  t.equal(abc.size, 3)
  t.strictSame(a.followedBy(c).payloads(), ['a', 'c'], 'another way from the same beginning')
  t.strictSame(abc.payloads(), ['a', 'b', 'c'])
})

/** Bytes are compared by what they hold, be they a Buffer or a plain array. */
function plain (value: unknown): unknown {
  if (value instanceof Uint8Array) return { bytes: [...value] }
  if (Array.isArray(value)) return value.map(plain)
  if (typeof value !== 'object' || value === null) return value
  return Object.fromEntries(Object.entries(value as Message).map(([key, member]) => [key, plain(member)]))
}
