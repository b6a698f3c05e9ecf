import { Type, type Static } from '@sinclair/typebox'
import { complete, Part } from '../../gateway/options.ts'
import type { RegisteredMetric } from './metric.ts'

/** As much of a registry as the metrics need: those of `prom-client` and of `@prometheus-io/client` have it. */
export interface MetricsRegistry {
  registerMetric (metric: any): void
  getSingleMetric (name: string): unknown
  removeSingleMetric (name: string): void
  metrics (): Promise<string>
  readonly contentType: string
}

export const MetricsOptionsSchema = Type.Object({
  registry: Type.Optional(Part<MetricsRegistry>('Registry to which the metrics are added; without it, a new one of `prom-client`, which only `path` serves')),
  path: Type.Optional(Type.String({ pattern: '^/', description: 'Path of a route that serves the registry, protected like REST; without it, there is no route' })),
  methods: Type.Array(Type.String(), { default: [], description: 'Methods that get a label of their own in addition to those of handlers and of the contract; all others are `other`' })
}, { additionalProperties: false })

/** Options of the metrics. At least one of `registry` and `path` is required. */
export interface MetricsOptions {
  /** Registry to which the metrics are added; without it, a new one of `prom-client`, which only `path` serves. */
  registry?: MetricsRegistry | undefined
  /** Path of a route that serves the registry, protected like REST; without it, there is no route. */
  path?: string | undefined
  /**
   * Methods that get a label of their own in addition to those of handlers and of the contract; all others are `other`.
   * @default []
   */
  methods?: string[] | undefined
}

const OWNER = 'fastify-devices/metrics'

/** The options with their defaults. Throws for a wrong or unknown option and names it; `register` of Fastify has options of its own. */
export function metricsSettingsOf (options: MetricsOptions): Static<typeof MetricsOptionsSchema> {
  const { prefix, logLevel, logSerializers, ...own } = options as MetricsOptions & Record<'prefix' | 'logLevel' | 'logSerializers', unknown>
  const settings = complete(OWNER, MetricsOptionsSchema, own)
  const { registry, path } = settings
  if (!registry && path === undefined) throw new Error(`${OWNER} needs one of the options "registry" and "path": nothing could read the metrics`)
  if (registry && typeof registry.registerMetric !== 'function') throw new Error(`${OWNER}: the option "registry" is wrong: it has no method "registerMetric"`)
  return settings
}

/** Adds all metrics or none. */
export function addTo (registry: MetricsRegistry, metrics: RegisteredMetric[]): void {
  const taken = metrics.find(({ name }) => registry.getSingleMetric(name) !== undefined)
  if (taken) throw new Error(`${OWNER}: the registry has a metric "${taken.name}" already. Register the metrics once, and give each application a registry of its own`)
  for (const metric of metrics) registry.registerMetric(metric)
}
