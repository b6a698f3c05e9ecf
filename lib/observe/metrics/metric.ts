/** One value of a metric. `metricName` is that of a part of a histogram. */
export interface Sample {
  labels: Record<string, string | number>
  value: number
  metricName?: string
}

export type MetricType = 'counter' | 'gauge' | 'histogram'

/** A metric before it is registered. */
export interface MetricFamily {
  readonly name: string
  readonly help: string
  readonly type: MetricType
  readonly labelNames: readonly string[]
  /** How several processes of one machine are added up; `sum` by default. */
  readonly aggregator?: 'sum' | 'min'
  /** Reads the values. Never rejects: a registry would then have no metrics at all. */
  samples (): Sample[] | Promise<Sample[]>
}

/** A metric as the registries of prom-client read it. The values are read when they are asked for, so nothing is paid for each message. */
export class RegisteredMetric {
  /** Not readonly: an OpenMetrics registry of prom-client takes `_total` off. */
  name: string
  readonly help: string
  readonly type: MetricType
  readonly aggregator: 'sum' | 'min'
  readonly labelNames: readonly string[]
  readonly #family: MetricFamily

  constructor (family: MetricFamily) {
    const { name, help, type, labelNames, aggregator = 'sum' } = family
    this.name = name
    this.help = help
    this.type = type
    this.aggregator = aggregator
    this.labelNames = labelNames
    this.#family = family
  }

  async get (): Promise<{ name: string, help: string, type: MetricType, aggregator: string, values: Sample[] }> {
    const values = await this.#family.samples()
    const { name, help, type, aggregator } = this
    return { name, help, type, aggregator, values }
  }

  /** `registry.resetMetrics()` resets nothing here: these are the counters of the plugin. */
  reset (): void {}
}
