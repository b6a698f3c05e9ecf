import { getMaxListeners, setMaxListeners } from 'node:events'
import { Failure } from '../protocol/errors.ts'
import type { RequestLike } from '../protocol/request-context.ts'
import { SendOptionsSchema, type Dispatcher, type SendOptions, type SendResult } from './dispatcher.ts'

/** One message of a bulk send. */
export interface BulkMessage extends Omit<SendOptions, 'signal' | 'request'> {
  to: string
  data: unknown
}

/** What the messages of a bulk send share. */
export interface BulkOptions {
  /** Ends all waits for acknowledgements. */
  signal?: AbortSignal | undefined
  /** The request that causes the messages: a request of Fastify, or the context of a handler. */
  request?: RequestLike | undefined
}

interface PendingSend {
  /** Undefined while the send is in progress. */
  outcome: SendResult | Failure | undefined
}

const MAX_CONCURRENT = 32

const { signal: _signal, request: _request, ...bulkOptions } = SendOptionsSchema.properties
const bulkMembers = { to: true, data: true, ...bulkOptions }

/** Sends messages concurrently, and returns their outcomes in the order in which they were added. */
export class BulkSender {
  readonly #dispatcher: Dispatcher
  readonly #signal: AbortSignal | undefined
  readonly #request: RequestLike | undefined
  readonly #onFirstSettled: () => void
  readonly #pending: PendingSend[] = []
  /** Resolves when every message that was added has been sent; undefined if all have. */
  #turn: Promise<void> | undefined

  /** Calls `onFirstSettled` when the first message was in progress and has settled. */
  constructor (dispatcher: Dispatcher, onFirstSettled: () => void, { signal, request }: BulkOptions) {
    this.#dispatcher = dispatcher
    this.#onFirstSettled = onFirstSettled
    this.#signal = signal
    this.#request = request
    // each concurrent send adds a listener: raise the limit, or Node warns of a leak
    if (signal) setMaxListeners(getMaxListeners(signal) + MAX_CONCURRENT, signal)
  }

  get isEmpty (): boolean {
    return this.#pending.length === 0
  }

  get isFull (): boolean {
    return this.#pending.length >= MAX_CONCURRENT
  }

  /**
   * Sends one more message. A failure is not sent: it is the outcome in that place. A promise is awaited; messages are sent in the order in which they were
   * added, so those after it wait too.
   */
  add (message: BulkMessage | Failure | Promise<BulkMessage | Failure>): void {
    const outcome = this.#turn || message instanceof Promise ? this.#sendInTurn(message) : this.#send(message)
    if (!(outcome instanceof Promise)) return void this.#pending.push({ outcome })
    const pending: PendingSend = { outcome: undefined }
    this.#pending.push(pending)
    void outcome.catch(failureOf).then(settled => {
      pending.outcome = settled
      if (this.#pending[0] === pending) this.#onFirstSettled()
    })
  }

  /** Removes the first message and returns its outcome; returns undefined while it is in progress, or if there is none. */
  take (): SendResult | Failure | undefined {
    const outcome = this.#pending[0]?.outcome
    if (outcome) this.#pending.shift()
    return outcome
  }

  #sendInTurn (message: BulkMessage | Failure | Promise<BulkMessage | Failure>): Promise<SendResult | Failure> {
    const ready = Promise.all([message instanceof Promise ? message.catch(failureOf) : message, this.#turn])
    const outcome = ready.then(([message]) => this.#send(message))
    const turn = ready.then(() => { if (this.#turn === turn) this.#turn = undefined })
    this.#turn = turn
    return outcome
  }

  #send (message: BulkMessage | Failure): SendResult | Failure | Promise<SendResult> {
    if (message instanceof Failure) return message
    try {
      return this.#dispatcher.send(message.to, message.data, message.confirm ? { ...message, signal: this.#signal } : message, this.#request)
    } catch (error) {
      return failureOf(error)
    }
  }
}

function failureOf (error: unknown): Failure {
  return error instanceof Failure ? error : new Failure('internal')
}

/** A message with an unknown member fails alone, in its place. */
export function checkedMessage (message: BulkMessage | Failure): BulkMessage | Failure {
  if (message instanceof Failure) return message
  for (const name in message) if (!Object.hasOwn(bulkMembers, name)) return new Failure('bad-params', { message: `sendMany() has no option "${name}"` })
  return message
}
