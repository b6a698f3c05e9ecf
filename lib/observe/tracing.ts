import { context, ROOT_CONTEXT, trace, type Context, type Tracer, type TracerProvider } from '@opentelemetry/api'
import { operations, type Operation } from '../connection/operation.ts'
import { checkOptionNames } from '../protocol/option-names.ts'
import { contextOf, type RequestContext } from '../protocol/request-context.ts'
import { attributesOfFailure, attributesOfValue, describeSpan, isInbound, isSilent } from './operation-span.ts'
import { endFailed } from './span-attributes.ts'
import { guarded, traceOfSpan, withParent } from './span-context.ts'

export type { Operation, OperationFacts, OperationKind } from '../connection/operation.ts'

export interface TracingOptions {
  /**
   * Records the spans.
   * @default the provider that is registered with `@opentelemetry/api`
   */
  tracerProvider?: TracerProvider | undefined
  /**
   * Methods of devices that spans may be named after, in addition to those of the contract and those that have handlers.
   * @default none
   */
  methods?: Iterable<string> | undefined
}

const OPTION_NAMES: Record<keyof TracingOptions, true> = { tracerProvider: true, methods: true }

/** Records a span for each operation of all nodes and workers of this process. Returns a function that ends it. */
export function traceDevices (options: TracingOptions = {}): () => void {
  checkOptionNames('traceDevices()', options, OPTION_NAMES)
  const { tracerProvider = trace, methods = [] } = options
  const tracer = tracerProvider.getTracer('fastify-devices')
  const knownMethods = new Set(methods)
  const onOperation = (operation: unknown): void => guarded(() => record(operation as Operation, tracer, knownMethods))
  operations.subscribe(onOperation)
  return () => { operations.unsubscribe(onOperation) }
}

function record (operation: Operation, tracer: Tracer, knownMethods: ReadonlySet<string>): void {
  const { facts, run } = operation
  const request = readable(operation)
  if (isSilent(facts) || request === 'unreadable') return
  const parent = parentOf(operation, request)
  const { name, ...options } = describeSpan(facts, knownMethods)
  const span = tracer.startSpan(name, options, parent)
  const onward = traceOfSpan(span)
  if (onward) operation.request = { ...request, ...onward }
  operation.run = work => context.with(trace.setSpan(parent, span), () => run(work))
  operation.onEnd((failure, value) => guarded(() => {
    if (failure !== undefined) return endFailed(span, failure, attributesOfFailure(operation, failure))
    span.setAttributes(attributesOfValue(operation, value))
    span.end()
  }))
}

/** A request of the application may throw when it is read. The operation itself fails with that. */
function readable ({ request }: Operation): RequestContext | undefined | 'unreadable' {
  try {
    return contextOf(request)
  } catch {
    return 'unreadable'
  }
}

/** The active span, or else the one that the request names. */
function parentOf ({ facts }: Operation, request: RequestContext | undefined): Context {
  const active = isInbound(facts) ? ROOT_CONTEXT : context.active()
  if (trace.getSpan(active) || request?.traceparent === undefined) return active
  return withParent(active, request as { traceparent: string })
}
