import { context, ROOT_CONTEXT, SpanKind, trace, type Context, type Span, type Tracer, type TracerProvider } from '@opentelemetry/api'
import type { ClientTracer } from '../client/tracer.ts'
import { jsonrpc } from '../protocol/jsonrpc.ts'
import type { Call, Notice } from '../protocol/message.ts'
import { isThenable } from '../protocol/peer.ts'
import { checkOptionNames } from '../protocol/option-names.ts'
import { endFailed, messageSpan, rpcSpan } from './span-attributes.ts'
import { guarded, traceOfSpan, withParent } from './span-context.ts'

export interface DeviceTracerOptions {
  /**
   * Records the spans.
   * @default the provider that is registered with `@opentelemetry/api`
   */
  tracerProvider?: TracerProvider | undefined
}

/** As generous as that of a client without a tracer. */
const MAX_DEPTH = 1_000

/** For the option `tracer` of `connect()`: records a span for each call that the device answers or makes, and for each message that it receives. */
export function deviceTracer (options: DeviceTracerOptions = {}): ClientTracer {
  checkOptionNames('deviceTracer()', options, { tracerProvider: true })
  const { tracerProvider = trace } = options
  const tracer = tracerProvider.getTracer('fastify-devices')
  return {
    codec: jsonrpc({ depth: MAX_DEPTH }).traced!,
    run (request, work) {
      const parent = 'kind' in request ? parentOf(request) : context.active()
      const span = guarded(() => 'kind' in request ? startInbound(tracer, request, parent) : startCall(tracer, request.method, parent))
      if (!span) return work()
      return runIn(span, () => context.with(trace.setSpan(parent, span), work, undefined, traceOfSpan(span)))
    }
  }
}

function parentOf ({ trace }: Call | Notice): Context {
  return trace ? withParent(ROOT_CONTEXT, trace) : ROOT_CONTEXT
}

function startCall (tracer: Tracer, method: string, parent: Context): Span {
  const { name, attributes } = rpcSpan('jsonrpc', method, true)
  return tracer.startSpan(name, { kind: SpanKind.CLIENT, attributes }, parent)
}

function startInbound (tracer: Tracer, { method, params }: Call | Notice, parent: Context): Span {
  if (method !== 'message') {
    const { name, attributes } = rpcSpan('jsonrpc', method, true)
    return tracer.startSpan(name, { kind: SpanKind.SERVER, attributes }, parent)
  }
  const { id, topic } = params as { id: string, topic?: string }
  const { name, attributes } = messageSpan('process', topic)
  return tracer.startSpan(name, { kind: SpanKind.CONSUMER, attributes: { ...attributes, 'messaging.message.id': id } }, parent)
}

/** Ends the span with the work. */
function runIn<T> (span: Span, work: () => T): T {
  let outcome: T
  try {
    outcome = work()
  } catch (error) {
    guarded(() => endFailed(span, error))
    throw error
  }
  const end = () => guarded(() => span.end())
  if (isThenable(outcome)) outcome.then(end, error => guarded(() => endFailed(span, error)))
  else end()
  return outcome
}
