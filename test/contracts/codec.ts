import type { Test } from 'tap'
import type { Codec, Message } from '../../lib/protocol/message.ts'
import { random } from '../fakes.ts'

const kinds = new Set(['call', 'notice', 'result', 'failure', 'invalid'])
const everyByte = Uint8Array.from({ length: 256 }, (_, at) => at)
const awkward = ['1', 'a b', 'ü-€-😀', '"\\\n\u2028', '__proto__', '0'.repeat(36)]

/** The contract of a codec. Ids are strings and params are objects, because some protocols allow no others. */
export function codecContract (t: Test, name: string, make: () => Codec): void {
  void t.test(`${name} keeps the contract of a codec`, async t => {
    const codec = make()
    const encode = (message: Message) => codec.encode(message)!
    const back = (message: Message) => codec.decode(encode(message))
    const hasNotices = codec.encode({ kind: 'notice', method: 'tell', params: {} }) !== undefined

    t.test('has a subprotocol that is valid in a header, and a concurrency of at least one', async t => {
      t.match(codec.subprotocol, /^[\w.-]+$/)
      t.ok(codec.concurrency > 0)
    })

    t.test('decodes each kind of message as it was encoded', async t => {
      const params = { name: 'ü€😀 "\\\n\u2028', list: [1, null, { deep: true }], none: null, no: false }
      t.strictSame(back({ kind: 'call', id: 'a1', method: 'read', params }), { kind: 'call', id: 'a1', method: 'read', params })
      if (hasNotices) t.strictSame(back({ kind: 'notice', method: 'tell', params }), { kind: 'notice', method: 'tell', params })
      t.strictSame(back({ kind: 'result', id: 'a1', result: params }), { kind: 'result', id: 'a1', result: params })
      t.match(back({ kind: 'failure', id: 'a1', reason: 'unknown-method' }), { kind: 'failure', id: 'a1', reason: 'unknown-method' })
    })

    t.test('decodes the message and the data of a refusal', async t => {
      const detail = { code: 17, message: 'The door is open', data: { door: 'left' } }
      t.match(back({ kind: 'failure', id: 'a1', reason: 'refused', detail }), {
        kind: 'failure', id: 'a1', reason: 'refused', detail: { message: 'The door is open', data: { door: 'left' } }
      })
    })

    t.test('encodes an invalid message as a failure', async t => {
      t.match(back({ kind: 'invalid', id: 'a1', reason: 'malformed' }), { kind: 'failure', id: 'a1' })
    })

    t.test('never loses an id', async t => {
      for (const id of awkward) {
        t.match(back({ kind: 'call', id, method: 'read', params: {} }), { kind: 'call', id })
        t.match(back({ kind: 'result', id, result: {} }), { kind: 'result', id })
        t.match(back({ kind: 'failure', id, reason: 'internal' }), { kind: 'failure', id })
      }
    })

    t.test('decodes bytes as bytes', async t => {
      const inside = Buffer.concat([Buffer.from('around'), everyByte, Buffer.from('around')]).subarray(6, 262)
      for (const data of [everyByte, new Uint8Array(0), Uint8Array.of(10, 10), Uint8Array.of(255), inside]) {
        const call = back({ kind: 'call', id: 'a1', method: 'write', params: { at: 'here', data } }) as any
        t.ok(call.params.data instanceof Uint8Array)
        t.strictSame([...call.params.data], [...data])
        t.match(call, { kind: 'call', id: 'a1', method: 'write', params: { at: 'here' } })
        const notice = hasNotices && back({ kind: 'notice', method: 'write', params: { data } }) as any
        if (notice) t.strictSame([...notice.params.data], [...data])
        const result = back({ kind: 'result', id: 'a1', result: { at: 'here', data } }) as any
        t.strictSame([...result.result.data], [...data])
        t.match(result, { kind: 'result', id: 'a1', result: { at: 'here' } })
        const bare = back({ kind: 'result', id: 'a1', result: data }) as any
        t.strictSame([...bare.result.data], [...data])
      }
    })

    t.test('makes unique ids, if it makes any', async t => {
      const ids = Array.from({ length: 100 }, (_, at) => codec.mint?.() ?? String(at))
      t.equal(new Set(ids).size, 100)
      for (const id of ids) t.match(back({ kind: 'result', id, result: {} }), { kind: 'result', id })
    })

    t.test('turns data into a call only if it names one', async t => {
      for (const data of [undefined, null, 1, 'Reset', [], {}, { params: {} }, { method: 1 }, { method: '' }, { method: 'Reset', params: [] }, { method: 'Reset', param: {} }, everyByte]) {
        t.equal(codec.callOf?.(data), undefined)
      }
    })

    t.test('does not change the messages it encodes', async t => {
      const params = { at: 'here', data: Uint8Array.of(1, 2) }
      encode({ kind: 'call', id: 'a1', method: 'write', params })
      t.strictSame(params, { at: 'here', data: Uint8Array.of(1, 2) })
    })

    t.test('is stateless: garbage in between changes nothing', async t => {
      const frame = encode({ kind: 'call', id: 'a1', method: 'read', params: { data: everyByte } })
      const before = codec.decode(frame)
      for (const garbage of ['', '{', '\u0000', Uint8Array.of(0xe2, 0x82), Uint8Array.of(0xff, 10), new Uint8Array(0)]) codec.decode(garbage)
      t.strictSame(codec.decode(frame), before)
    })

    t.test('never throws, whatever the frame', async t => {
      const next = random(7)
      const below = (limit: number) => Math.floor(next() * limit)
      const alphabet = '{}[]":,.0123456789eE+-\\ \n\u0000truefalsnjopcidmhvk ü€\ud800'
      const examples: Array<string | Uint8Array> = [
        encode({ kind: 'call', id: 'a1', method: 'read', params: { list: [1, { two: 2 }] } }),
        encode({ kind: 'result', id: 'a1', result: { data: Uint8Array.of(1, 2, 3) } }),
        encode({ kind: 'failure', id: 'a1', reason: 'refused', detail: { code: 1, message: 'no' } })
      ]
      const wrong: unknown[] = []
      for (let count = 0; count < 6_000; count++) {
        const kind = count % 3
        const frame = kind === 0
          ? Uint8Array.from({ length: below(60) }, () => below(256))
          : kind === 1
            ? Array.from({ length: below(60) }, () => alphabet[below(alphabet.length)]).join('')
            : cut(examples[below(examples.length)]!, below)
        try {
          const decoded = codec.decode(frame)
          for (const message of Array.isArray(decoded) ? decoded : [decoded]) if (!isMessage(message)) wrong.push({ frame, message })
        } catch (error) {
          wrong.push({ frame, error })
        }
      }
      t.strictSame(wrong, [])
    })
  })
}

function cut (frame: string | Uint8Array, below: (limit: number) => number): string | Uint8Array {
  return frame.slice(below(frame.length), 1 + below(frame.length))
}

/** Whether this has the shape that the types promise. */
export function isMessage (value: any): value is Message {
  if (!kinds.has(value?.kind)) return false
  const hasId = typeof value.id === 'string' || typeof value.id === 'number'
  switch ((value as Message).kind) {
    case 'call': return hasId && typeof value.method === 'string'
    case 'notice': return value.id === undefined && typeof value.method === 'string'
    case 'result': return hasId && value.result !== undefined
    case 'failure': return (hasId || value.id === null) && typeof value.reason === 'string'
    case 'invalid': return (hasId || value.id === null) && ['unreadable', 'malformed', 'answer-invalid'].includes(value.reason)
  }
}
