import { getMaxListeners, setMaxListeners } from 'node:events'
import { Failure } from '../protocol/errors.ts'
import type { Dispatcher, SendOptions, SendResult } from './dispatcher.ts'

/** One of many messages that are sent together. */
export interface BulkMessage extends Omit<SendOptions, 'signal'> {
  to: string
  data: unknown
}

interface PendingSend {
  /** Undefined as long as nobody knows. */
  outcome: SendResult | Failure | undefined
}

const SIDE_BY_SIDE = 32

/** Messages sent side by side, and what became of each, in the order begun. */
export class BulkSender {
  readonly #dispatcher: Dispatcher
  readonly #signal: AbortSignal | undefined
  readonly #known: () => void
  readonly #underway: PendingSend[] = []

  /** `known` is called when what became of the first of them comes to be known after all. */
  constructor (dispatcher: Dispatcher, known: () => void, signal?: AbortSignal) {
    this.#dispatcher = dispatcher
    this.#known = known
    this.#signal = signal
    // as many listen to it as go side by side, and that is no leak
    if (signal) setMaxListeners(getMaxListeners(signal) + SIDE_BY_SIDE, signal)
  }

  get isEmpty (): boolean {
    return this.#underway.length === 0
  }

  get isFull (): boolean {
    return this.#underway.length >= SIDE_BY_SIDE
  }

  /** Begins with one more. A failure takes its place in the order like any other. */
  add (line: BulkMessage | Failure): void {
    const outcome = line instanceof Failure ? line : this.#send(line)
    if (!(outcome instanceof Promise)) return void this.#underway.push({ outcome })
    const begun: PendingSend = { outcome: undefined }
    this.#underway.push(begun)
    void outcome.catch(failureOf).then(known => {
      begun.outcome = known
      if (this.#underway[0] === begun) this.#known()
    })
  }

  /** What became of the first, which counts no more; nothing, as long as nobody knows. */
  take (): SendResult | Failure | undefined {
    const outcome = this.#underway[0]?.outcome
    if (outcome) this.#underway.shift()
    return outcome
  }

  #send (line: BulkMessage): SendResult | Failure | Promise<SendResult> {
    try {
      return this.#dispatcher.send(line.to, line.data, line.confirm ? { ...line, signal: this.#signal } : line)
    } catch (error) {
      return failureOf(error)
    }
  }
}

function failureOf (error: unknown): Failure {
  return error instanceof Failure ? error : new Failure('internal')
}
