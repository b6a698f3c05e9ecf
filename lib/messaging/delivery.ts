import { setTimeout as sleep } from 'node:timers/promises'
import type { FastifyBaseLogger } from 'fastify'
import { reasons, Failure, isUnreachable, closeCodes, type Detail, type CloseReason, type Reason } from '../protocol/errors.ts'
import type { Letters } from './letters.ts'
import type { Ending, StoredLetter } from '../storage/mailbox.ts'
import { TurnLimiter } from './turn-limiter.ts'
import { factsOf } from '../connection/device-operations.ts'
import { operate, operations } from '../connection/operation.ts'
import type { OutboundChecks } from '../connection/outbound-checks.ts'
import type { Session } from '../connection/session.ts'
import { traceFor, type RequestLike } from '../protocol/request-context.ts'

export interface DeliveryLimits {
  /** Letters in flight to one device. */
  maxInFlight: number
  /** Failed deliveries of a letter, by a closed connection or an internal error of the device, before it is dead-lettered. */
  attempts: number
}

/** Delay before an overloaded device is offered a letter again, and before an unreadable mailbox is read again. */
const RETRY_DELAY_MS = 1_000
/** The delay doubles with each failed attempt, up to this. */
const MAX_RETRY_DELAY_MS = 60_000
/** Letters sent in one turn of the event loop, over all devices: many devices that reconnect at once must not block it. */
const LETTERS_PER_TURN = 64
const overloadReasons = new Set<Reason>(['busy', 'too-fast'])

/** Close reasons of the server itself: they are no sign that a letter broke the connection. */
const serverCloseReasons: CloseReason[] = ['leaving', 'overloaded', 'expired', 'replaced', 'removed']
const blamelessCloseCodes = new Set<number>(serverCloseReasons.map(name => closeCodes[name].code))

/** The call that carries a letter. */
type LetterCall = ReturnType<Session['callFor']>

/** The delivery to one session. */
interface DeliveryState {
  readonly inFlight: Map<string, StoredLetter>
  /** The position behind which the next letter is read. */
  after: number
  /** Letters may have been stored since the mailbox was last read. */
  hasNew: boolean
  draining: boolean
  /** Resumes the drain that waits for room in the window. */
  onRoom: () => void
}

/** Sends letters to the devices of this node, in order, and settles each in the mailbox once it is acknowledged. */
export class Delivery {
  readonly #letters: Letters
  readonly #limits: DeliveryLimits
  readonly #log: FastifyBaseLogger
  readonly #checks: OutboundChecks | undefined
  readonly #states = new Map<Session, DeliveryState>()
  readonly #turnLimiter = new TurnLimiter(LETTERS_PER_TURN)
  /** Letters that the device has answered, also those that are not settled yet. */
  readonly #acknowledged = new WeakSet<StoredLetter>()
  #paused = false

  constructor (letters: Letters, limits: DeliveryLimits, log: FastifyBaseLogger, checks?: OutboundChecks) {
    this.#letters = letters
    this.#limits = limits
    this.#log = log
    this.#checks = checks
  }

  /** Letters may be waiting for this session. */
  wake (session: Session): void {
    if (session.left || this.#paused) return
    let state = this.#states.get(session)
    if (!state) {
      state = { inFlight: new Map(), after: 0, hasNew: true, draining: false, onRoom () {} }
      this.#states.set(session, state)
    }
    state.hasNew = true
    if (!state.draining) void this.#drain(session, state)
  }

  /** The session has ended. The oldest unanswered letter may be the cause, so an attempt is counted for it. */
  stop (session: Session): void {
    const state = this.#states.get(session)
    if (!state) return
    this.#states.delete(session)
    state.onRoom()
    const suspect = [...state.inFlight.values()].find(letter => !this.#acknowledged.has(letter))
    if (suspect && !blamelessCloseCodes.has(session.left!.code)) void this.#addAttempt(session, suspect)
  }

  /** The node is shutting down: letters in flight may be acknowledged, the others wait for the next connection. */
  pause (): void {
    this.#paused = true
    for (const { onRoom } of this.#states.values()) onRoom()
  }

  async #drain (session: Session, state: DeliveryState): Promise<void> {
    state.draining = true
    while (state.hasNew && this.#canSend(session)) {
      state.hasNew = false
      try {
        await this.#drainOnce(session, state)
      } catch (error) {
        if (!isUnreachable(error)) this.#log.error({ err: error, deviceId: session.id }, 'mailbox read failed')
        await sleep(RETRY_DELAY_MS, undefined, { ref: false })
        state.hasNew = true
      }
    }
    state.draining = false
    this.#removeIfIdle(session, state)
  }

  async #drainOnce (session: Session, state: DeliveryState): Promise<void> {
    const letters = this.#letters.from(session.id, state.after)[Symbol.asyncIterator]()
    try {
      for (;;) {
        // read the letter only after the waits: it may be cancelled meanwhile
        while (this.#isFull(session, state)) await roomInWindow(state)
        const written = session.room()
        if (written) await written.catch(() => {})
        if (!this.#canSend(session)) return
        const turn = this.#turnLimiter.step()
        if (turn) await turn
        const { done, value: letter } = await letters.next()
        if (done || !this.#canSend(session)) return
        state.after = Math.max(state.after, letter.position) // a mailbox may find an older letter late
        state.inFlight.set(letter.id, letter)
        void this.#deliver(session, state, letter)
      }
    } finally {
      await letters.return?.()
    }
  }

  #isFull (session: Session, { inFlight }: DeliveryState): boolean {
    return inFlight.size >= Math.min(this.#limits.maxInFlight, session.codec.concurrency) && this.#canSend(session)
  }

  #canSend (session: Session): boolean {
    return !session.left && !this.#paused
  }

  async #deliver (session: Session, state: DeliveryState, letter: StoredLetter): Promise<void> {
    try {
      let delay: number | undefined
      do delay = await this.#tryDelivery(session, letter)
      while (delay !== undefined && await this.#isStillQueued(session, letter, delay))
    } catch (error) {
      this.#log.error({ err: error, reqId: letter.context?.id, deviceId: session.id, letterId: letter.id }, 'letter not settled')
    }
    state.inFlight.delete(letter.id)
    state.onRoom()
    this.#removeIfIdle(session, state)
  }

  /** Returns the delay before the next attempt, or undefined if there is none on this connection. */
  async #tryDelivery (session: Session, letter: StoredLetter): Promise<number | undefined> {
    // several deliveries wait for the same room, so check again after each wait
    for (let written = session.room(); written; written = session.room()) await written.catch(() => {})
    const failure = await this.#call(session, letter)
    if (failure) return await this.#handleFailure(session, letter, failure)
    await this.#settle(session, letter, 'delivered')
    return undefined
  }

  async #handleFailure (session: Session, letter: StoredLetter, failure: Failure): Promise<number | undefined> {
    const { reason, device = { code: failure.code, message: failure.message } } = failure
    if (reason === 'dropped') return undefined // the letter waits for the next connection
    if (overloadReasons.has(reason)) return RETRY_DELAY_MS
    const isUnanswered = reason === 'timeout' && session.answerTimeout !== undefined && Date.now() < letter.expiresAt
    if (isUnanswered || isInternalError(failure)) return await this.#addAttempt(session, letter)
    if (reason === 'timeout') await this.#settle(session, letter, 'expired')
    else await this.#settle(session, letter, 'refused', device)
    return undefined
  }

  /** Retries while the mailbox is unreachable or full, even after the device has disconnected: its answer must not be lost. */
  async #settle (session: Session, letter: StoredLetter, ending: Ending, device?: Detail): Promise<void> {
    this.#acknowledged.add(letter)
    for (let attempt = 1; !await this.#isSettled(session, letter, { ending, device, attempt }); attempt++) await sleep(RETRY_DELAY_MS, undefined, { ref: false })
  }

  async #isSettled (session: Session, letter: StoredLetter, { ending, device, attempt }: { ending: Ending, device: Detail | undefined, attempt: number }): Promise<boolean> {
    try {
      await this.#letters.settle(session.id, letter, ending, device)
      return true
    } catch (error) {
      if (!(error instanceof Failure) || this.#paused) throw error
      if (attempt === 1 && !isUnreachable(error)) this.#log.error({ err: error, reqId: letter.context?.id, deviceId: session.id, letterId: letter.id }, 'letter not settled')
      return false
    }
  }

  /** Waits, then tells whether to try again: not if the letter has ended meanwhile. */
  async #isStillQueued (session: Session, letter: StoredLetter, delay: number): Promise<boolean> {
    await sleep(delay, undefined, { ref: false })
    try {
      return (await this.#letters.receipt(session.id, letter.id))?.status === 'queued'
    } catch { // the mailbox cannot tell: try again
      return true
    }
  }

  /** Resolves with undefined once the device has acknowledged, or with the failure. */
  #call (session: Session, letter: StoredLetter): Promise<Failure | undefined> {
    const timeout = letter.expiresAt - Date.now()
    if (timeout <= 0) return Promise.resolve(new Failure('timeout'))
    try {
      const call = session.callFor(letter.id, contentOf(letter))
      const answered = operations.hasSubscribers ? requestAsOperation(session, letter, call, timeout, this.#checks) : request(session, call, timeout, letter.context)
      return answered.then(toUndefined, failureOf)
    } catch (error) {
      return Promise.resolve(failureOf(error))
    }
  }

  /** Counts a failed attempt. Returns the delay before the next one, or undefined if the letter is dead-lettered or has ended. */
  async #addAttempt (session: Session, letter: StoredLetter): Promise<number | undefined> {
    try {
      const attempts = await this.#letters.addAttempt(session.id, letter.id)
      if (attempts >= this.#limits.attempts) await this.#settle(session, letter, 'dead-lettered')
      else if (attempts > 0) return Math.min(RETRY_DELAY_MS * 2 ** (attempts - 1), MAX_RETRY_DELAY_MS)
      return undefined
    } catch (error) {
      this.#log.error({ err: error, reqId: letter.context?.id, deviceId: session.id, letterId: letter.id }, 'attempt not counted')
      return RETRY_DELAY_MS
    }
  }

  #removeIfIdle (session: Session, state: DeliveryState): void {
    if (!state.draining && state.inFlight.size === 0) this.#states.delete(session)
  }
}

function request (session: Session, { method, params, id }: LetterCall, timeout: number, cause: RequestLike | undefined): Promise<unknown> {
  return session.peer.call(method, params, { id, timeout, answerTimeout: session.answerTimeout, trace: traceFor(session.codec, cause) })
}

function requestAsOperation (session: Session, { id, context }: StoredLetter, call: LetterCall, timeout: number, checks: OutboundChecks | undefined): Promise<unknown> {
  const facts = { kind: 'deliver', ...factsOf(session), method: call.method, isKnown: call.method === 'message' || checks?.declares(call.method) === true, messageId: id } as const
  return operate(facts, context, cause => request(session, call, timeout, cause))
}

function roomInWindow (state: DeliveryState): Promise<void> {
  return new Promise(resolve => { state.onRoom = resolve })
}

function toUndefined (): undefined {}

/** The device failed with an internal error, which does not refuse the letter. */
function isInternalError ({ reason, device }: Failure): boolean {
  return reason === 'refused' && device?.code === reasons.internal.rpc
}

/** Any other error is a bug and is thrown on. */
function failureOf (error: unknown): Failure {
  if (error instanceof Failure) return error
  throw error
}

function contentOf ({ body }: StoredLetter): unknown {
  return typeof body === 'string' ? JSON.parse(body) : body
}
