import type { FastifyBaseLogger } from 'fastify'
import { lettersTopic, type Backplane, type Unwatch } from '../cluster/backplane.ts'
import { truncateDetail, isUnreachable, Failure } from '../protocol/errors.ts'
import type { Events } from './events.ts'
import type { ExpiredLetter, MailboxLimits, Ending, StoredLetter, Letter, Mailbox, PutResult, Receipt } from '../storage/mailbox.ts'
import type { Detail } from '../protocol/errors.ts'
import { MAX_TIMER_MS, type CallSignal } from '../protocol/peer.ts'
import type { Stats } from '../connection/stats.ts'
import { flatString } from '../connection/flat-string.ts'

/** How a letter ended, and the error of a device that refused it. */
export interface LetterOutcome {
  ending: Ending
  device?: Detail | undefined
}

export interface LettersPage {
  limit: number
  /** The position behind which the page begins. */
  after?: number | undefined
}

/** A wait for the ending of a letter. */
export interface OutcomeWait {
  /** Undefined after a timeout, an abort or `cancel`. */
  outcome: Promise<LetterOutcome | undefined>
  cancel (): void
}

/** The letter, the node that waits for its ending, and the request that caused it. A receipt does not name the request. */
type EndedLetter = Pick<Letter, 'id' | 'awaitedBy' | 'context'>

/** The mailbox of a node: counts and logs what happens to letters, and resolves the waits for their endings on any node. */
export class Letters {
  readonly #mailbox: Mailbox
  readonly #backplane: Backplane
  readonly #node: string
  readonly #limits: MailboxLimits
  readonly #stats: Stats
  readonly #events: Events
  readonly #log: FastifyBaseLogger
  readonly #waits = new Map<string, Set<(outcome?: LetterOutcome) => void>>()
  /** Writes in progress: the mailbox is closed when there are none. */
  #pendingWrites = 0
  #onIdle = (): void => {}
  readonly #unwatch: Unwatch

  constructor (
    { mailbox, backplane, node, limits, stats, events, log }:
    { mailbox: Mailbox, backplane: Backplane, node: string, limits: MailboxLimits, stats: Stats, events: Events, log: FastifyBaseLogger }
  ) {
    this.#mailbox = mailbox
    this.#backplane = backplane
    this.#node = node
    this.#limits = limits
    this.#stats = stats
    this.#events = events
    this.#log = log
    mailbox.onDamage?.(damage => {
      stats.count('letters', 'damaged')
      log.error(damage, 'mailbox record damaged')
    })
    mailbox.onTrouble?.(error => log.error({ err: error }, 'mailbox error'))
    this.#unwatch = backplane.watch(lettersTopic(node), ({ id, data }) => {
      this.#resolveWaits(id, data as LetterOutcome)
      return 0
    })
  }

  async put (deviceId: string, letter: Letter): Promise<PutResult> {
    const result = await this.#mailbox.put(flatString(deviceId), letter, this.#limits)
    if (result.fresh) this.#queued(deviceId, letter)
    if (result.replaced) this.#ended(deviceId, result.replaced, { ending: 'replaced' })
    return result
  }

  from (deviceId: string, after: number): AsyncIterable<StoredLetter> {
    return this.#mailbox.letters(deviceId, after)
  }

  waiting (deviceId: string): Promise<number> {
    return this.#mailbox.waiting(deviceId)
  }

  /** 0 if the mailbox cannot be reached, so that a device can connect all the same. Its delivery is woken later. */
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

  /** The receipts of the letters that wait, and the position behind which the next page begins, if there is one. */
  async page (deviceId: string, { limit, after = 0 }: LettersPage): Promise<{ receipts: Receipt[], next: number | undefined }> {
    const receipts: Receipt[] = []
    let last = after
    for await (const { id, position } of this.#mailbox.letters(deviceId, after)) {
      if (receipts.length === limit) return { receipts, next: last }
      const receipt = await this.#mailbox.receipt(deviceId, id)
      if (receipt) receipts.push(receipt)
      last = Math.max(last, position)
    }
    return { receipts, next: undefined }
  }

  /** False: the letter had ended already. */
  async settle (deviceId: string, letter: EndedLetter, ending: Ending, device?: Detail): Promise<boolean> {
    const isEnded = await this.#track(this.#mailbox.settle(deviceId, letter.id, ending, truncateDetail(device)))
    if (isEnded) this.#ended(deviceId, letter, { ending, device })
    return isEnded
  }

  async purge (deviceId: string): Promise<number> {
    let purged = 0
    for await (const letter of this.#mailbox.letters(deviceId)) {
      if (await this.settle(deviceId, letter, 'cancelled')) purged++
    }
    return purged
  }

  /** The mailbox has removed a letter that has expired. */
  expired ({ deviceId, receipt }: ExpiredLetter): void {
    this.#ended(deviceId, receipt, { ending: 'expired' })
  }

  /** Waits at most `timeout` milliseconds for the letter to end. */
  outcome (letterId: string, timeout: number, signal?: CallSignal): OutcomeWait {
    const waits = this.#waits.get(letterId) ?? new Set()
    let cancel!: () => void
    const outcome = new Promise<LetterOutcome | undefined>(resolve => {
      const finish = (outcome?: LetterOutcome) => {
        clearTimeout(timer)
        signal?.removeEventListener('abort', cancel)
        if (waits.delete(finish) && waits.size === 0) this.#waits.delete(letterId)
        resolve(outcome)
      }
      cancel = () => finish()
      const timer = setTimeout(cancel, Math.min(timeout, MAX_TIMER_MS))
      this.#waits.set(letterId, waits.add(finish))
    })
    signal?.addEventListener('abort', cancel, { once: true })
    if (signal?.aborted) cancel()
    return { outcome, cancel }
  }

  /** Ends all waits: their senders learn that the letter is still queued. */
  stopWaiting (): void {
    for (const waits of this.#waits.values()) for (const finish of waits) finish()
  }

  /** Waits for the writes in progress, then closes the mailbox. */
  async close (): Promise<void> {
    this.#unwatch()
    this.stopWaiting()
    if (this.#pendingWrites > 0) await new Promise<void>(resolve => { this.#onIdle = resolve })
    await this.#mailbox.close?.()
  }

  /** Makes `close` wait for the work. */
  async #track<T> (work: Promise<T>): Promise<T> {
    this.#pendingWrites++
    try {
      return await work
    } finally {
      if (--this.#pendingWrites === 0) this.#onIdle()
    }
  }

  #queued (deviceId: string, { id, context }: Letter): void {
    this.#stats.count('letters', 'queued')
    this.#log.debug({ reqId: context?.id, deviceId, letterId: id }, 'letter queued')
  }

  #ended (deviceId: string, { id, awaitedBy, context }: EndedLetter, outcome: LetterOutcome): void {
    this.#stats.count('letters', outcome.ending)
    this.#log.debug({ reqId: context?.id, deviceId, letterId: id, ending: outcome.ending }, 'letter settled')
    this.#events.emit(outcome.ending, { deviceId, id })
    this.#resolveWaits(id, outcome)
    if (awaitedBy !== undefined && awaitedBy !== this.#node) void this.#publish(awaitedBy, id, outcome, context?.id)
  }

  #resolveWaits (letterId: string, outcome: LetterOutcome): void {
    for (const finish of this.#waits.get(letterId) ?? []) finish(outcome)
  }

  async #publish (node: string, id: string, data: LetterOutcome, reqId: string | undefined): Promise<void> {
    try {
      await this.#backplane.publish({ id, topic: lettersTopic(node), data })
    } catch (error) {
      this.#log.warn({ err: error, reqId, letterId: id }, 'letter outcome not published')
    }
  }
}

/** The failure of a confirmed send whose letter was not delivered. */
export function failureOf ({ ending, device }: LetterOutcome): Failure {
  if (ending === 'refused') return new Failure('refused', { detail: device })
  if (ending === 'expired') return new Failure('timeout', { message: 'The message expired before it was acknowledged' })
  return new Failure('settled', { message: `The message was ${ending}` })
}
