import { closeCodes } from '../protocol/errors.ts'

/** Counters since the start. Every refusal, close code and outcome is counted. */
export interface Counters {
  sessions: number
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

export class Stats {
  readonly #counters: Omit<Counters, 'sessions'> = {
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

  count (counter: 'refusals' | 'calls' | 'answers' | 'letters' | 'unexpected', outcome: string): void {
    increment(this.#counters[counter], outcome)
  }

  read (sessions: number): Counters {
    return { sessions, ...structuredClone(this.#counters) }
  }
}

const knownCodes = new Set<number>(Object.values(closeCodes).map(({ code }) => code))

function increment (counts: Record<string | number, number>, name: string | number): void {
  counts[name] = (counts[name] ?? 0) + 1
}
