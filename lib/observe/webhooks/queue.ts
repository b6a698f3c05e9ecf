import { setTimeout as sleep } from 'node:timers/promises'
import type { FastifyBaseLogger } from 'fastify'
import { LoggedFailure } from '../../messaging/events.ts'
import { Failure, isUnreachable, type Reason } from '../../protocol/errors.ts'
import { describeThrown } from '../../protocol/user-code.ts'
import type { Letter, Mailbox } from '../../storage/mailbox.ts'
import type { DeviceEvent } from '../device-event.ts'
import { encodeCloudEvent } from './cloud-event.ts'

interface WebhookQueueParts {
  /** The name under which the mailbox keeps the events. No device has such a name. */
  owner: string
  name: string
  mailbox: Mailbox
  now: () => number
  log: FastifyBaseLogger
  onStored: () => void
}

/** How long an event is sent again: a day. */
const EVENT_TTL_MS = 86_400_000
/** The sender gives an event up before the mailbox does, because it reports more. */
const EXPIRY_DELAY_MS = 60_000
const LIMITS = { letters: 10_000, bytes: 33_554_432 }
/** Events of this node that are being stored. */
const MAX_PENDING = 1_000
/** While the queue is full, the mailbox is not asked for each event. */
const FULL_PAUSE_MS = 1_000
const fullReasons = new Set<Reason>(['mailbox-full', 'store-full'])
const RETRY_DELAY_MS = 1_000
const LOG_INTERVAL_MS = 60_000

/** Puts the events of this node into the queue of an endpoint, in the order in which they happened. */
export class WebhookQueue {
  readonly #parts: WebhookQueueParts
  readonly #closing = new AbortController()
  #pending = 0
  #lastPut: Promise<unknown> = Promise.resolve()
  #isUnreachable = false
  #fullUntil = 0
  #loggedDrops = 0
  #loggedAt = -Infinity
  #lastReason = ''
  /** Events that were not stored. */
  dropped = 0

  constructor (parts: WebhookQueueParts) {
    this.#parts = parts
  }

  /** Resolves once the event is stored; rejects if it is dropped. */
  async put (event: DeviceEvent): Promise<void> {
    if (this.#pending >= MAX_PENDING || this.#parts.now() < this.#fullUntil) throw this.#drop('queue full')
    // the device repeats a message that was not answered, so it need not wait in memory
    if (event.type === 'message' && this.#isUnreachable) throw this.#drop('mailbox unreachable')
    const letter = letterOf(event, this.#parts.now())
    this.#pending++
    try {
      await this.#inOrder(() => this.#store(letter, event.type === 'message'))
    } catch (error) {
      if (error instanceof Failure && fullReasons.has(error.reason)) this.#fullUntil = this.#parts.now() + FULL_PAUSE_MS
      throw this.#drop(describeThrown(error))
    } finally {
      this.#pending--
    }
    this.#parts.onStored()
  }

  /** Logs events that were dropped, at most once a minute. */
  tick (): void {
    const now = this.#parts.now()
    if (this.dropped === this.#loggedDrops || now - this.#loggedAt < LOG_INTERVAL_MS) return
    this.#parts.log.error({ webhook: this.#parts.name, dropped: this.dropped - this.#loggedDrops, reason: this.#lastReason }, 'webhook events dropped')
    this.#loggedDrops = this.dropped
    this.#loggedAt = now
  }

  /** Resolves once nothing is being stored. What still waits for the mailbox is dropped. */
  async close (): Promise<void> {
    this.#closing.abort()
    await this.#lastPut
    this.tick()
  }

  /** A shared mailbox may store concurrent letters in any order, so they are put one after the other. */
  #inOrder (store: () => Promise<void>): Promise<void> {
    const previous = this.#lastPut
    const stored = this.#parts.mailbox.shared ? previous.then(store) : store()
    this.#lastPut = Promise.allSettled([previous, stored])
    return stored
  }

  async #store (letter: Letter, isMessage: boolean): Promise<void> {
    for (;;) {
      try {
        await this.#parts.mailbox.put(this.#parts.owner, letter, LIMITS)
        this.#isUnreachable = false
        return
      } catch (error) {
        if (isMessage || !isUnreachable(error)) throw error
        this.#isUnreachable = true
        await sleep(RETRY_DELAY_MS, undefined, { ref: false, signal: this.#closing.signal })
      }
    }
  }

  #drop (reason: string): LoggedFailure {
    this.dropped++
    this.#lastReason = reason
    return new LoggedFailure('store-full')
  }
}

/** The digest of an event's letter is its type and its device, which a receipt keeps. */
function letterOf (event: DeviceEvent, now: number): Letter {
  return { id: event.id, body: encodeCloudEvent(event), expiresAt: now + EVENT_TTL_MS + EXPIRY_DELAY_MS, digest: `${event.type} ${event.deviceId}` }
}

/** When an event is given up. */
export function deadlineOf ({ expiresAt }: Pick<Letter, 'expiresAt'>): number {
  return expiresAt - EXPIRY_DELAY_MS
}
