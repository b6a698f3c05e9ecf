import { CallQueue, type CallQueueLimits } from './call-queue.ts'
import { Failure, type Reason } from './errors.ts'
import { failureMessage, type Call, type FailureMessage, type Id, type InvalidMessage, type Message, type Notice, type Result, type TraceContext } from './message.ts'
import type { RequestLike } from './request-context.ts'

/** What a peer needs of its connection: it sends messages and answers requests. */
export interface PeerHandler {
  /** Sends a message. Throws a `Failure` if a call or notice cannot be encoded. */
  transmit (message: Message | Message[]): void
  /** Returns the result or a promise of it. A thrown `Failure` is sent to the other side; any other error becomes `internal`. */
  answer (request: Call | Notice, inbound: InboundCall): unknown
  /** A request was refused because `maxInbound` requests are in progress. */
  refused (request: Call | Notice): void
  /** An answer that matches no pending call, or an invalid message. */
  unexpected (message: Result | FailureMessage | InvalidMessage): void
}

/** The maximum of `setTimeout`; a timer with a longer delay fires at once. */
export const MAX_TIMER_MS = 2_147_483_647

export interface PeerLimits extends CallQueueLimits {
  /** Calls and notices of the other side that may be in progress at a time. */
  maxInbound: number
  /** Makes the ids of calls; by default they are numbers from 1. */
  nextId?: (() => string) | undefined
}

/** The part of `AbortSignal` that a call uses. */
export interface CallSignal {
  readonly aborted: boolean
  addEventListener (type: 'abort', listener: () => void, options: { once: true }): void
  removeEventListener (type: 'abort', listener: () => void): void
}

export interface CallOptions {
  /** Milliseconds until the call fails; by default the option `callTimeout`. */
  timeout?: number | undefined
  /** Aborting it gives the call up. */
  signal?: CallSignal | undefined
  /** The id on the wire; by default the peer makes one. */
  id?: Id | undefined
  /** The request that causes the call: a request of Fastify, or the context of a handler. */
  request?: RequestLike | undefined
}

export interface QueuedOptions extends Omit<CallOptions, 'request'> {
  /** Milliseconds for the answer, from when the call is sent; only where `lingerMs` is set. */
  answerTimeout?: number | undefined
  /** The trace to send with the call. */
  trace?: TraceContext | undefined
}

/** A call of the other side while it is being answered. */
export class InboundCall {
  #controller: AbortController | undefined
  #aborted = false

  /** Aborted when the connection ends. */
  get signal (): AbortSignal {
    this.#controller ??= new AbortController()
    if (this.#aborted) this.#controller.abort()
    return this.#controller.signal
  }

  abort (): void {
    this.#aborted = true
    this.#controller?.abort()
  }
}

type Settle = (outcome: Result | Failure) => void
type Reply = (answer: Result | FailureMessage) => void

/** One end of a conversation: calls in flight, their timeouts, and answers. Owns no socket. */
export class Peer {
  readonly #handler: PeerHandler
  readonly #limits: PeerLimits
  readonly #isLimited: boolean
  // most connections have no call in flight; these are created by the first call, to save memory
  #pending: Map<Id, Settle> | undefined
  #inbound: Set<InboundCall> | undefined
  #queue: CallQueue | undefined
  #lastId = 0
  #ended: Reason | undefined

  constructor (handler: PeerHandler, limits: PeerLimits) {
    this.#handler = handler
    this.#limits = limits
    this.#isLimited = limits.concurrency < Infinity
  }

  /** Calls in flight, of both sides. */
  get inFlight (): number {
    return (this.#pending?.size ?? 0) + this.answering
  }

  /** Requests of the other side that are in progress. */
  get answering (): number {
    return this.#inbound?.size ?? 0
  }

  /** Settles exactly once, with the result or a `Failure`. */
  call (method: string, params?: unknown, { timeout, signal, id: givenId, answerTimeout, trace }: QueuedOptions = {}): Promise<unknown> {
    return new Promise((resolve, reject) => {
      if (this.#ended) return reject(new Failure(this.#ended))
      if (signal?.aborted) return reject(callerGaveUp())
      const id = givenId ?? this.#nextId()
      if (this.#pending?.has(id)) return reject(new Failure('busy'))

      const call: Call = { kind: 'call', id, method, params, trace }
      const giveUp = () => this.#giveUp(id, callerGaveUp())
      const timer = timeout === undefined ? undefined : setTimeout(() => this.#giveUp(id, new Failure('timeout')), Math.min(timeout, MAX_TIMER_MS))
      signal?.addEventListener('abort', giveUp, { once: true })
      this.#pending ??= new Map()
      this.#pending.set(id, outcome => {
        clearTimeout(timer)
        signal?.removeEventListener('abort', giveUp)
        if (outcome instanceof Error) reject(outcome)
        else resolve(outcome.result)
      })
      if (this.#isLimited) this.#enqueue(call, answerTimeout)
      else this.#send(call)
    })
  }

  notify (method: string, params?: unknown): void {
    if (!this.#ended) this.#handler.transmit({ kind: 'notice', method, params })
  }

  receive (message: Message | Message[]): void {
    if (!Array.isArray(message)) return this.#receive(message, answer => this.#reply(answer))
    const expected = message.filter(wantsReply).length
    const answers: Message[] = []
    const reply: Reply = answer => {
      if (answers.push(answer) === expected) this.#reply(answers)
    }
    for (const one of message) this.#receive(one, reply)
  }

  /** Settles every call in flight. Afterwards nothing is sent or answered. */
  end (reason: Reason = 'dropped'): void {
    if (this.#ended) return
    this.#ended = reason
    this.#queue?.end()
    for (const id of this.#pending?.keys() ?? []) this.#take(id, new Failure(reason))
    for (const inbound of this.#inbound ?? []) inbound.abort()
    this.#inbound = undefined
  }

  #enqueue (call: Call, answerTimeout: number | undefined): void {
    this.#queue ??= new CallQueue(this.#limits, {
      send: call => this.#send(call),
      expire: id => this.#giveUp(id, new Failure('timeout'))
    })
    this.#queue.add(call, answerTimeout)
  }

  #send (call: Call): void {
    try {
      this.#handler.transmit(call)
    } catch (error) {
      this.#settle(call.id, error as Failure)
    }
  }

  /** The caller does not wait for the answer any more, but the other side may still be working on it. */
  #giveUp (id: Id, failure: Failure): void {
    if (this.#take(id, failure)) this.#queue?.abandon(id)
  }

  /** False: no such call is pending. */
  #settle (id: Id, outcome: Result | Failure): boolean {
    const isPending = this.#take(id, outcome)
    if (isPending) this.#queue?.settle(id)
    else this.#queue?.release(id)
    return isPending
  }

  /** Each call settles once, because its entry leaves the map first. */
  #take (id: Id, outcome: Result | Failure): boolean {
    const settle = this.#pending?.get(id)
    if (!settle) return false
    this.#pending!.delete(id)
    settle(outcome)
    return true
  }

  #nextId (): Id {
    return this.#limits.nextId?.() ?? ++this.#lastId
  }

  #receive (message: Message, reply: Reply): void {
    if (this.#ended) return
    switch (message.kind) {
      case 'call': return this.#answer(message, message.id, reply)
      case 'notice': return this.#answer(message, null, ignoreReply)
      case 'result': return this.#conclude(message, message)
      case 'failure': return this.#conclude(message, new Failure(message.reason, { detail: message.detail }))
      case 'invalid': {
        if (message.reason === 'answer-invalid') return this.#conclude(message, new Failure(message.reason))
        this.#handler.unexpected(message)
        reply({ kind: 'failure', id: message.id, reason: message.reason, detail: message.detail })
      }
    }
  }

  /** An answer has arrived. */
  #conclude (message: Result | FailureMessage | InvalidMessage, outcome: Result | Failure): void {
    if (message.id === null || !this.#settle(message.id, outcome)) this.#handler.unexpected(message)
  }

  #reply (answer: Message | Message[]): void {
    if (!this.#ended) this.#handler.transmit(answer)
  }

  #answer (request: Call | Notice, id: Id | null, reply: Reply): void {
    if (this.answering >= this.#limits.maxInbound) {
      this.#handler.refused(request)
      return reply({ kind: 'failure', id, reason: 'busy' })
    }
    const inbound = new InboundCall()
    try {
      const result = this.#handler.answer(request, inbound)
      if (isThenable(result)) void this.#await(inbound, id, result, reply)
      else reply(resultMessage(id, result))
    } catch (error) {
      reply(failureMessage(id, error))
    }
  }

  async #await (inbound: InboundCall, id: Id | null, result: PromiseLike<unknown>, reply: Reply): Promise<void> {
    this.#inbound ??= new Set()
    this.#inbound.add(inbound)
    const answer = await result.then(value => resultMessage(id, value), error => failureMessage(id, error))
    if (this.#inbound?.delete(inbound)) reply(answer)
  }
}

/** A promise or another thenable, such as a query builder. */
export function isThenable (value: unknown): value is PromiseLike<unknown> {
  return typeof (value as { then?: unknown } | null | undefined)?.then === 'function'
}

function wantsReply (message: Message): boolean {
  return message.kind === 'call' || (message.kind === 'invalid' && message.reason !== 'answer-invalid')
}

function callerGaveUp (): Failure {
  return new Failure('dropped', { message: 'The caller gave up' })
}

/** Only the answer to a call is sent, and a call has an id. */
function resultMessage (id: Id | null, result: unknown): Result {
  return { kind: 'result', id: id!, result: result ?? null }
}

function ignoreReply (): void {}
