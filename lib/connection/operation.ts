import { channel } from 'node:diagnostics_channel'
import { Failure } from '../protocol/errors.ts'
import { isThenable } from '../protocol/peer.ts'
import type { RequestLike } from '../protocol/request-context.ts'

/** What an operation does. docs/tracing.md describes each. */
export type OperationKind = 'send' | 'call' | 'broadcast' | 'forward' | 'serve' | 'request' | 'notify' | 'deliver' | 'answer' | 'delegate' | 'work'

/** What is known of an operation when it begins. */
export interface OperationFacts {
  readonly kind: OperationKind
  /** The node or the worker that does it: all nodes of a process share the channel. */
  readonly node: string
  readonly deviceId?: string | undefined
  /** Wire protocol of the device. */
  readonly protocol?: string | undefined
  readonly method?: string | undefined
  /** The method is declared by the contract, built in, or has a handler. Any other name was chosen by a caller or a device, so there is no limit to how many there are. */
  readonly isKnown?: boolean | undefined
  readonly topic?: string | undefined
  readonly messageId?: string | undefined
}

type EndListener = (failure: unknown, value: unknown) => void

/** The message of the channel. A subscriber may replace `request` and `run`, and may listen to the end. */
export class Operation {
  readonly facts: OperationFacts
  /** The request that causes the operation. Its `traceparent` and `tracestate` travel onward. */
  request: RequestLike | undefined
  /** Runs the work, which includes handlers of the application. Call it exactly once. */
  run: <T>(work: () => T) => T = work => work()
  readonly #endListeners: EndListener[] = []

  constructor (facts: OperationFacts, request: RequestLike | undefined) {
    this.facts = facts
    this.request = request
  }

  /** Calls the listener when the operation has ended, with its failure, or with undefined and its value. The listener must not throw. */
  onEnd (listener: EndListener): void {
    this.#endListeners.push(listener)
  }

  /** Called by the core. */
  end (failure: unknown, value?: unknown): void {
    for (const listener of this.#endListeners) listener(failure, value)
  }
}

/** A subscriber is called when an operation begins. Check `hasSubscribers` first: without one, an operation must cost nothing. */
export const operations = channel('fastify-devices:operation')

/** Does the work as an operation; it is given the request that travels onward. */
export function operate<T> (facts: OperationFacts, request: RequestLike | undefined, work: (request: RequestLike | undefined) => T): T {
  const operation = new Operation(facts, request)
  operations.publish(operation)
  let outcome: T
  try {
    outcome = operation.run(() => work(operation.request))
  } catch (error) {
    operation.end(failureOf(error))
    throw error
  }
  if (isThenable(outcome)) outcome.then(value => operation.end(undefined, value), error => operation.end(failureOf(error)))
  else operation.end(undefined, outcome)
  return outcome
}

/** A part of the application may throw undefined, which would tell that the operation has ended well. */
function failureOf (error: unknown): unknown {
  return error === undefined ? new Failure('internal') : error
}
