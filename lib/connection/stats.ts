import type { FastifyBaseLogger } from 'fastify'
import { closeCodes, reasons } from '../protocol/errors.ts'

/** Counters since the start. Every refusal, close code and outcome is counted; what the application has named itself counts as `other`. */
export interface Counters {
  sessions: number
  /** Connected devices, by transport and protocol. */
  connected: Record<string, Record<string, number>>
  admissions: number
  refusals: Record<string, number>
  /** Ended connections, by close code. */
  closeCodes: Record<number, number>
  messages: { in: number, out: number }
  bytes: { in: number, out: number }
  /** Calls to devices, by `ok` or the reason of their failure. */
  calls: Record<string, number>
  /** Calls of devices, by `ok` or the reason of their failure. */
  answers: Record<string, number>
  /** Letters, by outcome. */
  letters: Record<string, number>
  /** Unexpected answers and invalid messages, by reason. */
  unexpected: Record<string, number>
}

/** A call that has ended. */
export interface CallReport {
  /** `out`: to a device; `in`: of a device. */
  direction: 'in' | 'out'
  /** As the caller named it: devices can make up any number of names. */
  method: string
  /** `ok`, or the reason of its failure. */
  outcome: string
  /** In milliseconds. */
  duration: number
}

/** What a monitoring system is told beyond the counters. */
export interface Observer {
  /** A call that began after `observe` has ended. */
  call? (report: CallReport): void
  /** A device has answered a ping, after this many milliseconds. */
  pong? (delay: number): void
}

export class Stats {
  readonly #log: FastifyBaseLogger
  /** Undefined until the first one: calls are not timed. */
  #observers: Set<Observer> | undefined
  readonly #counters: Omit<Counters, 'sessions' | 'connected'> = {
    admissions: 0,
    refusals: {},
    closeCodes: {},
    messages: { in: 0, out: 0 },
    bytes: { in: 0, out: 0 },
    calls: {},
    answers: {},
    letters: {},
    unexpected: {}
  }

  constructor (log: FastifyBaseLogger) {
    this.#log = log
  }

  /** Returns a function that removes the observer. */
  observe (observer: Observer): () => void {
    const observers = this.#observers ??= new Set()
    observers.add(observer)
    return () => { observers.delete(observer) }
  }

  /** When a call begins, for `settled`; 0 if nobody observes calls. */
  startTime (): number {
    return this.#observers ? performance.now() : 0
  }

  /** A call that began at `startTime` has ended. */
  settled (direction: 'in' | 'out', method: string, outcome: string, startTime: number): void {
    this.count(direction === 'out' ? 'calls' : 'answers', outcome)
    if (startTime > 0) this.#notify(observer => observer.call?.({ direction, method, outcome, duration: performance.now() - startTime }))
  }

  /** A device has answered a ping. */
  ponged (delay: number): void {
    if (this.#observers) this.#notify(observer => observer.pong?.(delay))
  }

  admitted (): void {
    this.#counters.admissions++
  }

  disconnected (code: number): void {
    // devices choose their close code: a counter for each would let them fill the table
    increment(this.#counters.closeCodes, knownCodes.has(code) ? code : 0)
  }

  received (messages: number, bytes: number): void {
    this.#counters.messages.in += messages
    this.#counters.bytes.in += bytes
  }

  sent (bytes: number): void {
    this.#counters.messages.out++
    this.#counters.bytes.out += bytes
  }

  count (counter: 'refusals' | 'calls' | 'answers' | 'letters' | 'unexpected', outcome: string, times = 1): void {
    const counts = this.#counters[counter]
    // an application may fail with any reason: a counter for each would let its callers fill the table
    increment(counts, counts[outcome]! > 0 || counter === 'letters' || isKnown(outcome) ? outcome : 'other', times)
  }

  read (sessions: number): Omit<Counters, 'connected'> {
    return { sessions, ...structuredClone(this.#counters) }
  }

  #notify (notify: (observer: Observer) => void): void {
    for (const observer of this.#observers!) {
      try {
        notify(observer)
      } catch (error) {
        this.#log.error({ err: error }, 'observer failed')
      }
    }
  }
}

/** Outcomes that are neither a reason nor a close reason. */
const otherOutcomes = new Set(['ok', 'late', 'guard', 'authorize'])

function isKnown (outcome: string): boolean {
  return Object.hasOwn(reasons, outcome) || Object.hasOwn(closeCodes, outcome) || otherOutcomes.has(outcome)
}

const knownCodes = new Set<number>(Object.values(closeCodes).map(({ code }) => code))

function increment (counts: Record<string | number, number>, name: string | number, times = 1): void {
  counts[name] = (counts[name] ?? 0) + times
}
