import { createTraceState, diag, isSpanContextValid, trace, type Context, type Span } from '@opentelemetry/api'
import type { TraceContext } from '../protocol/message.ts'

/** The context whose span is the parent that a trace names. */
export function withParent (context: Context, { traceparent, tracestate }: TraceContext): Context {
  const [, traceId, spanId, flags] = traceparent.split('-') as [string, string, string, string]
  const traceState = tracestate === undefined ? {} : { traceState: createTraceState(tracestate) }
  return trace.setSpanContext(context, { traceId, spanId, traceFlags: Number.parseInt(flags, 16), isRemote: true, ...traceState })
}

/** The trace that names a span as the parent; undefined if no provider records or passes on spans. */
export function traceOfSpan (span: Span): TraceContext | undefined {
  const spanContext = span.spanContext()
  if (!isSpanContextValid(spanContext)) return undefined
  const { traceId, spanId, traceFlags, traceState } = spanContext
  const tracestate = traceState?.serialize()
  return { traceparent: `00-${traceId}-${spanId}-${traceFlags.toString(16).padStart(2, '0')}`, ...(tracestate && { tracestate }) }
}

/** A sampler or a span processor that throws must not break what is traced. OpenTelemetry reports errors of its own to `diag` too. */
export function guarded<T> (record: () => T): T | undefined {
  try {
    return record()
  } catch (error) {
    diag.error('fastify-devices: a span could not be recorded', error)
    return undefined
  }
}
