import t from 'tap'
import { DurationHistogram } from '../lib/console/duration-histogram.ts'
import { SAMPLE_INTERVAL_MS, Sampler } from '../lib/console/sampler.ts'
import type { Observer } from '../lib/connection/stats.ts'
import { random } from './fakes.ts'

/** As much of `app.devices` as a sampler needs. */
class FakeDevices {
  sessions = 0
  readonly messages = { in: 0, out: 0 }
  readonly observers = new Set<Observer>()

  stats (): any {
    return { sessions: this.sessions, messages: { ...this.messages } }
  }

  observe (observer: Observer): () => void {
    this.observers.add(observer)
    return () => { this.observers.delete(observer) }
  }

  ended (direction: 'in' | 'out', duration: number): void {
    for (const observer of this.observers) observer.call?.({ direction, method: 'any', outcome: 'ok', duration })
  }
}

t.test('the quantiles of a histogram are within 5 % of those of the durations', async t => {
  const draw = random(1)
  for (const spread of [0.1, 1, 3]) {
    const durations = Array.from({ length: 1_001 }, () => 10 ** (1 + spread * (draw() - 0.5)))
    const histogram = new DurationHistogram()
    for (const duration of durations) histogram.add(duration)
    durations.sort((a, b) => a - b)
    for (const [share, exact] of [[0.5, durations[500]!], [0.95, durations[950]!]] as const) {
      t.ok(Math.abs(histogram.quantile(share)! / exact - 1) < 0.05, `${share}: ${histogram.quantile(share)} for ${exact}`)
    }
    t.equal(histogram.count, 1_001)
  }
})

t.test('a histogram takes any duration, and forgets all of them at once', async t => {
  const histogram = new DurationHistogram()
  t.equal(histogram.quantile(0.5), undefined)
  for (const duration of [0, 1e-9, 1e12, Infinity]) histogram.add(duration)
  t.equal(histogram.count, 4)
  t.ok(histogram.quantile(0.5)! < 0.06)
  t.ok(histogram.quantile(1)! > 600_000)
  histogram.clear()
  t.equal(histogram.count, 0)
  t.equal(histogram.quantile(0.5), undefined)
})

t.test('a sample has the connected devices, messages per second, and the times of the calls that ended since the last one', async t => {
  let now = 1_000
  t.intercept(performance, 'now', { value: () => now })
  const devices = new FakeDevices()
  Object.assign(devices.messages, { in: 7, out: 9 }) // before the console was registered
  const sampler = new Sampler(devices)
  sampler.start()
  t.teardown(() => sampler.stop())

  devices.sessions = 3
  Object.assign(devices.messages, { in: 27, out: 14 })
  for (const duration of [10, 10, 10, 200]) devices.ended('out', duration)
  now += 10_000
  sampler.sample()
  now += 5_000 // an interval that is shorter than it should be
  sampler.sample()

  const [first, second] = sampler.after(0)
  t.match(first, { at: Number, connected: 3, messages: { in: 2, out: 0.5 }, calls: { in: { count: 0 }, out: { count: 4 } } })
  t.notOk('median' in first!.calls.in)
  t.ok(Math.abs(first!.calls.out.median! / 10 - 1) < 0.05)
  t.ok(Math.abs(first!.calls.out.p95! / 200 - 1) < 0.05)
  t.match(second, { messages: { in: 0, out: 0 }, calls: { out: { count: 0 } } }, 'the calls of the first are not counted again')
})

t.test('a sampler keeps the samples of one hour, one each ten seconds, until it is stopped', async t => {
  let now = 1_000_000
  const intervals = new Map<object, { callback: () => void, delay: number }>()
  t.intercept(Date, 'now', { value: () => now })
  t.intercept(globalThis, 'clearInterval', { value: (timer: object) => intervals.delete(timer) })
  t.intercept(globalThis, 'setInterval', {
    value: (callback: () => void, delay: number) => {
      const timer = { unref: () => timer }
      intervals.set(timer, { callback, delay })
      return timer
    }
  })
  const devices = new FakeDevices()
  const sampler = new Sampler(devices)
  sampler.start()
  t.equal(devices.observers.size, 1)
  const begin = now
  const [timer] = intervals.values()
  t.equal(timer!.delay, SAMPLE_INTERVAL_MS)
  for (let n = 0; n < 400; n++) {
    now += SAMPLE_INTERVAL_MS
    timer!.callback()
  }
  const samples = sampler.after(0)
  t.equal(samples.length, 360)
  t.equal(samples[0]!.at, begin + 41 * SAMPLE_INTERVAL_MS)
  t.equal(sampler.after(samples[357]!.at).length, 2)
  t.equal(sampler.after(samples[359]!.at).length, 0)
  t.equal(sampler.after(NaN).length, 0)
  sampler.stop()
  t.equal(devices.observers.size, 0)
  t.equal(intervals.size, 0)
})

t.test('a sampler that was never started can be stopped', async t => {
  t.doesNotThrow(() => new Sampler(new FakeDevices()).stop())
})
