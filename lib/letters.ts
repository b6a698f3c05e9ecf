import type { FastifyBaseLogger } from 'fastify'
import { lettersOf, type Backplane, type Unwatch } from './backplane.ts'
import { Failure } from './errors.ts'
import type { Events } from './events.ts'
import type { Caps, Ending, Kept, Letter, Mailbox, Put, Receipt } from './mailbox.ts'
import type { Detail } from './errors.ts'
import type { Stats } from './stats.ts'
import { detached } from './text.ts'

/** How a letter ended, for whoever waits for it. */
export interface Outcome {
  ending: Ending
  device?: Detail | undefined
}

export interface LettersPage {
  limit: number
  after?: number | undefined
}

type Addressed = Pick<Letter, 'id' | 'awaitedBy'>

/** The mailbox, and everyone who wants to know what becomes of a letter in it. */
export class Letters {
  readonly #mailbox: Mailbox
  readonly #backplane: Backplane
  readonly #node: string
  readonly #caps: Caps
  readonly #stats: Stats
  readonly #events: Events
  readonly #log: FastifyBaseLogger
  readonly #awaited = new Map<string, (outcome: Outcome) => void>()
  readonly #unwatch: Unwatch

  constructor (
    { mailbox, backplane, node, caps, stats, events, log }:
    { mailbox: Mailbox, backplane: Backplane, node: string, caps: Caps, stats: Stats, events: Events, log: FastifyBaseLogger }
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
    this.#unwatch = backplane.watch(lettersOf(node), ({ id, data }) => {
      this.#awaited.get(id)?.(data as Outcome)
      return 0
    })
  }

  async put (deviceId: string, letter: Letter): Promise<Put> {
    const put = await this.#mailbox.put(detached(deviceId), letter, this.#caps)
    if (put.fresh) this.#stats.count('letters', 'queued')
    if (put.replaced !== undefined) await this.#lost(deviceId, put.replaced, 'replaced')
    return put
  }

  from (deviceId: string, after: number): AsyncIterable<Kept> {
    return this.#mailbox.letters(deviceId, after)
  }

  waiting (deviceId: string): Promise<number> {
    return this.#mailbox.waiting(deviceId)
  }

  strike (deviceId: string, letterId: string): Promise<number> {
    return this.#mailbox.strike(deviceId, letterId)
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
  async settle (deviceId: string, letter: Addressed, ending: Ending, device?: Detail): Promise<boolean> {
    const waited = await this.#mailbox.settle(deviceId, letter.id, ending, device)
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

  async sweep (now: number): Promise<void> {
    for (const { deviceId, letterId } of await this.#mailbox.sweep(now)) await this.#lost(deviceId, letterId, 'expired')
  }

  /** Resolves with how the letter ended, or with nothing after `timeout`. */
  outcome (letterId: string, timeout: number, signal?: AbortSignal): { outcome: Promise<Outcome | undefined>, forget: () => void } {
    let settle!: (outcome?: Outcome) => void
    const outcome = new Promise<Outcome | undefined>(resolve => { settle = resolve })
    const forget = () => settle()
    const timer = setTimeout(forget, timeout)
    signal?.addEventListener('abort', forget, { once: true })
    if (signal?.aborted) forget()
    this.#awaited.set(letterId, settle)
    void outcome.then(() => {
      clearTimeout(timer)
      signal?.removeEventListener('abort', forget)
      if (this.#awaited.get(letterId) === settle) this.#awaited.delete(letterId)
    })
    return { outcome, forget }
  }

  async close (): Promise<void> {
    this.#unwatch()
    await this.#mailbox.close?.()
  }

  /** The mailbox took it out by itself; its receipt knows who waits. */
  async #lost (deviceId: string, letterId: string, ending: Ending): Promise<void> {
    const receipt = await this.#mailbox.receipt(deviceId, letterId)
    this.#told(deviceId, receipt ?? { id: letterId }, { ending })
  }

  #told (deviceId: string, { id, awaitedBy }: Addressed, outcome: Outcome): void {
    this.#stats.count('letters', outcome.ending)
    this.#log.debug({ deviceId, letterId: id, ending: outcome.ending }, 'letter settled')
    this.#events.emit(outcome.ending, { deviceId, id })
    if (awaitedBy === this.#node) this.#awaited.get(id)?.(outcome)
    else if (awaitedBy !== undefined) this.#tell(awaitedBy, id, outcome)
  }

  async #tell (node: string, id: string, data: Outcome): Promise<void> {
    try {
      await this.#backplane.publish({ id, topic: lettersOf(node), data })
    } catch (error) {
      this.#log.warn({ err: error, letterId: id }, 'nobody can be told of a letter')
    }
  }
}

/** The failure that stands for a letter which did not arrive. */
export function failureOf ({ ending, device }: Outcome): Failure {
  if (ending === 'refused') return new Failure('refused', { detail: device })
  if (ending === 'expired') return new Failure('timeout', { message: 'The message expired before it was acknowledged' })
  return new Failure('settled', { message: `The message was ${ending}` })
}
