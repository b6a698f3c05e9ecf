import { Failure, type Reason } from './errors.ts'
import { failureMessage, type Call, type FailureMessage, type Id, type InvalidMessage, type Message, type Notice, type Result } from './message.ts'

/** The one behind a peer: where its messages go and who answers what comes in. */
export interface PeerHandler {
  /** Throws a `Failure` when a call or notice of ours cannot be encoded. */
  transmit (message: Message | Message[]): void
  /** The result, or a promise of it; a thrown `Failure` is told to the other side, anything else is an internal error. */
  answer (asked: Call | Notice, inbound: InboundCall): unknown
  /** Refused, because too many calls are being answered. */
  refused (asked: Call | Notice): void
  /** What has no use: an answer to nothing that was asked, or what was no message. */
  unexpected (message: Result | FailureMessage | InvalidMessage): void
}

/** What a timer can hold; beyond it, one fires at once. */
export const MAX_TIMER_MS = 2_147_483_647

export interface PeerLimits {
  /** Calls of ours on the wire at a time; the others wait in order. */
  concurrency: number
  /** Calls of the other side that may wait for our answer at a time. */
  inbound: number
  /** Milliseconds, from its start, for which a call on the wire that was given up keeps others off it, unless it is answered; without it, none. */
  linger?: number | undefined
  /** Makes the ids of calls; by default they are numbers from 1. */
  mint?: (() => string) | undefined
}

/** As much of an `AbortSignal` as a call needs. */
export interface CallSignal {
  readonly aborted: boolean
  addEventListener (type: 'abort', listener: () => void, options: { once: true }): void
  removeEventListener (type: 'abort', listener: () => void): void
}

export interface CallOptions {
  /** Milliseconds; without it the call waits until it is answered or the connection ends. */
  timeout?: number | undefined
  /** Gives the call up. An `AbortSignal` will do. */
  signal?: CallSignal | undefined
  /** The id on the wire, where it must be a given one. */
  id?: Id | undefined
}

export interface QueuedOptions extends CallOptions {
  /** Milliseconds for the answer, from when the call goes on the wire. Only where it may have to wait for that. */
  patience?: number | undefined
}

/** A call of the other side while it is being answered. */
export class InboundCall {
  #controller: AbortController | undefined
  #aborted = false

  /** Aborts when the other side leaves. */
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

interface PendingCall {
  call: Call
  settle (outcome: Result | Failure): void
  patience: number | undefined
  /** Set where few calls are on the wire at a time, once this one is. */
  saidAt?: number
  impatient?: ReturnType<typeof setTimeout>
}

type Reply = (answer: Result | FailureMessage) => void

/** One end of a conversation: calls in flight, their timeouts, and answering. Owns no socket. */
export class Peer {
  readonly #handler: PeerHandler
  readonly #limits: PeerLimits
  // most connections have no call in flight, and only those that had one pay for it
  #pending: Map<Id, PendingCall> | undefined
  #inbound: Set<InboundCall> | undefined
  #queue: Call[] | undefined
  /** Given up, and still keeping others off the wire. */
  #lingering: Map<Id, ReturnType<typeof setTimeout>> | undefined
  #onWire = 0
  #lastId = 0
  #ended: Reason | undefined

  constructor (handler: PeerHandler, limits: PeerLimits) {
    this.#handler = handler
    this.#limits = limits
  }

  /** Calls in flight, of both sides. */
  get inFlight (): number {
    return (this.#pending?.size ?? 0) + this.answering
  }

  /** Calls of the other side that wait for our answer. */
  get answering (): number {
    return this.#inbound?.size ?? 0
  }

  /** Settles exactly once: with the result, or with a `Failure`. */
  call (method: string, params?: unknown, { timeout, signal, id: known, patience }: QueuedOptions = {}): Promise<unknown> {
    return new Promise((resolve, reject) => {
      if (this.#ended) return reject(new Failure(this.#ended))
      if (signal?.aborted) return reject(givenUp())
      const id = known ?? this.#mint()
      if (this.#pending?.has(id)) return reject(new Failure('busy'))

      const call: Call = { kind: 'call', id, method, params }
      const giveUp = () => this.#giveUp(id, givenUp())
      const timer = timeout === undefined ? undefined : setTimeout(() => this.#giveUp(id, new Failure('timeout')), Math.min(timeout, MAX_TIMER_MS))
      signal?.addEventListener('abort', giveUp, { once: true })
      this.#pending ??= new Map()
      this.#pending.set(id, {
        call,
        settle (outcome) {
          clearTimeout(timer)
          signal?.removeEventListener('abort', giveUp)
          if (outcome instanceof Error) reject(outcome)
          else resolve(outcome.result)
        },
        patience
      })
      this.#put(call)
    })
  }

  notify (method: string, params?: unknown): void {
    if (!this.#ended) this.#handler.transmit({ kind: 'notice', method, params })
  }

  receive (message: Message | Message[]): void {
    if (!Array.isArray(message)) return this.#receive(message, answer => this.#reply(answer))
    const asked = message.filter(wantsReply).length
    const together: Message[] = []
    const reply: Reply = answer => {
      if (together.push(answer) === asked) this.#reply(together)
    }
    for (const one of message) this.#receive(one, reply)
  }

  /** Settles every call in flight; nothing is sent or answered any more. */
  end (reason: Reason = 'dropped'): void {
    if (this.#ended) return
    this.#ended = reason
    this.#queue = undefined
    for (const id of this.#pending?.keys() ?? []) this.#settle(id, new Failure(reason))
    for (const timer of this.#lingering?.values() ?? []) clearTimeout(timer)
    for (const inbound of this.#inbound ?? []) inbound.abort()
    this.#inbound = undefined
  }

  #put (call: Call): void {
    if (this.#onWire >= this.#limits.concurrency) {
      this.#queue ??= []
      this.#queue.push(call)
      return
    }
    this.#onWire++
    try {
      this.#handler.transmit(call)
    } catch (error) {
      this.#settle(call.id, error as Failure)
    }
    if (this.#limits.linger !== undefined) this.#said(call.id)
  }

  #said (id: Id): void {
    const pending = this.#pending?.get(id)
    if (!pending) return
    pending.saidAt = performance.now()
    if (pending.patience !== undefined) pending.impatient = setTimeout(() => this.#giveUp(id, new Failure('timeout')), pending.patience)
  }

  /** Nobody waits for the answer any more; where few calls are on the wire at a time, the other side may still be at it. */
  #giveUp (id: Id, failure: Failure): void {
    const saidAt = this.#pending?.get(id)?.saidAt
    if (saidAt === undefined) return void this.#settle(id, failure)
    this.#take(id, failure)
    const rest = Math.max(saidAt + this.#limits.linger! - performance.now(), 0)
    this.#lingering ??= new Map()
    this.#lingering.set(id, setTimeout(() => this.#leave(id), rest))
  }

  /** Takes the call out of those in flight and lets the next of the queue go. False: it is not in flight. */
  #settle (id: Id, outcome: Result | Failure): boolean {
    const pending = this.#take(id, outcome)
    if (!pending) {
      this.#leave(id)
      return false
    }
    const waiting = this.#queue?.indexOf(pending.call) ?? -1
    if (waiting === -1) this.#next()
    else this.#queue!.splice(waiting, 1)
    return true
  }

  #take (id: Id, outcome: Result | Failure): PendingCall | undefined {
    const pending = this.#pending?.get(id)
    if (!pending) return undefined
    this.#pending!.delete(id)
    clearTimeout(pending.impatient)
    pending.settle(outcome)
    return pending
  }

  /** A call that was given up is answered after all, or had its time. */
  #leave (id: Id): void {
    const timer = this.#lingering?.get(id)
    if (timer === undefined) return
    clearTimeout(timer)
    this.#lingering!.delete(id)
    this.#next()
  }

  #next (): void {
    this.#onWire--
    const next = this.#queue?.shift()
    if (next) this.#put(next)
  }

  #mint (): Id {
    return this.#limits.mint?.() ?? ++this.#lastId
  }

  #receive (message: Message, reply: Reply): void {
    if (this.#ended) return
    switch (message.kind) {
      case 'call': return this.#answer(message, message.id, reply)
      case 'notice': return this.#answer(message, null, nobody)
      case 'result': {
        if (!this.#settle(message.id, message)) this.#handler.unexpected(message)
        return
      }
      case 'failure': {
        const failure = new Failure(message.reason, { detail: message.detail })
        if (message.id === null || !this.#settle(message.id, failure)) this.#handler.unexpected(message)
        return
      }
      case 'invalid': {
        if (message.reason !== 'answer-invalid') {
          this.#handler.unexpected(message)
          return reply({ kind: 'failure', id: message.id, reason: message.reason, ...(message.detail && { detail: message.detail }) })
        }
        if (message.id === null || !this.#settle(message.id, new Failure('answer-invalid'))) this.#handler.unexpected(message)
      }
    }
  }

  #reply (answer: Message | Message[]): void {
    if (!this.#ended) this.#handler.transmit(answer)
  }

  #answer (asked: Call | Notice, id: Id | null, reply: Reply): void {
    if (this.answering >= this.#limits.inbound) {
      this.#handler.refused(asked)
      return reply({ kind: 'failure', id, reason: 'busy' })
    }
    const inbound = new InboundCall()
    try {
      const result = this.#handler.answer(asked, inbound)
      if (isThenable(result)) void this.#await(inbound, id, result, reply)
      else reply(succeeded(id, result))
    } catch (error) {
      reply(failureMessage(id, error))
    }
  }

  async #await (inbound: InboundCall, id: Id | null, result: PromiseLike<unknown>, reply: Reply): Promise<void> {
    this.#inbound ??= new Set()
    this.#inbound.add(inbound)
    const answer = await result.then(value => succeeded(id, value), error => failureMessage(id, error))
    if (this.#inbound?.delete(inbound)) reply(answer)
  }
}

/** A promise, or what a query builder takes for one. */
export function isThenable (value: unknown): value is PromiseLike<unknown> {
  return typeof value === 'object' && value !== null && 'then' in value && typeof value.then === 'function'
}

function wantsReply (message: Message): boolean {
  return message.kind === 'call' || (message.kind === 'invalid' && message.reason !== 'answer-invalid')
}

function givenUp (): Failure {
  return new Failure('dropped', { message: 'The caller gave up' })
}

/** Only a call is replied to, and a call has an id. */
function succeeded (id: Id | null, result: unknown): Result {
  return { kind: 'result', id: id!, result: result ?? null }
}

function nobody (): void {}
