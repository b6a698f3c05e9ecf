import { setImmediate as turn } from 'node:timers/promises'
import type { FastifyBaseLogger } from 'fastify'
import { lettersTopic, type Backplane, type Unwatch } from '../cluster/backplane.ts'
import { truncateDetail, Failure } from '../protocol/errors.ts'
import type { Events } from './events.ts'
import type { MailboxLimits, Ending, StoredLetter, Letter, Mailbox, PutResult, Receipt } from '../storage/mailbox.ts'
import type { Detail } from '../protocol/errors.ts'
import { MAX_TIMER_MS, type CallSignal } from '../protocol/peer.ts'
import type { Stats } from '../connection/stats.ts'
import { flatString } from '../connection/flat-string.ts'

/** How a letter ended, for whoever waits for it. */
export interface LetterOutcome {
  ending: Ending
  device?: Detail | undefined
}

export interface LettersPage {
  limit: number
  after?: number | undefined
}

/** Somebody waits for the ending of a letter. */
export interface OutcomeWait {
  /** Nothing, if it was not to be waited for. */
  outcome: Promise<LetterOutcome | undefined>
  forget (): void
}

/** A letter, as far as its ending concerns anybody. */
type EndedLetter = Pick<Letter, 'id' | 'awaitedBy'>

const SWEEP_INTERVAL_MS = 1_000

/** The mailbox, and everyone who wants to know what becomes of a letter in it. */
export class Letters {
  readonly #mailbox: Mailbox
  readonly #backplane: Backplane
  readonly #node: string
  readonly #caps: MailboxLimits
  readonly #stats: Stats
  readonly #events: Events
  readonly #log: FastifyBaseLogger
  readonly #awaited = new Map<string, Set<(outcome?: LetterOutcome) => void>>()
  /** What is under way in the mailbox. */
  #underway = 0
  #idle = (): void => {}
  #nextSweep: NodeJS.Timeout | undefined
  readonly #closing = new AbortController()
  #isReachable = true
  #isSweepFailing = false
  readonly #unwatch: Unwatch

  constructor (
    { mailbox, backplane, node, caps, stats, events, log, sweeps = true }:
    { mailbox: Mailbox, backplane: Backplane, node: string, caps: MailboxLimits, stats: Stats, events: Events, log: FastifyBaseLogger, sweeps?: boolean | undefined }
  ) {
    this.#mailbox = mailbox
    this.#backplane = backplane
    this.#node = node
    this.#caps = caps
    this.#stats = stats
    this.#events = events
    this.#log = log
    mailbox.onDamage?.(damage => {
      stats.count('letters', 'damaged')
      log.error(damage, 'a record of the mailbox is damaged')
    })
    mailbox.onTrouble?.(error => log.error({ err: error }, 'the mailbox is in trouble'))
    if (sweeps) this.#sweepIn(SWEEP_INTERVAL_MS)
    this.#unwatch = backplane.watch(lettersTopic(node), ({ id, data }) => {
      this.#settle(id, data as LetterOutcome)
      return 0
    })
  }

  async put (deviceId: string, letter: Letter): Promise<PutResult> {
    const put = await this.#mailbox.put(flatString(deviceId), letter, this.#caps)
    if (put.fresh) this.#stats.count('letters', 'queued')
    if (put.replaced) this.#told(deviceId, put.replaced, { ending: 'replaced' })
    return put
  }

  from (deviceId: string, after: number): AsyncIterable<StoredLetter> {
    return this.#mailbox.letters(deviceId, after)
  }

  waiting (deviceId: string): Promise<number> {
    return this.#mailbox.waiting(deviceId)
  }

  /** For a device that comes while the mailbox cannot be reached: as if none waited. It is rung later. */
  async waitingIfKnown (deviceId: string): Promise<number> {
    try {
      return await this.#mailbox.waiting(deviceId)
    } catch (error) {
      if (isUnreachable(error)) return 0
      throw error
    }
  }

  addAttempt (deviceId: string, letterId: string): Promise<number> {
    return this.#track(this.#mailbox.addAttempt(deviceId, letterId))
  }

  receipt (deviceId: string, letterId: string): Promise<Receipt | undefined> {
    return this.#mailbox.receipt(deviceId, letterId)
  }

  /** The receipts of those that wait, and the position behind which the next page begins. */
  async page (deviceId: string, { limit, after = 0 }: LettersPage): Promise<{ receipts: Receipt[], next: number | undefined }> {
    const receipts: Receipt[] = []
    let last = after
    for await (const { id, position } of this.#mailbox.letters(deviceId, after)) {
      if (receipts.length === limit) return { receipts, next: last }
      const receipt = await this.#mailbox.receipt(deviceId, id)
      if (receipt) receipts.push(receipt)
      last = position
    }
    return { receipts, next: undefined }
  }

  /** False: it did not wait any more. */
  async settle (deviceId: string, letter: EndedLetter, ending: Ending, device?: Detail): Promise<boolean> {
    const waited = await this.#track(this.#mailbox.settle(deviceId, letter.id, ending, truncateDetail(device)))
    if (waited) this.#told(deviceId, letter, { ending, device })
    return waited
  }

  async purge (deviceId: string): Promise<number> {
    let purged = 0
    for await (const letter of this.#mailbox.letters(deviceId)) {
      if (await this.settle(deviceId, letter, 'cancelled')) purged++
    }
    return purged
  }

  /** Takes out all that has expired; other work of the event loop comes between. */
  async sweep (now: number): Promise<void> {
    const { signal } = this.#closing
    while (!signal.aborted) {
      const expired = await this.#mailbox.sweep(now, signal)
      if (expired.length === 0) return
      for (const { deviceId, receipt } of expired) this.#told(deviceId, receipt, { ending: 'expired' })
      await turn()
    }
  }

  /** Resolves with how the letter ended, or with nothing after `timeout`. */
  outcome (letterId: string, timeout: number, signal?: CallSignal): OutcomeWait {
    const awaiting = this.#awaited.get(letterId) ?? new Set()
    let forget!: () => void
    const outcome = new Promise<LetterOutcome | undefined>(resolve => {
      const settle = (outcome?: LetterOutcome) => {
        clearTimeout(timer)
        signal?.removeEventListener('abort', forget)
        if (awaiting.delete(settle) && awaiting.size === 0) this.#awaited.delete(letterId)
        resolve(outcome)
      }
      forget = () => settle()
      const timer = setTimeout(forget, Math.min(timeout, MAX_TIMER_MS))
      this.#awaited.set(letterId, awaiting.add(settle))
    })
    signal?.addEventListener('abort', forget, { once: true })
    if (signal?.aborted) forget()
    return { outcome, forget }
  }

  /** Whoever still waits is told that the letter does too. */
  giveUp (): void {
    for (const awaiting of this.#awaited.values()) for (const settle of awaiting) settle()
  }

  /** Resolves once nothing is under way in the mailbox any more, and it is closed. */
  async close (): Promise<void> {
    clearTimeout(this.#nextSweep)
    this.#closing.abort()
    this.#unwatch()
    this.giveUp()
    if (this.#underway > 0) await new Promise<void>(resolve => { this.#idle = resolve })
    await this.#mailbox.close?.()
  }

  /** What the closing of the mailbox must wait for. */
  async #track<T> (work: Promise<T>): Promise<T> {
    this.#underway++
    try {
      return await work
    } finally {
      if (--this.#underway === 0) this.#idle()
    }
  }

  /** One sweep at a time: one that took longer than the interval is followed by the next at once. */
  #sweepIn (delay: number): void {
    this.#nextSweep = setTimeout(() => void this.#track(this.#sweepNow()), delay).unref()
  }

  async #sweepNow (): Promise<void> {
    const since = performance.now()
    try {
      await this.sweep(Date.now())
      this.#reach(true)
      this.#isSweepFailing = false
    } catch (error) {
      if (isUnreachable(error)) this.#reach(false)
      else this.#failSweep(error)
    }
    if (!this.#closing.signal.aborted) this.#sweepIn(Math.max(since + SWEEP_INTERVAL_MS - performance.now(), 0))
  }

  /** Once is said enough: the next sweep is likely to fail as this one did. */
  #failSweep (error: unknown): void {
    if (!this.#isSweepFailing) this.#log.error({ err: error }, 'letters cannot be swept')
    this.#isSweepFailing = true
  }

  #reach (isReachable: boolean): void {
    if (isReachable !== this.#isReachable) this.#log.warn({ node: this.#node }, isReachable ? 'the mailbox can be reached again' : 'the mailbox cannot be reached')
    this.#isReachable = isReachable
  }

  #told (deviceId: string, { id, awaitedBy }: EndedLetter, outcome: LetterOutcome): void {
    this.#stats.count('letters', outcome.ending)
    this.#log.debug({ deviceId, letterId: id, ending: outcome.ending }, 'letter settled')
    this.#events.emit(outcome.ending, { deviceId, id })
    this.#settle(id, outcome)
    if (awaitedBy !== undefined && awaitedBy !== this.#node) void this.#tell(awaitedBy, id, outcome)
  }

  #settle (letterId: string, outcome: LetterOutcome): void {
    for (const settle of this.#awaited.get(letterId) ?? []) settle(outcome)
  }

  async #tell (node: string, id: string, data: LetterOutcome): Promise<void> {
    try {
      await this.#backplane.publish({ id, topic: lettersTopic(node), data })
    } catch (error) {
      this.#log.warn({ err: error, letterId: id }, 'nobody can be told of a letter')
    }
  }
}

/** The mailbox is of the kind that the whole node knows to be away: once is said enough. */
export function isUnreachable (error: unknown): boolean {
  return error instanceof Failure && error.reason === 'unreachable'
}

/** The failure that stands for a letter which did not arrive. */
export function failureOf ({ ending, device }: LetterOutcome): Failure {
  if (ending === 'refused') return new Failure('refused', { detail: device })
  if (ending === 'expired') return new Failure('timeout', { message: 'The message expired before it was acknowledged' })
  return new Failure('settled', { message: `The message was ${ending}` })
}
