import type { MetricFamily, Sample } from './metric.ts'

type Labels = Record<string, string>

interface HistogramSeries {
  readonly labels: Labels
  /** The observations in each bucket, without those of smaller buckets; the last is beyond all bounds. */
  readonly counts: number[]
  sum: number
}

interface HistogramOptions {
  name: string
  help: string
  labelNames: readonly string[]
  /** The upper bounds of the buckets in seconds, ascending. */
  bounds: readonly number[]
}

/** Counts durations in buckets. */
export class Histogram implements MetricFamily {
  readonly name: string
  readonly help: string
  readonly type = 'histogram'
  readonly labelNames: readonly string[]
  readonly #bounds: readonly number[]
  readonly #series = new Map<string, HistogramSeries>()

  constructor ({ name, help, labelNames, bounds }: HistogramOptions) {
    this.name = name
    this.help = help
    this.labelNames = labelNames
    this.#bounds = bounds
    if (labelNames.length === 0) this.#seriesOf({})
  }

  observe (labels: Labels, seconds: number): void {
    const series = this.#seriesOf(labels)
    const bucket = this.#bounds.findIndex(bound => seconds <= bound)
    series.counts[bucket === -1 ? this.#bounds.length : bucket]!++
    series.sum += seconds
  }

  samples (): Sample[] {
    return [...this.#series.values()].flatMap(series => this.#samplesOf(series))
  }

  #seriesOf (labels: Labels): HistogramSeries {
    const key = Object.values(labels).join(' ')
    let series = this.#series.get(key)
    if (!series) this.#series.set(key, series = { labels, counts: Array(this.#bounds.length + 1).fill(0), sum: 0 })
    return series
  }

  #samplesOf ({ labels, counts, sum }: HistogramSeries): Sample[] {
    let count = 0
    const buckets = counts.map((number, at): Sample => {
      count += number
      return { metricName: `${this.name}_bucket`, labels: { le: this.#bounds[at] ?? '+Inf', ...labels }, value: count }
    })
    return [...buckets, { metricName: `${this.name}_sum`, labels, value: sum }, { metricName: `${this.name}_count`, labels, value: count }]
  }
}
