import t from 'tap'
import { Frame, type Outgoing } from '../lib/connection/frame.ts'
import { WriteQueue, type WriteTarget } from '../lib/connection/write-queue.ts'
import { TurnLimiter } from '../lib/messaging/turn-limiter.ts'
import { FlushScheduler } from '../lib/connection/flush-scheduler.ts'
import { reasonOf } from './fakes.ts'

/** A socket that buffers what is sent until a test drains it. */
class FakeTarget implements WriteTarget {
  buffered = 0
  /** Everything sent is written at once. */
  isFast = false
  /** Runs once, during the next send. */
  onSend = (): void => {}
  readonly writes: string[][] = []
  #drained: Array<() => void> = []

  send (outgoing: Outgoing): void {
    this.writes.push(outgoing.payloads() as string[])
    if (!this.isFast) this.buffered += outgoing.size
    const { onSend } = this
    this.onSend = () => {}
    onSend()
  }

  onDrain (listener: () => void): void {
    this.#drained.push(listener)
  }

  drain (): void {
    this.buffered = 0
    for (const listener of this.#drained.splice(0)) listener()
  }
}

function queues (count: number, limit = 100): Array<{ queue: WriteQueue, target: FakeTarget, scheduler: FlushScheduler }> {
  const scheduler = new FlushScheduler()
  return Array.from({ length: count }, () => {
    const target = new FakeTarget()
    return { queue: new WriteQueue(target, limit, scheduler), target, scheduler }
  })
}

const nextTurn = () => new Promise<void>(resolve => setImmediate(resolve))

t.test('all messages to one device in one turn of the event loop leave in one write', async t => {
  const { queue, target } = queues(1)[0]!
  queue.write(new Frame('a'))
  void queue.offer(new Frame('b'))
  await undefined
  queue.write(new Frame('c'))
  t.strictSame(target.writes, [])
  await nextTurn()
  t.strictSame(target.writes, [['a', 'b', 'c']])
  queue.write(new Frame('d'))
  await nextTurn()
  t.strictSame(target.writes.slice(1), [['d']])
})

t.test('messages written during a pass leave with the next pass', async t => {
  const [one, two] = queues(2) as [ReturnType<typeof queues>[0], ReturnType<typeof queues>[0]]
  one.queue.write(new Frame('a'))
  one.target.onSend = () => { for (const { queue } of [one, two]) queue.write(new Frame('b')) }
  await nextTurn()
  t.strictSame([one.target.writes, two.target.writes], [[['a']], []])
  await nextTurn()
  t.strictSame([one.target.writes, two.target.writes], [[['a'], ['b']], [['b']]])
})

t.test('after a pass over many connections, the next pass waits for some turns of the event loop', async t => {
  const many = queues(256)
  const [{ queue, target }] = many as [ReturnType<typeof queues>[0]]
  const frame = new Frame('a')
  for (const { queue } of many) queue.write(frame)
  await nextTurn()
  t.ok(many.every(({ target }) => target.writes.length === 1))
  for (const name of ['b', 'c']) {
    queue.write(new Frame(name))
    await nextTurn()
    t.equal(target.writes.length, 1)
  }
  queue.write(new Frame('d'))
  await nextTurn()
  t.strictSame(target.writes, [['a'], ['b', 'c', 'd']])
  queue.write(new Frame('e'))
  await nextTurn()
  t.strictSame(target.writes.slice(2), [['e']])
})

t.test('a message to one device keeps its order among broadcasts', async t => {
  const [one, two] = queues(2) as [ReturnType<typeof queues>[0], ReturnType<typeof queues>[0]]
  const broadcast = (name: string) => {
    const frame = new Frame(name)
    for (const { queue } of [one, two]) queue.write(frame)
  }
  one.queue.write(new Frame('a'))
  broadcast('b')
  one.queue.write(new Frame('c'))
  broadcast('d')
  t.strictSame([one.target.writes, two.target.writes], [[], []])
  await nextTurn()
  t.strictSame([one.target.writes, two.target.writes], [[['a', 'b', 'c', 'd']], [['b', 'd']]])
})

t.test('frames that wait for the end of the turn count against the limit', async t => {
  const { queue, target } = queues(1, 10)[0]!
  t.equal(queue.write(new Frame('12345')), true)
  t.equal(queue.write(new Frame('67890')), true)
  t.equal(queue.write(new Frame('!')), true, 'the socket had no time to drain yet')
  t.equal(await reasonOf(queue.offer(new Frame('?'))!), 'congested')
  t.strictSame(target.writes, [['12345', '67890', '!']])
  await nextTurn()
  t.equal(queue.write(new Frame('!')), false)
})

t.test('twice the limit is allowed until the socket had a turn to drain, and no more', async t => {
  const { queue, target } = queues(1, 10)[0]!
  for (let n = 0; n < 4; n++) t.equal(queue.write(new Frame('12345')), true)
  t.equal(queue.write(new Frame('!')), false)
  await nextTurn()
  target.drain()
  t.equal(queue.write(new Frame('12345')), true)
  await nextTurn()
  t.equal(queue.write(new Frame('67890')), true, 'it drained in time')
  t.equal(queue.write(new Frame('67890')), true)
  await nextTurn()
  target.drain()
  for (let n = 0; n < 4; n++) t.equal(queue.write(new Frame('12345')), true, 'it has drained since the last look')
  t.equal(queue.write(new Frame('!')), false)
})

t.test('an offered frame is written if it fits the limit, or if nothing else waits', async t => {
  const { queue, target } = queues(1, 10)[0]!
  t.equal(queue.offer(new Frame('x'.repeat(10))), undefined)
  await nextTurn()
  target.drain()
  t.equal(queue.offer(new Frame('123')), undefined)
  t.equal(await reasonOf(queue.offer(new Frame('x'.repeat(8)))!), 'congested')
  t.equal(queue.isBehind, false)
  const offered = queue.offer(new Frame('x'.repeat(7)))
  t.equal(offered, undefined, 'half of the limit is free')
})

t.test('room is given in order, once no more than a quarter of the limit is filled', async t => {
  const { queue, target } = queues(1, 100)[0]!
  t.equal(queue.room(), undefined)
  queue.write(new Frame('x'.repeat(25)))
  t.equal(queue.room(), undefined)
  queue.write(new Frame('x'.repeat(26)))
  const order: string[] = []
  const offered = queue.offer(new Frame('x'.repeat(30)))!.then(() => order.push('offered'))
  const room = queue.room()!.then(() => order.push('room'))
  t.ok(queue.isBehind)
  target.drain()
  await offered
  t.strictSame(order, ['offered'])
  t.equal(queue.isBehind, false)
  target.drain()
  await room
  t.strictSame(order, ['offered', 'room'])
  queue.write(new Frame('x'.repeat(51)))
  const never = queue.room()!
  queue.end()
  t.equal(await reasonOf(never), 'dropped')
})

t.test('beyond the limit, frames are flushed before the end of the turn', async t => {
  const { queue, target } = queues(1, 10)[0]!
  target.isFast = true
  for (const text of ['12345', '67890', 'abcde']) t.equal(queue.write(new Frame(text)), true)
  t.strictSame(target.writes, [['12345', '67890', 'abcde']])
  for (const text of ['123456', '7', '890']) t.equal(queue.offer(new Frame(text)), undefined)
  t.strictSame(target.writes.slice(1), [['123456']])
  await nextTurn()
  t.strictSame(target.writes.slice(2), [['7', '890']])
})

t.test('frames that wait for room keep their order', async t => {
  const { queue, target } = queues(1, 10)[0]!
  queue.write(new Frame('123456'))
  const offered = queue.offer(new Frame('abc'))
  t.strictSame(target.writes, [['123456']])
  t.equal(queue.write(new Frame('d')), true)
  t.equal(queue.write(new Frame('e')), true)
  t.equal(queue.write(new Frame('x'.repeat(10))), false)
  target.drain()
  await offered
  t.strictSame(target.writes, [['123456'], ['abc'], ['d'], ['e']])
})

t.test('queue that has drained meanwhile makes room', async t => {
  const { queue, target } = queues(1, 100)[0]!
  queue.write(new Frame('x'.repeat(60)))
  const first = queue.offer(new Frame('y'.repeat(30)))
  target.buffered = 5
  const second = queue.offer(new Frame('z'.repeat(60)))
  target.drain()
  t.strictSame([await first, await second], [undefined, undefined])
})

t.test('the end of the connection flushes what was written before', async t => {
  const { queue, target } = queues(1)[0]!
  queue.write(new Frame('a'))
  queue.end()
  t.strictSame(target.writes, [['a']])
  await nextTurn()
  t.strictSame(target.writes, [['a']])
})

t.test('a turn limiter spreads work over turns of the event loop, in order', async t => {
  const limiter = new TurnLimiter(2)
  const done: number[] = []
  const go = async (number: number) => {
    await limiter.step()
    done.push(number)
  }
  const all = Promise.all([0, 1, 2, 3, 4].map(go))
  await undefined
  t.strictSame(done, [0, 1])
  await nextTurn()
  t.strictSame(done, [0, 1, 2, 3])
  await all
  t.strictSame(done, [0, 1, 2, 3, 4])
  await nextTurn()
  t.equal(limiter.step(), undefined)
  t.equal(limiter.step(), undefined)
  const later = limiter.step()
  t.not(later, undefined)
  await later
})

t.test('a frame is encoded once for each form, alone and together with others', async t => {
  const encoded: string[] = []
  const forms = ['plain', 'deflated', 'line'].map(name => (payload: string | Uint8Array) => {
    encoded.push(`${name} ${payload as string}`)
    return Buffer.from(`${name}:${payload as string};`)
  })
  const [a, b] = [new Frame('a'), new Frame('b')]
  const both = a.followedBy(b)
  for (let round = 0; round < 3; round++) {
    t.strictSame(forms.map(form => String(both.wire(form))), ['plain:a;plain:b;', 'deflated:a;deflated:b;', 'line:a;line:b;'])
    t.strictSame(forms.map(form => String(a.wire(form))), ['plain:a;', 'deflated:a;', 'line:a;'])
  }
  t.strictSame(encoded, ['plain a', 'plain b', 'deflated a', 'deflated b', 'line a', 'line b'])
})
