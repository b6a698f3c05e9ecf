import type { Call, Id } from './message.ts'

export interface CallQueueLimits {
  /** Calls on the wire at a time; further calls wait in order. */
  concurrency: number
  /**
   * Milliseconds, from when it was sent, for which a call that was given up keeps its place on the wire unless it is answered: the other side may still be
   * working on it. Undefined: its place is free at once.
   */
  lingerMs?: number | undefined
}

/** What a queue needs of its peer. */
export interface CallQueueHandler {
  send (call: Call): void
  /** The call has not been answered within `answerTimeout`. */
  expire (id: Id): void
}

interface QueuedCall {
  call: Call
  answerTimeout: number | undefined
}

interface SentCall {
  sentAt: number
  timer: ReturnType<typeof setTimeout> | undefined
}

/** Keeps the number of calls on the wire within the limit of a codec. */
export class CallQueue {
  readonly #limits: CallQueueLimits
  readonly #handler: CallQueueHandler
  readonly #waiting = new Map<Id, QueuedCall>()
  /** Calls on the wire that are still pending, where `lingerMs` is set. */
  readonly #sent = new Map<Id, SentCall>()
  /** Calls that were given up and keep their place on the wire. */
  readonly #lingering = new Map<Id, ReturnType<typeof setTimeout>>()
  #onWire = 0

  constructor (limits: CallQueueLimits, handler: CallQueueHandler) {
    this.#limits = limits
    this.#handler = handler
  }

  /** Sends the call, now or in its turn. `answerTimeout` counts from when it is sent, and only where `lingerMs` is set. */
  add (call: Call, answerTimeout?: number): void {
    if (this.#onWire < this.#limits.concurrency) this.#send({ call, answerTimeout })
    else this.#waiting.set(call.id, { call, answerTimeout })
  }

  /** The call is no longer pending. Frees its place. */
  settle (id: Id): void {
    if (this.#waiting.delete(id)) return
    this.#forget(id)
    this.#next()
  }

  /** The caller has given the call up. If it is on the wire, it keeps its place until `release` or the end of `lingerMs`. */
  abandon (id: Id): void {
    const sentAt = this.#forget(id)
    if (sentAt === undefined) return this.settle(id)
    const rest = Math.max(sentAt + this.#limits.lingerMs! - performance.now(), 0)
    this.#lingering.set(id, setTimeout(() => this.release(id), rest))
  }

  /** A late answer, or the end of `lingerMs`: frees the place of a call that was given up. */
  release (id: Id): void {
    const timer = this.#lingering.get(id)
    if (timer === undefined) return
    clearTimeout(timer)
    this.#lingering.delete(id)
    this.#next()
  }

  /** Drops the calls that wait, and stops every timer. */
  end (): void {
    this.#waiting.clear()
    for (const { timer } of this.#sent.values()) clearTimeout(timer)
    for (const timer of this.#lingering.values()) clearTimeout(timer)
  }

  #send ({ call, answerTimeout }: QueuedCall): void {
    this.#onWire++
    if (this.#limits.lingerMs !== undefined) {
      const timer = answerTimeout === undefined ? undefined : setTimeout(() => this.#handler.expire(call.id), answerTimeout)
      this.#sent.set(call.id, { sentAt: performance.now(), timer })
    }
    this.#handler.send(call)
  }

  /** Returns when the call was sent, if that was recorded. */
  #forget (id: Id): number | undefined {
    const sent = this.#sent.get(id)
    clearTimeout(sent?.timer)
    this.#sent.delete(id)
    return sent?.sentAt
  }

  #next (): void {
    this.#onWire--
    for (const [id, next] of this.#waiting) {
      this.#waiting.delete(id)
      return this.#send(next)
    }
  }
}
