import { setTimeout as sleep } from 'node:timers/promises'
import type { FastifyBaseLogger } from 'fastify'
import { reasons, Failure, closeCodes, type Detail, type CloseReason, type Reason } from '../protocol/errors.ts'
import { isUnreachable, type Letters } from './letters.ts'
import type { Ending, StoredLetter } from '../storage/mailbox.ts'
import { TurnLimiter } from './turn-limiter.ts'
import type { Session } from '../connection/session.ts'

export interface DeliveryLimits {
  /** Letters on their way to one device at a time. */
  maxInFlight: number
  /** Connections that may end with a letter unacknowledged, and accidents that may happen to it, before it is dead-lettered. */
  attempts: number
}

/** How long a device is left alone that has too much to do, and a mailbox that cannot be read. */
const RETRY_DELAY_MS = 1_000
/** It doubles with each accident, up to this. */
const MAX_RETRY_DELAY_MS = 60_000
/** Letters of all devices that leave in one turn of the event loop, so that many devices coming back at once stop nobody else. */
const LETTERS_PER_TURN = 64
const overloadReasons = new Set<Reason>(['busy', 'too-fast'])

/** Ends that are our doing: no letter is to blame for them. */
const ourCloseReasons: CloseReason[] = ['leaving', 'overloaded', 'expired', 'replaced', 'removed']
const blamelessCloseCodes = new Set<number>(ourCloseReasons.map(name => closeCodes[name].code))

/** What is on its way to one session. */
interface DeliveryState {
  readonly inFlight: Map<string, StoredLetter>
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
  readonly #rounds = new Map<Session, DeliveryState>()
  readonly #pace = new TurnLimiter(LETTERS_PER_TURN)
  /** Those that the device has answered. */
  readonly #answered = new WeakSet<StoredLetter>()
  #paused = false

  constructor (letters: Letters, limits: DeliveryLimits, log: FastifyBaseLogger) {
    this.#letters = letters
    this.#limits = limits
    this.#log = log
  }

  /** There may be letters for this session. */
  wake (session: Session): void {
    if (session.left || this.#paused) return
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
    const suspect = [...round.inFlight.values()].find(letter => !this.#answered.has(letter))
    if (suspect && !blamelessCloseCodes.has(session.left!.code)) void this.#strike(session, suspect)
  }

  /** The node is leaving: what is on its way may arrive, and the rest waits for another connection. */
  pause (): void {
    this.#paused = true
    for (const { wake } of this.#rounds.values()) wake()
  }

  async #drain (session: Session, round: DeliveryState): Promise<void> {
    round.draining = true
    while (round.rung && this.#mayHand(session)) {
      round.rung = false
      try {
        await this.#drainOnce(session, round)
      } catch (error) {
        if (!isUnreachable(error)) this.#log.error({ err: error, deviceId: session.id }, 'letters cannot be read')
        await sleep(RETRY_DELAY_MS, undefined, { ref: false })
        round.rung = true
      }
    }
    round.draining = false
    this.#forget(session, round)
  }

  async #drainOnce (session: Session, round: DeliveryState): Promise<void> {
    const letters = this.#letters.from(session.id, round.after)[Symbol.asyncIterator]()
    try {
      for (;;) {
        // only then: a letter may be cancelled while one waits for room
        while (this.#isFull(session, round)) await room(round)
        const written = session.room()
        if (written) await written.catch(() => {})
        if (!this.#mayHand(session)) return
        const turn = this.#pace.step()
        if (turn) await turn
        const { done, value: letter } = await letters.next()
        if (done || !this.#mayHand(session)) return
        round.after = letter.position
        round.inFlight.set(letter.id, letter)
        void this.#hand(session, round, letter)
      }
    } finally {
      await letters.return?.()
    }
  }

  #isFull (session: Session, { inFlight }: DeliveryState): boolean {
    return inFlight.size >= Math.min(this.#limits.maxInFlight, session.codec.concurrency) && this.#mayHand(session)
  }

  #mayHand (session: Session): boolean {
    return !session.left && !this.#paused
  }

  async #hand (session: Session, round: DeliveryState, letter: StoredLetter): Promise<void> {
    try {
      let pause: number | undefined
      do pause = await this.#offer(session, letter)
      while (pause !== undefined && await this.#waits(session, letter, pause))
    } catch (error) {
      this.#log.error({ err: error, deviceId: session.id, letterId: letter.id }, 'a letter cannot be settled')
    }
    round.inFlight.delete(letter.id)
    round.wake()
    this.#forget(session, round)
  }

  /** Milliseconds until the next try; nothing, if nothing is left to do here. */
  async #offer (session: Session, letter: StoredLetter): Promise<number | undefined> {
    // many may have waited, and each takes some of the room
    for (let written = session.room(); written; written = session.room()) await written.catch(() => {})
    const failure = await this.#call(session, letter)
    if (failure) return await this.#failed(session, letter, failure)
    await this.#settle(session, letter, 'delivered')
    return undefined
  }

  async #failed (session: Session, letter: StoredLetter, failure: Failure): Promise<number | undefined> {
    const { reason, device = { code: failure.code, message: failure.message } } = failure
    if (reason === 'dropped') return undefined // it waits for the next connection
    if (overloadReasons.has(reason)) return RETRY_DELAY_MS
    const isUnanswered = reason === 'timeout' && session.patience !== undefined && Date.now() < letter.expiresAt
    if (isUnanswered || isAccident(failure)) return await this.#strike(session, letter)
    if (reason === 'timeout') await this.#settle(session, letter, 'expired')
    else await this.#settle(session, letter, 'refused', device)
    return undefined
  }

  /** Retries while the mailbox is away or full, even after the device has left, because its answer is known. */
  async #settle (session: Session, letter: StoredLetter, ending: Ending, device?: Detail): Promise<void> {
    this.#answered.add(letter)
    for (let tries = 1; !await this.#isSettled(session, letter, { ending, device, tries }); tries++) await sleep(RETRY_DELAY_MS, undefined, { ref: false })
  }

  async #isSettled (session: Session, letter: StoredLetter, { ending, device, tries }: { ending: Ending, device: Detail | undefined, tries: number }): Promise<boolean> {
    try {
      await this.#letters.settle(session.id, letter, ending, device)
      return true
    } catch (error) {
      if (!(error instanceof Failure) || this.#paused) throw error
      if (tries === 1 && !isUnreachable(error)) this.#log.error({ err: error, deviceId: session.id, letterId: letter.id }, 'a letter cannot be settled')
      return false
    }
  }

  /** After a pause. False: it was taken back meanwhile. */
  async #waits (session: Session, letter: StoredLetter, pause: number): Promise<boolean> {
    await sleep(pause, undefined, { ref: false })
    try {
      return (await this.#letters.receipt(session.id, letter.id))?.status === 'queued'
    } catch { // nobody can tell
      return true
    }
  }

  /** Why the device has not acknowledged; nothing, if it has. */
  #call (session: Session, letter: StoredLetter): Promise<Failure | undefined> {
    const timeout = letter.expiresAt - Date.now()
    if (timeout <= 0) return Promise.resolve(new Failure('timeout'))
    try {
      const { method, params, id } = session.callFor(letter.id, contentOf(letter))
      return session.peer.call(method, params, { id, timeout, answerTimeout: session.patience }).then(acknowledged, failureOf)
    } catch (error) {
      return Promise.resolve(failureOf(error))
    }
  }

  /** Nothing: it is dead-lettered, or waits no more. */
  async #strike (session: Session, letter: StoredLetter): Promise<number | undefined> {
    try {
      const strikes = await this.#letters.addAttempt(session.id, letter.id)
      if (strikes >= this.#limits.attempts) await this.#settle(session, letter, 'dead-lettered')
      else if (strikes > 0) return Math.min(RETRY_DELAY_MS * 2 ** (strikes - 1), MAX_RETRY_DELAY_MS)
      return undefined
    } catch (error) {
      this.#log.error({ err: error, deviceId: session.id, letterId: letter.id }, 'a letter cannot be struck')
      return RETRY_DELAY_MS
    }
  }

  #forget (session: Session, round: DeliveryState): void {
    if (!round.draining && round.inFlight.size === 0) this.#rounds.delete(session)
  }
}

function room (round: DeliveryState): Promise<void> {
  return new Promise(resolve => { round.wake = resolve })
}

function acknowledged (): undefined {}

/** Something went wrong with it on the device, which has not said that it does not want it. */
function isAccident ({ reason, device }: Failure): boolean {
  return reason === 'refused' && device?.code === reasons.internal.rpc
}

/** Anything else is nobody's answer. */
function failureOf (error: unknown): Failure {
  if (error instanceof Failure) return error
  throw error
}

function contentOf ({ body }: StoredLetter): unknown {
  return typeof body === 'string' ? JSON.parse(body) : body
}
