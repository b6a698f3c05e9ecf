import { setTimeout as sleep } from 'node:timers/promises'
import type { FastifyBaseLogger } from 'fastify'
import type { Failure, Reason } from './errors.ts'
import type { Letters } from './letters.ts'
import type { Kept } from './mailbox.ts'
import type { Session } from './session.ts'

export interface DeliveryLimits {
  /** Letters on their way to one device at a time. */
  window: number
  /** Connections that may end with a letter unacknowledged before it is set aside. */
  attempts: number
}

/** Failures of a device that has too much to do, and how long it is left alone then. */
const pressed = new Set<Reason>(['busy', 'too-fast'])
const PAUSE = 1_000

/** What is on its way to one session. */
interface Round {
  readonly inFlight: Map<string, Kept>
  /** The position behind which the next letter is taken. */
  after: number
  /** Letters were put since the last look. */
  rung: boolean
  draining: boolean
  /** Wakes the drain that waits for room. */
  wake: () => void
}

/** Hands letters to the devices that are here, in order; takes them out of the mailbox once they are acknowledged. */
export class Delivery {
  readonly #letters: Letters
  readonly #limits: DeliveryLimits
  readonly #log: FastifyBaseLogger
  readonly #rounds = new Map<Session, Round>()

  constructor (letters: Letters, limits: DeliveryLimits, log: FastifyBaseLogger) {
    this.#letters = letters
    this.#limits = limits
    this.#log = log
  }

  /** There may be letters for this session. */
  ring (session: Session): void {
    if (session.left) return
    let round = this.#rounds.get(session)
    if (!round) {
      round = { inFlight: new Map(), after: 0, rung: true, draining: false, wake () {} }
      this.#rounds.set(session, round)
    }
    round.rung = true
    if (!round.draining) void this.#drain(session, round)
  }

  /** The session has left; the letter it should have acknowledged next is the suspect. */
  stop (session: Session): void {
    const round = this.#rounds.get(session)
    if (!round) return
    this.#rounds.delete(session)
    round.wake()
    const [suspect] = round.inFlight.values()
    if (suspect) void this.#strike(session, suspect)
  }

  async #drain (session: Session, round: Round): Promise<void> {
    round.draining = true
    try {
      while (round.rung && !session.left) {
        round.rung = false
        for await (const letter of this.#letters.from(session.id, round.after)) {
          while (round.inFlight.size >= this.#limits.window && !session.left) {
            await new Promise<void>(resolve => { round.wake = resolve })
          }
          if (session.left) break
          round.after = letter.position
          round.inFlight.set(letter.id, letter)
          void this.#hand(session, round, letter)
        }
      }
    } catch (error) {
      this.#log.error({ err: error, deviceId: session.id }, 'letters cannot be read')
    }
    round.draining = false
    this.#forget(session, round)
  }

  async #hand (session: Session, round: Round, letter: Kept): Promise<void> {
    try {
      await this.#offer(session, letter)
    } catch (error) {
      this.#log.error({ err: error, deviceId: session.id, letterId: letter.id }, 'a letter cannot be settled')
    }
    round.inFlight.delete(letter.id)
    round.wake()
    this.#forget(session, round)
  }

  async #offer (session: Session, letter: Kept): Promise<void> {
    const timeout = letter.expiresAt - Date.now()
    if (timeout <= 0) {
      await this.#letters.settle(session.id, letter, 'expired')
      return
    }
    try {
      await session.peer.call('message', { id: letter.id, data: contentOf(letter) }, { id: letter.id, timeout })
    } catch (error) {
      const { reason, device } = error as Failure
      if (reason === 'dropped') return // it waits for the next connection
      if (pressed.has(reason)) {
        await sleep(PAUSE, undefined, { ref: false })
        return await this.#offer(session, letter)
      }
      await this.#letters.settle(session.id, letter, reason === 'timeout' ? 'expired' : 'refused', device)
      return
    }
    await this.#letters.settle(session.id, letter, 'delivered')
  }

  async #strike (session: Session, letter: Kept): Promise<void> {
    try {
      const strikes = await this.#letters.strike(session.id, letter.id)
      if (strikes >= this.#limits.attempts) await this.#letters.settle(session.id, letter, 'set-aside')
    } catch (error) {
      this.#log.error({ err: error, deviceId: session.id, letterId: letter.id }, 'a letter cannot be struck')
    }
  }

  #forget (session: Session, round: Round): void {
    if (!round.draining && round.inFlight.size === 0) this.#rounds.delete(session)
  }
}

function contentOf ({ body }: Kept): unknown {
  return typeof body === 'string' ? JSON.parse(body) : body
}
