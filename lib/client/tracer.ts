import { jsonrpcFrames } from '../protocol/jsonrpc.ts'
import type { Call, Codec, Notice, TraceContext } from '../protocol/message.ts'

/** What the client needs to be traced. `deviceTracer()` of `fastify-devices/client/tracing` makes one. */
export interface ClientTracer {
  /** JSON-RPC; of a tracer it decodes and encodes the trace of calls and notices. */
  readonly codec: Pick<Codec, 'decode' | 'encode'>
  /** Runs the handler of a request, or the listeners of a message. A request without a `kind` is a call of the device; it is made with the given trace. */
  run<T> (request: Call | Notice | { method: string }, work: (trace?: TraceContext) => T): T
}

/** Records nothing. Its depth is generous, because a server may be configured to forward deeper messages than it accepts from devices. */
export const untraced: ClientTracer = {
  codec: jsonrpcFrames({ depth: 1_000 }),
  run: (_request, work) => work()
}
