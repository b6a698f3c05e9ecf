import { SpanStatusCode, type Attributes, type Span } from '@opentelemetry/api'
import { Failure } from '../protocol/errors.ts'

// The semantic conventions of OpenTelemetry, version 1.45. https://opentelemetry.io/docs/specs/semconv/

const MAX_METHOD_LENGTH = 64

/** Name and attributes of a span for a call. A name that anyone can make up must not become the name of a span. */
export function rpcSpan (system: string, method: string, isKnown: boolean): { name: string, attributes: Attributes } {
  const attributes = {
    'rpc.system.name': system,
    'rpc.method': isKnown ? method : '_OTHER',
    ...(!isKnown && { 'rpc.method_original': method.slice(0, MAX_METHOD_LENGTH) }),
    ...(system === 'jsonrpc' && { 'jsonrpc.protocol.version': '2.0' })
  }
  return { name: isKnown ? method : system, attributes }
}

/** Name and attributes of a span for a message. */
export function messageSpan (operation: 'send' | 'broadcast' | 'process', topic: string | undefined): { name: string, attributes: Attributes } {
  const attributes = {
    'messaging.system.name': 'fastify_devices',
    'messaging.operation.name': operation,
    'messaging.operation.type': operation === 'process' ? 'process' : 'send',
    ...(topic !== undefined && { 'messaging.destination.name': topic })
  }
  return { name: operation, attributes }
}

/** Ends a span whose operation has failed. */
export function endFailed (span: Span, failure: unknown, attributes: Attributes = {}): void {
  span.setAttributes({ ...attributes, 'error.type': failure instanceof Failure ? failure.reason : 'internal' })
  span.setStatus({ code: SpanStatusCode.ERROR })
  span.end()
}
