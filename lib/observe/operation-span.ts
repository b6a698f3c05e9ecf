import { SpanKind, type Attributes } from '@opentelemetry/api'
import type { Operation, OperationFacts, OperationKind } from '../connection/operation.ts'
import { Failure, reasons } from '../protocol/errors.ts'
import { messageSpan, rpcSpan } from './span-attributes.ts'

interface SpanDescription {
  name: string
  kind: SpanKind
  attributes: Attributes
}

const spanKinds: Record<OperationKind, SpanKind> = {
  send: SpanKind.PRODUCER,
  broadcast: SpanKind.PRODUCER,
  call: SpanKind.INTERNAL,
  forward: SpanKind.CLIENT,
  serve: SpanKind.SERVER,
  request: SpanKind.CLIENT,
  notify: SpanKind.CLIENT,
  deliver: SpanKind.CLIENT,
  answer: SpanKind.SERVER,
  delegate: SpanKind.CLIENT,
  work: SpanKind.SERVER
}

/** Operations that another peer, another node or an earlier request has caused: a span that is active by chance is not their parent. */
const inboundKinds: ReadonlySet<OperationKind> = new Set(['serve', 'deliver', 'answer', 'work'])

/** Sent by clients to find out whether the connection is alive, and by other servers. A span for each would say nothing. */
const silentMethods: ReadonlySet<string | undefined> = new Set(['ping', 'welcome'])

export function isInbound ({ kind }: OperationFacts): boolean {
  return inboundKinds.has(kind)
}

/** Whether the operation has no span. */
export function isSilent ({ kind, method }: OperationFacts): boolean {
  return kind === 'answer' && silentMethods.has(method)
}

/** `knownMethods` are those that the application has named. */
export function describeSpan (facts: OperationFacts, knownMethods: ReadonlySet<string>): SpanDescription {
  const { kind, node, deviceId, messageId } = facts
  const { name, attributes } = nameSpan(facts, knownMethods)
  return {
    name,
    kind: spanKinds[kind],
    attributes: {
      ...attributes,
      'fastify_devices.node': node,
      ...(deviceId !== undefined && { 'fastify_devices.device.id': deviceId }),
      ...(messageId !== undefined && { 'messaging.message.id': messageId })
    }
  }
}

function nameSpan ({ kind, protocol = 'fastify_devices', method = '', isKnown = false, topic }: OperationFacts, knownMethods: ReadonlySet<string>): { name: string, attributes: Attributes } {
  const known = isKnown || knownMethods.has(method)
  switch (kind) {
    case 'send':
    case 'broadcast': return messageSpan(kind, topic)
    case 'call': return { name: known ? `call ${method}` : 'call', attributes: rpcSpan('fastify_devices', method, known).attributes }
    case 'forward':
    case 'serve': return rpcSpan('fastify_devices', `node/${method}`, true)
    case 'request':
    case 'notify':
    case 'deliver':
    case 'answer':
    case 'delegate':
    case 'work': return rpcSpan(protocol, method, known)
  }
}

/** What is known when an operation has ended well: the id of a message that was sent. */
export function attributesOfValue ({ facts }: Operation, value: unknown): Attributes {
  const isMessage = facts.kind === 'send' || facts.kind === 'broadcast'
  return isMessage ? { 'messaging.message.id': (value as { id: string }).id } : {}
}

/** The code that the answer to a device has, or the answer of a device. */
export function attributesOfFailure ({ facts }: Operation, failure: unknown): Attributes {
  if (!(failure instanceof Failure)) return {}
  const code = failure.device?.code
  // a handler may fail with a reason of its own
  if (facts.kind === 'answer') return { 'rpc.status_code': String(code ?? (reasons[failure.reason] ?? reasons.internal).rpc) }
  return code === undefined || isInbound(facts) ? {} : { 'rpc.status_code': String(code) }
}
