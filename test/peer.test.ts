import { getEventListeners } from 'node:events'
import t from 'tap'
import { reasons, Failure, closeCodes, Refusal, type Reason } from '../lib/protocol/errors.ts'
import { failureMessage, type Call, type FailureMessage, type Id, type InvalidMessage, type Message, type Notice, type Result } from '../lib/protocol/message.ts'
import { Peer, type InboundCall, type PeerHandler, type PeerLimits } from '../lib/protocol/peer.ts'
import { gate, random, reasonOf, turn } from './fakes.ts'

type Answer = (asked: Call | Notice, inbound: InboundCall) => unknown

const defaultLimits: PeerLimits = { concurrency: Infinity, maxInbound: 32 }

/** One end of a connection in memory; records the messages it sent and the unexpected ones it received. */
class End implements PeerHandler {
  readonly peer: Peer
  readonly sent: Array<Message | Message[]> = []
  readonly strays: Message[] = []
  readonly asked: Array<Call | Notice> = []
  readonly refusals: Array<Call | Notice> = []
  /** Throws if the message cannot be encoded. */
  check: (message: Message | Message[]) => void = () => {}
  other: End | undefined
  readonly #answer: Answer

  constructor (answer: Answer = () => null, limits: Partial<PeerLimits> = {}) {
    this.#answer = answer
    this.peer = new Peer(this, { ...defaultLimits, ...limits })
  }

  get calls (): Call[] {
    return this.sent.flat().filter(message => message.kind === 'call')
  }

  transmit (message: Message | Message[]): void {
    this.check(message)
    this.sent.push(message)
    queueMicrotask(() => this.other?.peer.receive(message))
  }

  answer (asked: Call | Notice, inbound: InboundCall): unknown {
    this.asked.push(asked)
    return this.#answer(asked, inbound)
  }

  refused (asked: Call | Notice): void {
    this.refusals.push(asked)
  }

  unexpected (message: Result | FailureMessage | InvalidMessage): void {
    this.strays.push(message)
  }
}

/** Two connected ends; ours calls, theirs answers. */
function pair (answer: Answer, limits: { ours?: Partial<PeerLimits>, theirs?: Partial<PeerLimits> } = {}): { ours: End, theirs: End } {
  const ours = new End(() => null, limits.ours)
  const theirs = new End(answer, limits.theirs)
  ours.other = theirs
  theirs.other = ours
  return { ours, theirs }
}

/** The result of a promise, or the reason of its failure. */
async function outcomeOf (promise: Promise<unknown>): Promise<unknown> {
  return await promise.catch(error => error instanceof Failure ? error.reason : error)
}

/** The reason of a failed promise and the error of the other side. */
async function refusalOf (promise: Promise<unknown>): Promise<unknown[]> {
  const failure: any = await promise.then(() => 'it did not fail', error => error)
  return [failure.reason, failure.device]
}

t.test('a call is answered with the result of the other side', async t => {
  const { ours, theirs } = pair(({ method, params }) => ({ method, params }))
  const trace = { traceparent: '00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01' }
  t.strictSame(await ours.peer.call('read', { at: 1 }, { trace }), { method: 'read', params: { at: 1 } })
  t.strictSame(theirs.asked, [{ kind: 'call', id: 1, method: 'read', params: { at: 1 }, trace }])
  t.strictSame(theirs.sent, [{ kind: 'result', id: 1, result: { method: 'read', params: { at: 1 } } }])
  t.equal(ours.peer.inFlight, 0)
})

t.test('both sides call each other at the same time, under the same ids', async t => {
  const { ours, theirs } = pair(() => 'theirs')
  t.strictSame(await Promise.all([ours.peer.call('a'), theirs.peer.call('b')]), ['theirs', null])
  t.strictSame([ours.strays, theirs.strays], [[], []])
})

t.test('calls are answered as each is ready, not in the order they were made', async t => {
  const resolvers = new Map<string, (value: unknown) => void>()
  const { ours, theirs } = pair(({ method }) => new Promise(resolve => resolvers.set(method, resolve)))
  const settled: unknown[] = []
  const calls = ['a', 'b'].map(async method => settled.push(await ours.peer.call(method)))
  await turn()
  t.equal(ours.peer.inFlight, 2)
  t.equal(theirs.peer.inFlight, 2)
  resolvers.get('b')!('second')
  await turn()
  resolvers.get('a')!('first')
  await Promise.all(calls)
  t.strictSame(settled, ['second', 'first'])
  t.equal(theirs.peer.inFlight, 0)
})

t.test('a handler that returns nothing answers null', async t => {
  const { ours } = pair(({ method }) => method === 'later' ? Promise.resolve() : undefined)
  t.equal(await ours.peer.call('now'), null)
  t.equal(await ours.peer.call('later'), null)
})

t.test('the refusal of a handler reaches the caller with its code, message and data', async t => {
  const refuse: Record<string, () => unknown> = {
    now () { throw new Refusal('The door is open', 17, { door: 'left' }) },
    async later () { throw new Refusal('The door is open') },
    unknown () { throw new Failure('unknown-method') }
  }
  const { ours } = pair(({ method }) => refuse[method]!())
  t.strictSame(await refusalOf(ours.peer.call('now')), ['refused', { code: 17, message: 'The door is open', data: { door: 'left' } }])
  t.strictSame(await refusalOf(ours.peer.call('later')), ['refused', { code: -32000, message: 'The door is open' }])
  t.strictSame(await refusalOf(ours.peer.call('unknown')), ['unknown-method', undefined])
})

t.test('an unexpected error of a handler is an internal error to the caller, without its message', async t => {
  const accidents: Answer[] = [() => { throw new Error('secret') }, async () => { throw new TypeError('secret') }]
  for (const accident of accidents) {
    const { ours, theirs } = pair(accident)
    t.strictSame(await refusalOf(ours.peer.call('read')), ['internal', undefined])
    t.strictSame(theirs.sent, [{ kind: 'failure', id: 1, reason: 'internal' }])
  }
})

t.test('an unanswered call times out, and a late answer is unexpected', async t => {
  const ours = new End()
  t.equal(await reasonOf(ours.peer.call('read', {}, { timeout: 5 })), 'timeout')
  t.equal(ours.peer.inFlight, 0)
  ours.peer.receive({ kind: 'result', id: 1, result: 'late' })
  ours.peer.receive({ kind: 'failure', id: 1, reason: 'refused' })
  t.strictSame(ours.strays, [{ kind: 'result', id: 1, result: 'late' }, { kind: 'failure', id: 1, reason: 'refused' }])
})

t.test('an answer in time clears the timer', async t => {
  const timers = () => process.getActiveResourcesInfo().filter(name => name === 'Timeout').length
  const ours = new End()
  const before = timers()
  const called = ours.peer.call('read', {}, { timeout: 60_000 })
  t.equal(timers(), before + 1)
  ours.peer.receive({ kind: 'result', id: 1, result: 'done' })
  t.equal(timers(), before)
  t.equal(await called, 'done')
})

t.test('the second answer to a call is unexpected', async t => {
  const ours = new End()
  const called = ours.peer.call('read')
  ours.peer.receive({ kind: 'result', id: 1, result: 'first' })
  ours.peer.receive({ kind: 'result', id: 1, result: 'second' })
  t.equal(await called, 'first')
  t.strictSame(ours.strays, [{ kind: 'result', id: 1, result: 'second' }])
})

t.test('an answer that matches no call is unexpected', async t => {
  const ours = new End()
  const called = ours.peer.call('read')
  const strays: Array<Result | FailureMessage | InvalidMessage> = [
    { kind: 'result', id: '1', result: 'the id is text, ours was a number' },
    { kind: 'failure', id: null, reason: 'refused' },
    { kind: 'failure', id: 2, reason: 'refused' },
    { kind: 'invalid', id: null, reason: 'answer-invalid' },
    { kind: 'invalid', id: 2, reason: 'answer-invalid' }
  ]
  for (const stray of strays) ours.peer.receive(stray)
  t.strictSame(ours.strays, strays)
  t.equal(ours.sent.length, 1, 'no answer is answered')
  t.equal(ours.peer.inFlight, 1)
  ours.peer.receive({ kind: 'result', id: 1, result: 'this one' })
  t.equal(await called, 'this one')
})

t.test('an invalid answer settles its call', async t => {
  const ours = new End()
  const called = ours.peer.call('read')
  ours.peer.receive({ kind: 'invalid', id: 1, reason: 'answer-invalid' })
  t.equal(await reasonOf(called), 'answer-invalid')
  t.strictSame(ours.strays, [])
  t.equal(ours.sent.length, 1, 'no answer is answered')
})

t.test('an error of the other side arrives with its code, message and data', async t => {
  const ours = new End()
  const called = ours.peer.call('read')
  ours.peer.receive({ kind: 'failure', id: 1, reason: 'refused', detail: { code: 7, message: 'no', data: 1 } })
  t.strictSame(await refusalOf(called), ['refused', { code: 7, message: 'no', data: 1 }])
})

t.test('an invalid message is answered with a failure, and is unexpected', async t => {
  const ours = new End()
  ours.peer.receive({ kind: 'invalid', id: null, reason: 'unreadable' })
  ours.peer.receive({ kind: 'invalid', id: 7, reason: 'malformed' })
  t.strictSame(ours.sent, [{ kind: 'failure', id: null, reason: 'unreadable', detail: undefined }, { kind: 'failure', id: 7, reason: 'malformed', detail: undefined }])
  t.strictSame(ours.strays, [{ kind: 'invalid', id: null, reason: 'unreadable' }, { kind: 'invalid', id: 7, reason: 'malformed' }])
})

t.test('the end of the connection settles every call, on the wire or in the queue', async t => {
  const ours = new End(undefined, { concurrency: 1 })
  const calls = [ours.peer.call('a'), ours.peer.call('b', {}, { timeout: 60_000 }), ours.peer.call('c')].map(outcomeOf)
  ours.peer.end()
  t.equal(ours.peer.inFlight, 0)
  t.strictSame(await Promise.all(calls), ['dropped', 'dropped', 'dropped'])
  t.strictSame(ours.calls.map(({ method }) => method), ['a'], 'nothing of the queue is sent any more')
})

t.test('after the end nothing is sent, received or answered', async t => {
  const ours = new End()
  ours.peer.end('draining')
  ours.peer.end('dropped')
  t.equal(await reasonOf(ours.peer.call('read')), 'draining', 'the first reason stays')
  ours.peer.notify('tell')
  ours.peer.receive({ kind: 'call', id: 1, method: 'read' })
  ours.peer.receive([{ kind: 'call', id: 1, method: 'read' }, { kind: 'invalid', id: null, reason: 'malformed' }])
  ours.peer.receive({ kind: 'result', id: 1, result: null })
  t.strictSame([ours.sent, ours.asked, ours.refusals, ours.strays], [[], [], [], []])
})

t.test('the result of a handler that outlives the connection is not sent', async t => {
  const late = gate<string>()
  const theirs = new End(() => late.opened)
  theirs.peer.receive({ kind: 'call', id: 1, method: 'read' })
  theirs.peer.receive([{ kind: 'call', id: 2, method: 'read' }])
  theirs.peer.end()
  t.equal(theirs.peer.inFlight, 0)
  late.open('late')
  await turn()
  t.strictSame(theirs.sent, [])
})

t.test('the result of a handler that ends the connection itself is not sent', async t => {
  const theirs: End = new End(() => theirs.peer.end())
  theirs.peer.receive({ kind: 'call', id: 1, method: 'leave' })
  t.strictSame(theirs.sent, [])
})

t.test('a call whose signal is aborted already is not sent', async t => {
  const ours = new End()
  await t.rejects(ours.peer.call('read', {}, { signal: AbortSignal.abort() }), new Failure('dropped', { message: 'The caller gave up' }))
  t.strictSame(ours.sent, [])
  t.equal(ours.peer.inFlight, 0)
})

t.test('a call that is given up fails at once, and its late answer is unexpected', async t => {
  const ours = new End()
  const { signal, abort } = controller()
  const called = ours.peer.call('read', {}, { signal, timeout: 60_000 })
  abort()
  await t.rejects(called, new Failure('dropped', { message: 'The caller gave up' }))
  t.equal(ours.peer.inFlight, 0)
  ours.peer.receive({ kind: 'result', id: 1, result: 'late' })
  t.strictSame(ours.strays, [{ kind: 'result', id: 1, result: 'late' }])
})

t.test('each call removes its listener from a signal that is used again', async t => {
  const { ours } = pair(() => 'done')
  const { signal, abort } = controller()
  for (let count = 0; count < 20; count++) await ours.peer.call('read', {}, { signal })
  t.equal(getEventListeners(signal, 'abort').length, 0)
  abort()
  t.strictSame(ours.strays, [])
})

t.test('a call may be given an id, which is unique among the pending calls', async t => {
  const ours = new End()
  const first = ours.peer.call('read', {}, { id: 'letter' })
  t.equal(await reasonOf(ours.peer.call('read', {}, { id: 'letter' })), 'busy')
  t.strictSame(ours.sent, [{ kind: 'call', id: 'letter', method: 'read', params: {}, trace: undefined }])
  ours.peer.receive({ kind: 'result', id: 'letter', result: 1 })
  t.equal(await first, 1)
  const again = ours.peer.call('read', {}, { id: 'letter' })
  ours.peer.receive({ kind: 'result', id: 'letter', result: 2 })
  t.equal(await again, 2)
})

t.test('a call that cannot be encoded fails, and does not block the next', async t => {
  const ours = new End(undefined, { concurrency: 1 })
  ours.check = message => { if (!Array.isArray(message) && message.kind === 'call' && message.method === 'bad') throw new Failure('bad-params') }
  const calls = ['good', 'bad', 'bad', 'better'].map(method => outcomeOf(ours.peer.call(method)))
  t.strictSame(ours.calls.map(({ method }) => method), ['good'])
  ours.peer.receive({ kind: 'result', id: 1, result: 'first' })
  t.strictSame(ours.calls.map(({ method }) => method), ['good', 'better'])
  ours.peer.receive({ kind: 'result', id: 4, result: 'last' })
  t.strictSame(await Promise.all(calls), ['first', 'bad-params', 'bad-params', 'last'])
  t.equal(ours.peer.inFlight, 0)
})

t.test('with a concurrency of one, calls are sent one at a time, in order', async t => {
  const ours = new End(undefined, { concurrency: 1 })
  const calls = ['a', 'b', 'c'].map(method => outcomeOf(ours.peer.call(method)))
  t.equal(ours.peer.inFlight, 3)
  for (const [at, wire] of [['a'], ['a', 'b'], ['a', 'b', 'c']].entries()) {
    t.strictSame(ours.calls.map(({ method }) => method), wire)
    ours.peer.receive({ kind: 'result', id: at + 1, result: at })
  }
  t.strictSame(await Promise.all(calls), [0, 1, 2])
  // and with nobody in the queue the next goes at once
  void outcomeOf(ours.peer.call('d'))
  t.equal(ours.calls.at(-1)!.method, 'd')
})

t.test('with a concurrency of two, two calls are sent at a time', async t => {
  const ours = new End(undefined, { concurrency: 2 })
  for (const method of ['a', 'b', 'c', 'd']) void outcomeOf(ours.peer.call(method))
  t.strictSame(ours.calls.map(({ method }) => method), ['a', 'b'])
  ours.peer.receive({ kind: 'result', id: 2, result: null })
  t.strictSame(ours.calls.map(({ method }) => method), ['a', 'b', 'c'])
})

t.test('a call that times out or is given up in the queue leaves it, and is never sent', async t => {
  const ours = new End(undefined, { concurrency: 1 })
  const { signal, abort } = controller()
  const first = outcomeOf(ours.peer.call('first'))
  const timedOut = outcomeOf(ours.peer.call('timed out', {}, { timeout: 5 }))
  const givenUp = outcomeOf(ours.peer.call('given up', {}, { signal }))
  const last = outcomeOf(ours.peer.call('last'))
  abort()
  t.strictSame(await Promise.all([timedOut, givenUp]), ['timeout', 'dropped'])
  t.equal(ours.peer.inFlight, 2)
  t.equal(ours.calls.length, 1, 'the first is on the wire still')
  ours.peer.receive({ kind: 'result', id: 1, result: 'done' })
  ours.peer.receive({ kind: 'result', id: 4, result: 'done' })
  t.strictSame(await Promise.all([first, last]), ['done', 'done'])
  t.strictSame(ours.calls.map(({ method }) => method), ['first', 'last'])
})

t.test('a call on the wire that times out makes room for the next', async t => {
  const ours = new End(undefined, { concurrency: 1 })
  const first = outcomeOf(ours.peer.call('first', {}, { timeout: 5 }))
  const second = outcomeOf(ours.peer.call('second'))
  t.equal(await first, 'timeout')
  ours.peer.receive({ kind: 'result', id: 1, result: 'late' })
  t.strictSame(ours.calls.map(({ method }) => method), ['first', 'second'], 'the late answer makes no room of its own')
  ours.peer.receive({ kind: 'result', id: 2, result: 'done' })
  t.equal(await second, 'done')
})

t.test('calls beyond the limit are refused as busy, until one is answered', async t => {
  const door = gate<string>()
  const { ours, theirs } = pair(() => door.opened, { theirs: { maxInbound: 2 } })
  const calls = ['a', 'b', 'c'].map(method => outcomeOf(ours.peer.call(method)))
  ours.peer.notify('d')
  t.equal(await calls[2], 'busy')
  await turn()
  t.strictSame(theirs.asked.map(({ method }) => method), ['a', 'b'])
  t.strictSame(theirs.refusals.map(({ method }) => method), ['c', 'd'])
  t.strictSame(theirs.strays, [])
  t.equal(theirs.sent.length, 1, 'a notice is not answered')
  door.open('done')
  t.strictSame(await Promise.all(calls), ['done', 'done', 'busy'])
  t.equal(await ours.peer.call('again'), 'done')
})

t.test('notices are never answered, whatever their handler returns or throws', async t => {
  const answering: Answer[] = [() => 'result', async () => 'result', () => { throw new Error('accident') }, async () => { throw new Failure('forbidden') }]
  for (const answer of answering) {
    const { ours, theirs } = pair(answer)
    ours.peer.notify('tell', { at: 1 })
    await turn()
    t.strictSame(theirs.asked, [{ kind: 'notice', method: 'tell', params: { at: 1 } }])
    t.strictSame(theirs.sent, [])
    t.equal(theirs.peer.inFlight, 0)
  }
})

t.test('a notice in progress counts towards the limit', async t => {
  const door = gate()
  const theirs = new End(() => door.opened, { maxInbound: 1 })
  theirs.peer.receive({ kind: 'notice', method: 'tell' })
  t.equal(theirs.peer.inFlight, 1)
  theirs.peer.receive({ kind: 'call', id: 1, method: 'read' })
  t.strictSame(theirs.sent, [{ kind: 'failure', id: 1, reason: 'busy' }])
  door.open()
  await turn()
  t.equal(theirs.peer.inFlight, 0)
})

t.test('a batch is answered in one message, once its last call is answered', async t => {
  const door = gate<string>()
  const theirs = new End(({ method }) => method === 'later' ? door.opened : method)
  theirs.peer.receive([
    { kind: 'call', id: 1, method: 'later' },
    { kind: 'notice', method: 'notice' },
    { kind: 'call', id: 2, method: 'now' },
    { kind: 'invalid', id: null, reason: 'malformed' },
    { kind: 'invalid', id: 9, reason: 'answer-invalid' },
    { kind: 'result', id: 8, result: 'to nothing' },
    { kind: 'failure', id: 7, reason: 'refused' }
  ])
  await turn()
  t.strictSame(theirs.sent, [])
  t.strictSame(theirs.asked.map(({ method }) => method), ['later', 'notice', 'now'])
  t.strictSame(theirs.strays.map(({ kind }) => kind), ['invalid', 'invalid', 'result', 'failure'])
  door.open('later')
  await turn()
  t.strictSame(theirs.sent, [[
    { kind: 'result', id: 2, result: 'now' },
    { kind: 'failure', id: null, reason: 'malformed', detail: undefined },
    { kind: 'result', id: 1, result: 'later' }
  ]])
})

t.test('a batch without calls is not answered, and its answers settle their calls', async t => {
  const ours = new End()
  const called = [ours.peer.call('a'), ours.peer.call('b')].map(outcomeOf)
  ours.peer.receive([{ kind: 'result', id: 2, result: 'two' }, { kind: 'notice', method: 'tell' }, { kind: 'failure', id: 1, reason: 'unknown-method' }])
  t.strictSame(await Promise.all(called), ['unknown-method', 'two'])
  t.equal(ours.sent.length, 2)
})

t.test('calls of a batch beyond the limit are refused in the same answer', async t => {
  const door = gate<string>()
  const theirs = new End(() => door.opened, { maxInbound: 1 })
  theirs.peer.receive([{ kind: 'call', id: 1, method: 'a' }, { kind: 'call', id: 2, method: 'b' }, { kind: 'notice', method: 'c' }])
  door.open('done')
  await turn()
  t.strictSame(theirs.sent, [[{ kind: 'failure', id: 2, reason: 'busy' }, { kind: 'result', id: 1, result: 'done' }]])
})

t.test('the signal of a handler is aborted when the connection ends, whenever it is read', async t => {
  const inbounds: InboundCall[] = []
  const theirs = new End((_asked, inbound) => {
    inbounds.push(inbound)
    return new Promise(() => {})
  })
  theirs.peer.receive([{ kind: 'call', id: 1, method: 'a' }, { kind: 'call', id: 2, method: 'b' }])
  const [early, late] = inbounds as [InboundCall, InboundCall]
  const { signal } = early
  t.equal(early.signal, signal)
  t.equal(signal.aborted, false)
  theirs.peer.end()
  t.equal(signal.aborted, true)
  t.equal(late.signal.aborted, true)
  t.equal(late.signal, late.signal)
})

t.test('the signal of a finished handler is not aborted', async t => {
  let seen: AbortSignal | undefined
  const { ours, theirs } = pair(async (_asked, inbound) => { seen = inbound.signal })
  await ours.peer.call('read')
  theirs.peer.end()
  t.equal(seen!.aborted, false)
})

t.test('every call settles exactly once, as its first event says, whatever the order of events', async t => {
  for (let seed = 1; seed <= 20; seed++) {
    const next = random(seed)
    const below = (limit: number) => Math.floor(next() * limit)
    const concurrency = [1, 3, Infinity][below(3)]!
    const ours = new End(undefined, { concurrency })
    const expected = new Map<Id, unknown>()
    const settled = new Map<Id, unknown[]>()
    const abort = new Map<Id, () => void>()
    const open: Id[] = []
    const wrong: number[] = []
    let strays = 0
    let crowd = 0

    const happens = (id: Id, outcome: unknown, isAnswer = true) => {
      if (!expected.has(id)) expected.set(id, outcome)
      else if (isAnswer) strays++
      const at = open.indexOf(id)
      if (at !== -1) open.splice(at, 1)
    }

    for (let step = 1; step <= 400; step++) {
      const choice = below(10)
      const id = below(4) === 0 ? 1 + below(step) : open[below(Math.min(open.length, 4))] ?? step
      if (choice < 4) {
        const own = `${seed}-${step}`
        const { signal, abort: giveUp } = controller()
        const record = settled.set(own, []).get(own)!
        abort.set(own, giveUp)
        open.push(own)
        ours.peer.call('read', { step }, { id: own, signal }).then(
          result => record.push(result),
          error => record.push((error as Failure).reason)
        )
      } else if (!settled.has(id)) {
        ours.peer.receive({ kind: 'result', id, result: step })
        strays++
      } else if (choice < 6) {
        ours.peer.receive({ kind: 'result', id, result: step })
        happens(id, step)
      } else if (choice === 6) {
        ours.peer.receive({ kind: 'failure', id, reason: 'refused' })
        happens(id, 'refused')
      } else if (choice === 7) {
        ours.peer.receive({ kind: 'invalid', id, reason: 'answer-invalid' })
        happens(id, 'answer-invalid')
      } else {
        abort.get(id)!()
        happens(id, 'dropped', false)
      }
      if (ours.peer.inFlight !== open.length) wrong.push(step)
      crowd = Math.max(crowd, ours.calls.filter(call => open.includes(call.id)).length)
      if (below(8) === 0) await turn()
    }
    ours.peer.end()
    while (open.length > 0) happens(open[0]!, 'dropped', false)
    await turn()

    t.strictSame([...settled], [...settled.keys()].map(id => [id, [expected.get(id)]]), `seed ${seed}`)
    t.strictSame(wrong, [], 'what is in flight is known at every step')
    t.equal(ours.strays.length, strays)
    t.ok(crowd <= concurrency)
    t.equal(ours.peer.inFlight, 0)
    const order = ours.calls.map(({ id }) => [...settled.keys()].indexOf(String(id)))
    t.strictSame(order, order.toSorted((a, b) => a - b), 'calls go out in the order they were made')
  }
})

t.test('a failure has the status, code and headers that Fastify sends', async t => {
  const failure = new Failure('busy')
  t.match(failure, { name: 'Failure', message: 'Too many calls in flight', reason: 'busy', statusCode: 429, code: 'CALLS_EXCEEDED' })
  t.strictSame(failure.headers, { 'retry-after': '1' })
  t.strictSame(new Failure('timeout').headers, {})
  t.equal(new Failure('timeout', { message: 'Other words' }).message, 'Other words')
  t.ok(failure instanceof Error)
})

t.test('the error of a device does not reach a log', async t => {
  const detail = { code: 1, message: 'secret' }
  const failure = new Failure('refused', { detail })
  t.equal(failure.device, detail)
  t.notOk(Object.keys(failure).includes('device'))
  t.notOk(JSON.stringify(failure).includes('secret'))
})

t.test('a refusal has its own code, message and data', async t => {
  const refusal = new Refusal('No', 'E7', [1])
  t.match(refusal, { name: 'Refusal', message: 'No', reason: 'refused', statusCode: 422, code: 'DEVICE_REFUSED' })
  t.strictSame(refusal.device, { code: 'E7', message: 'No', data: [1] })
  t.strictSame(new Refusal('No').device, { code: -32000, message: 'No' })
  t.ok(refusal instanceof Failure)
})

t.test('a failed answer has the reason; that of an unexpected error is internal', async t => {
  t.strictSame(failureMessage(7, new Failure('too-fast')), { kind: 'failure', id: 7, reason: 'too-fast', detail: undefined })
  t.strictSame(failureMessage('a', new Refusal('No', 1)), { kind: 'failure', id: 'a', reason: 'refused', detail: { code: 1, message: 'No' } })
  for (const accident of [new Error('secret'), 'secret', undefined, null]) t.strictSame(failureMessage(null, accident), { kind: 'failure', id: null, reason: 'internal' })
})

t.test('reasons and close codes have unique codes', async t => {
  const names = Object.keys(reasons) as Reason[]
  t.equal(new Set(names.map(reason => reasons[reason].code)).size, names.length)
  t.equal(new Set(names.map(reason => reasons[reason].rpc)).size, names.length)
  t.ok(names.every(reason => reasons[reason].status >= 400 && reasons[reason].status < 600))
  t.ok(names.every(reason => /^[A-Z_]+$/.test(reasons[reason].code)))

  const all = Object.values(closeCodes)
  t.equal(new Set(all.map(({ code }) => code)).size, all.length)
  for (const { code, reconnect } of all) if (code >= 4_000) t.equal(reconnect, code < 4_500, String(code))
})

function controller (): { signal: AbortSignal, abort: () => void } {
  const controller = new AbortController()
  return { signal: controller.signal, abort: () => controller.abort() }
}

t.test('a call that was given up keeps its place on the wire until it is answered', async t => {
  const answers: Array<(value: unknown) => void> = []
  const { ours, theirs } = pair(() => new Promise(resolve => answers.push(resolve)), { ours: { concurrency: 1, lingerMs: 60_000 } })
  const caller = new AbortController()
  const [given, next] = [reasonOf(ours.peer.call('a', {}, { signal: caller.signal })), ours.peer.call('b')]
  const waiting = reasonOf(ours.peer.call('c', {}, { timeout: 5 }))
  await turn()
  caller.abort()
  t.equal(await given, 'dropped')
  t.equal(await waiting, 'timeout', 'one that is not on the wire yet goes at once')
  t.strictSame(theirs.asked.map(({ method }) => method), ['a'])
  answers[0]!('late')
  await turn()
  t.strictSame(ours.strays, [{ kind: 'result', id: 1, result: 'late' }])
  t.strictSame(theirs.asked.map(({ method }) => method), ['a', 'b'])
  answers[1]!('in time')
  t.equal(await next, 'in time')
})

t.test('a call that was given up and is never answered keeps its place no longer than lingerMs', async t => {
  const { ours } = pair(({ method }) => method === 'mute' ? new Promise(() => {}) : method, { ours: { concurrency: 1, lingerMs: 30 } })
  const given = reasonOf(ours.peer.call('mute', {}, { timeout: 1 }))
  const next = ours.peer.call('next')
  t.equal(await given, 'timeout')
  t.equal(await next, 'next')
  const impatient = reasonOf(ours.peer.call('mute', {}, { answerTimeout: 5, timeout: 60_000 }))
  t.equal(await impatient, 'timeout', 'what counts is the time on the wire')
  const last = reasonOf(ours.peer.call('last'))
  ours.peer.end()
  t.equal(await last, 'dropped')
  t.equal(ours.peer.inFlight, 0)
})

t.test('nextId makes the ids of calls', async t => {
  let made = 0
  const { ours, theirs } = pair(() => 'yes', { ours: { nextId: () => `id-${++made}` } })
  t.equal(await ours.peer.call('a'), 'yes')
  t.equal(await ours.peer.call('b', {}, { id: 'given' }), 'yes')
  t.strictSame(theirs.asked.map(asked => (asked as Call).id), ['id-1', 'given'])
})

t.test('an unknown reason has the details of an internal error, and keeps its name', async t => {
  const failure = new Failure('nonsense' as Reason)
  t.match({ ...failure }, { reason: 'nonsense', statusCode: 500, code: 'INTERNAL_ERROR' })
})
