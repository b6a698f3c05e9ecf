import { closeCodes } from '../protocol/errors.ts'

/** Plain counters since the start; every refusal, goodbye and outcome is one of them. */
export interface Counters {
  sessions: number
  admissions: number
  refusals: Record<string, number>
  goodbyes: Record<number, number>
  messages: { in: number, out: number }
  bytes: { in: number, out: number }
  /** Calls to devices, by `ok` or the reason of their failure. */
  calls: Record<string, number>
  /** Calls of devices, likewise. */
  answers: Record<string, number>
  /** Letters, by what became of them. */
  letters: Record<string, number>
  /** Answers to nothing that was asked, and what was no message. */
  strays: Record<string, number>
}

export class Stats {
  readonly #counters: Omit<Counters, 'sessions'> = {
    admissions: 0,
    refusals: {},
    goodbyes: {},
    messages: { in: 0, out: 0 },
    bytes: { in: 0, out: 0 },
    calls: {},
    answers: {},
    letters: {},
    strays: {}
  }

  admitted (): void {
    this.#counters.admissions++
  }

  disconnected (code: number): void {
    // a device chooses the code it leaves with; counting each would let it fill the table
    increment(this.#counters.goodbyes, known.has(code) ? code : 0)
  }

  received (messages: number, bytes: number): void {
    this.#counters.messages.in += messages
    this.#counters.bytes.in += bytes
  }

  sent (bytes: number): void {
    this.#counters.messages.out++
    this.#counters.bytes.out += bytes
  }

  count (what: 'refusals' | 'calls' | 'answers' | 'letters' | 'strays', outcome: string): void {
    increment(this.#counters[what], outcome)
  }

  read (sessions: number): Counters {
    return { sessions, ...structuredClone(this.#counters) }
  }
}

const known = new Set<number>(Object.values(closeCodes).map(({ code }) => code))

function increment (counts: Record<string | number, number>, name: string | number): void {
  counts[name] = (counts[name] ?? 0) + 1
}
