import t from 'tap'
import { Frame, type Outgoing } from '../lib/connection/frame.ts'
import { WriteQueue, type WriteTarget } from '../lib/connection/write-queue.ts'
import { TurnLimiter } from '../lib/messaging/turn-limiter.ts'
import { FlushScheduler } from '../lib/connection/flush-scheduler.ts'
import { reasonOf } from './fakes.ts'

/** A connection that takes what it is given and lets it go when a test says so. */
class FakeSink implements WriteTarget {
  buffered = 0
  /** Nothing waits here. */
  isFast = false
  /** Happens once, while something is sent. */
  sending = (): void => {}
  readonly writes: string[][] = []
  #drained: Array<() => void> = []

  send (outgoing: Outgoing): void {
    this.writes.push(outgoing.payloads() as string[])
    if (!this.isFast) this.buffered += outgoing.size
    const { sending } = this
    this.sending = () => {}
    sending()
  }

  onDrain (listener: () => void): void {
    this.#drained.push(listener)
  }

  drain (): void {
    this.buffered = 0
    for (const listener of this.#drained.splice(0)) listener()
  }
}

function outputs (count: number, limit = 100): Array<{ output: WriteQueue, sink: FakeSink, tide: FlushScheduler }> {
  const tide = new FlushScheduler()
  return Array.from({ length: count }, () => {
    const sink = new FakeSink()
    return { output: new WriteQueue(sink, limit, tide), sink, tide }
  })
}

const turned = () => new Promise<void>(resolve => setImmediate(resolve))

t.test('all that is for one device in one turn leaves as one write', async t => {
  const { output, sink } = outputs(1)[0]!
  output.write(new Frame('a'))
  void output.offer(new Frame('b'))
  await undefined
  output.write(new Frame('c'))
  t.strictSame(sink.writes, [])
  await turned()
  t.strictSame(sink.writes, [['a', 'b', 'c']])
  output.write(new Frame('d'))
  await turned()
  t.strictSame(sink.writes.slice(1), [['d']])
})

t.test('what comes up while all that is written leaves with the next pass', async t => {
  const [one, two] = outputs(2) as [ReturnType<typeof outputs>[0], ReturnType<typeof outputs>[0]]
  one.output.write(new Frame('a'))
  one.sink.sending = () => { for (const { output } of [one, two]) output.write(new Frame('b')) }
  await turned()
  t.strictSame([one.sink.writes, two.sink.writes], [[['a']], []])
  await turned()
  t.strictSame([one.sink.writes, two.sink.writes], [[['a'], ['b']], [['b']]])
})

t.test('after a pass over many the event loop has some turns for others', async t => {
  const many = outputs(256)
  const [{ output, sink }] = many as [ReturnType<typeof outputs>[0]]
  const frame = new Frame('a')
  for (const { output } of many) output.write(frame)
  await turned()
  t.ok(many.every(({ sink }) => sink.writes.length === 1))
  for (const name of ['b', 'c']) {
    output.write(new Frame(name))
    await turned()
    t.equal(sink.writes.length, 1)
  }
  output.write(new Frame('d'))
  await turned()
  t.strictSame(sink.writes, [['a'], ['b', 'c', 'd']])
  output.write(new Frame('e'))
  await turned()
  t.strictSame(sink.writes.slice(2), [['e']])
})

t.test('a message to one device takes its place among those to all', async t => {
  const [one, two] = outputs(2) as [ReturnType<typeof outputs>[0], ReturnType<typeof outputs>[0]]
  const cast = (name: string) => {
    const frame = new Frame(name)
    for (const { output } of [one, two]) output.write(frame)
  }
  one.output.write(new Frame('a'))
  cast('b')
  one.output.write(new Frame('c'))
  cast('d')
  t.strictSame([one.sink.writes, two.sink.writes], [[], []])
  await turned()
  t.strictSame([one.sink.writes, two.sink.writes], [[['a', 'b', 'c', 'd']], [['b', 'd']]])
})

t.test('what is held counts against the limit', async t => {
  const { output, sink } = outputs(1, 10)[0]!
  t.equal(output.write(new Frame('12345')), true)
  t.equal(output.write(new Frame('67890')), true)
  t.equal(output.write(new Frame('!')), true, 'it had no time yet')
  t.equal(await reasonOf(output.offer(new Frame('?'))!), 'congested')
  t.strictSame(sink.writes, [['12345', '67890', '!']])
  await turned()
  t.equal(output.write(new Frame('!')), false)
})

t.test('who had no time to take anything yet may have twice the limit, and no more', async t => {
  const { output, sink } = outputs(1, 10)[0]!
  for (let n = 0; n < 4; n++) t.equal(output.write(new Frame('12345')), true)
  t.equal(output.write(new Frame('!')), false)
  await turned()
  sink.drain()
  t.equal(output.write(new Frame('12345')), true)
  await turned()
  t.equal(output.write(new Frame('67890')), true, 'it is in time again')
  t.equal(output.write(new Frame('67890')), true)
  await turned()
  sink.drain()
  for (let n = 0; n < 4; n++) t.equal(output.write(new Frame('12345')), true, 'it has caught up, and nobody looked')
  t.equal(output.write(new Frame('!')), false)
})

t.test('what is offered goes where it fits the limit, or alone', async t => {
  const { output, sink } = outputs(1, 10)[0]!
  t.equal(output.offer(new Frame('x'.repeat(10))), undefined)
  await turned()
  sink.drain()
  t.equal(output.offer(new Frame('123')), undefined)
  t.equal(await reasonOf(output.offer(new Frame('x'.repeat(8)))!), 'congested')
  t.equal(output.isBehind, false)
  const offered = output.offer(new Frame('x'.repeat(7)))
  t.equal(offered, undefined, 'half of the limit is free')
})

t.test('who waits for room waits until a quarter of the limit is left, behind what waits already', async t => {
  const { output, sink } = outputs(1, 100)[0]!
  t.equal(output.room(), undefined)
  output.write(new Frame('x'.repeat(25)))
  t.equal(output.room(), undefined)
  output.write(new Frame('x'.repeat(26)))
  const order: string[] = []
  const offered = output.offer(new Frame('x'.repeat(30)))!.then(() => order.push('offered'))
  const room = output.room()!.then(() => order.push('room'))
  t.ok(output.isBehind)
  sink.drain()
  await offered
  t.strictSame(order, ['offered'])
  t.equal(output.isBehind, false)
  sink.drain()
  await room
  t.strictSame(order, ['offered', 'room'])
  output.write(new Frame('x'.repeat(51)))
  const never = output.room()!
  output.end()
  t.equal(await reasonOf(never), 'dropped')
})

t.test('what the system takes at once does not wait for the end of the turn, where there is much of it', async t => {
  const { output, sink } = outputs(1, 10)[0]!
  sink.isFast = true
  for (const text of ['12345', '67890', 'abcde']) t.equal(output.write(new Frame(text)), true)
  t.strictSame(sink.writes, [['12345', '67890', 'abcde']])
  for (const text of ['123456', '7', '890']) t.equal(output.offer(new Frame(text)), undefined)
  t.strictSame(sink.writes.slice(1), [['123456']])
  await turned()
  t.strictSame(sink.writes.slice(2), [['7', '890']])
})

t.test('what waits for room keeps its place behind what is held', async t => {
  const { output, sink } = outputs(1, 10)[0]!
  output.write(new Frame('123456'))
  const offered = output.offer(new Frame('abc'))
  t.strictSame(sink.writes, [['123456']])
  t.equal(output.write(new Frame('d')), true)
  t.equal(output.write(new Frame('e')), true)
  t.equal(output.write(new Frame('x'.repeat(10))), false)
  sink.drain()
  await offered
  t.strictSame(sink.writes, [['123456'], ['abc'], ['d'], ['e']])
})

t.test('what the system has taken meanwhile is room for others', async t => {
  const { output, sink } = outputs(1, 100)[0]!
  output.write(new Frame('x'.repeat(60)))
  const first = output.offer(new Frame('y'.repeat(30)))
  sink.buffered = 5
  const second = output.offer(new Frame('z'.repeat(60)))
  sink.drain()
  t.strictSame([await first, await second], [undefined, undefined])
})

t.test('a goodbye comes behind what is held', async t => {
  const { output, sink } = outputs(1)[0]!
  output.write(new Frame('a'))
  output.end()
  t.strictSame(sink.writes, [['a']])
  await turned()
  t.strictSame(sink.writes, [['a']])
})

t.test('so much happens in one turn, and the rest in those to come, in order', async t => {
  const pace = new TurnLimiter(2)
  const done: number[] = []
  const go = async (number: number) => {
    await pace.step()
    done.push(number)
  }
  const all = Promise.all([0, 1, 2, 3, 4].map(go))
  await undefined
  t.strictSame(done, [0, 1])
  await turned()
  t.strictSame(done, [0, 1, 2, 3])
  await all
  t.strictSame(done, [0, 1, 2, 3, 4])
  await turned()
  t.equal(pace.step(), undefined)
  t.equal(pace.step(), undefined)
  const later = pace.step()
  t.not(later, undefined)
  await later
})

t.test('the bytes of a frame are made once for each form, alone and with others', async t => {
  const made: string[] = []
  const forms = ['plain', 'squeezed', 'lined'].map(name => (payload: string | Uint8Array) => {
    made.push(`${name} ${payload as string}`)
    return Buffer.from(`${name}:${payload as string};`)
  })
  const [a, b] = [new Frame('a'), new Frame('b')]
  const both = a.followedBy(b)
  for (let round = 0; round < 3; round++) {
    t.strictSame(forms.map(form => String(both.wire(form))), ['plain:a;plain:b;', 'squeezed:a;squeezed:b;', 'lined:a;lined:b;'])
    t.strictSame(forms.map(form => String(a.wire(form))), ['plain:a;', 'squeezed:a;', 'lined:a;'])
  }
  t.strictSame(made, ['plain a', 'plain b', 'squeezed a', 'squeezed b', 'lined a', 'lined b'])
})
