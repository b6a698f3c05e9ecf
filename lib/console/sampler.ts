import type { Devices } from '../gateway/devices.ts'
import { DurationHistogram } from './duration-histogram.ts'

export const SAMPLE_INTERVAL_MS = 10_000
/** One hour. */
const MAX_SAMPLES = 360

type Direction = 'in' | 'out'

/** The calls that have ended during one interval; times in milliseconds. */
interface CallTimes {
  count: number
  /** Absent without calls. */
  median?: number
  p95?: number
}

/** What this node did during one interval. */
export interface Sample {
  /** The end of the interval, in milliseconds since 1970. */
  at: number
  connected: number
  /** Messages per second. */
  messages: Record<Direction, number>
  /** `in`: calls of devices; `out`: calls to devices. */
  calls: Record<Direction, CallTimes>
}

/** Samples the devices of this node at a fixed interval, and keeps the samples of the last hour. */
export class Sampler {
  readonly #devices: Pick<Devices, 'stats' | 'observe'>
  readonly #samples: Sample[] = []
  readonly #calls = { in: new DurationHistogram(), out: new DurationHistogram() }
  #last: { time: number, messages: Record<Direction, number> }
  #stop: () => void = () => {}

  constructor (devices: Pick<Devices, 'stats' | 'observe'>) {
    this.#devices = devices
    this.#last = { time: performance.now(), messages: devices.stats().messages }
  }

  start (): void {
    const timer = setInterval(() => this.sample(), SAMPLE_INTERVAL_MS).unref()
    const unobserve = this.#devices.observe({ call: ({ direction, duration }) => this.#calls[direction].add(duration) })
    this.#stop = () => {
      clearInterval(timer)
      unobserve()
    }
  }

  stop (): void {
    this.#stop()
  }

  /** The samples after a moment, oldest first. */
  after (moment: number): Sample[] {
    return this.#samples.filter(({ at }) => at > moment)
  }

  /** Ends an interval. */
  sample (): void {
    const time = performance.now()
    const { sessions, messages } = this.#devices.stats()
    const seconds = (time - this.#last.time) / 1_000
    const perSecond = (direction: Direction) => Math.round((messages[direction] - this.#last.messages[direction]) / seconds * 100) / 100
    this.#samples.push({
      at: Date.now(),
      connected: sessions,
      messages: { in: perSecond('in'), out: perSecond('out') },
      calls: { in: timesOf(this.#calls.in), out: timesOf(this.#calls.out) }
    })
    if (this.#samples.length > MAX_SAMPLES) this.#samples.shift()
    this.#last = { time, messages }
    this.#calls.in.clear()
    this.#calls.out.clear()
  }
}

function timesOf (histogram: DurationHistogram): CallTimes {
  const { count } = histogram
  return count === 0 ? { count } : { count, median: histogram.quantile(0.5)!, p95: histogram.quantile(0.95)! }
}
