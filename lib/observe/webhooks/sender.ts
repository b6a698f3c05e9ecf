import { Agent as HttpAgent } from 'node:http'
import { Agent as HttpsAgent } from 'node:https'
import type { FastifyBaseLogger } from 'fastify'
import type { WebhookStatus } from '../../gateway/webhook-options.ts'
import { isUnreachable } from '../../protocol/errors.ts'
import { sizeOf, type Ending, type Mailbox, type StoredLetter } from '../../storage/mailbox.ts'
import { logDeadLetter, subjectOf } from '../webhook-letter.ts'
import type { WebhookClock } from './clock.ts'
import { deadlineOf } from './queue.ts'
import { postWebhook, type WebhookResponse } from './request.ts'
import { pauseAfter, retryDelay } from './retry-delay.ts'
import type { WebhookTarget } from './target.ts'

export interface WebhookSenderParts {
  /** The name under which the mailbox keeps the events. */
  owner: string
  target: WebhookTarget
  node: string
  mailbox: Mailbox
  clock: WebhookClock
  log: FastifyBaseLogger
}

/** The events of one device. They are sent one after the other. */
interface DeviceQueue {
  readonly deviceId: string
  /** Oldest first. Of those that find no room in memory only the positions. */
  readonly events: Array<StoredLetter | number>
  /** Failed attempts to send the oldest. */
  attempts: number
  /** When it is tried next. */
  dueAt: number
  /** How the oldest has ended, until that is stored. */
  ending: Ending | undefined
}

interface RunningRequest {
  readonly startedAt: number
  readonly abort: AbortController
  done: Promise<void>
}

/** A longer `Retry-After` counts as a day. */
const MAX_RETRY_AFTER_MS = 86_400_000
const MAX_IN_FLIGHT = 8
/** Size of the events in memory. Others are read again when it is their turn. */
const MAX_HELD_BYTES = 8_388_608
const REQUEST_TIMEOUT_MS = 15_000
/** After so many failures in a row that are not due to an event, the endpoint counts as down and all its events wait. */
const MAX_FAILURES = 16
const MAILBOX_RETRY_DELAY_MS = 1_000
const LOG_INTERVAL_MS = 60_000

/** Sends the events of an endpoint while this node owns it: in the order of each device, at least once. */
export class WebhookSender {
  readonly #parts: WebhookSenderParts
  readonly #agent: HttpAgent
  /** By device: those with events. */
  readonly #queues = new Map<string, DeviceQueue>()
  readonly #ready = new Set<DeviceQueue>()
  readonly #delayed = new Set<DeviceQueue>()
  readonly #running = new Map<DeviceQueue, RunningRequest>()
  /** The position behind which the next event is read. */
  #after = 0
  #heldBytes = 0
  #hasNew = false
  #isReading = false
  #isStopped = false
  #isDisabled = false
  #loggedAt = -Infinity
  #isMailboxFailing = false
  #pausedUntil = 0
  #failures = 0
  #sent = 0
  #deadLettered = 0
  #lastFailure: WebhookStatus['lastFailure']
  #lastDeadLetter: WebhookStatus['lastDeadLetter']

  constructor (parts: WebhookSenderParts) {
    this.#parts = parts
    const options = { keepAlive: true, maxSockets: MAX_IN_FLIGHT }
    this.#agent = parts.target.url.protocol === 'https:' ? new HttpsAgent(options) : new HttpAgent(options)
  }

  get isStopped (): boolean {
    return this.#isStopped
  }

  /** Events may have been stored. While others are ready to be sent, they are not read before the next tick: a read that finds nothing is expensive. */
  wake (): void {
    this.#hasNew = true
    if (this.#ready.size === 0) this.#read()
  }

  /** Ends requests that take too long, and starts what has become due. */
  tick (): void {
    const now = this.#now()
    for (const { startedAt, abort } of this.#running.values()) if (now - startedAt >= REQUEST_TIMEOUT_MS) abort.abort()
    for (const queue of this.#delayed) if (queue.dueAt <= now && this.#delayed.delete(queue)) this.#ready.add(queue)
    this.#read()
    this.#fill()
  }

  /** Aborts the requests in flight; resolves once nothing is in progress. */
  async stop (): Promise<void> {
    this.#isStopped = true
    for (const { abort } of this.#running.values()) abort.abort()
    await Promise.all([...this.#running.values()].map(({ done }) => done))
    this.#agent.destroy()
  }

  status (): WebhookStatus {
    const isPaused = this.#now() < this.#pausedUntil
    const state = this.#isDisabled ? 'disabled' : isPaused ? 'paused' : 'sending'
    const nextAttempt = this.#nextAttempt()
    return {
      state,
      node: this.#parts.node,
      inFlight: this.#running.size,
      sent: this.#sent,
      deadLettered: this.#deadLettered,
      ...(this.#lastFailure && { lastFailure: this.#lastFailure }),
      ...(this.#lastDeadLetter && { lastDeadLetter: this.#lastDeadLetter }),
      ...(nextAttempt !== undefined && { nextAttempt })
    }
  }

  #now (): number {
    return this.#parts.clock.now()
  }

  /** Undefined if nothing waits for a time. */
  #nextAttempt (): number | undefined {
    const isWaiting = this.#ready.size + this.#delayed.size > 0
    if (!isWaiting || this.#isDisabled) return undefined
    let earliest = this.#ready.size > 0 ? this.#pausedUntil : Infinity
    for (const { dueAt } of this.#delayed) earliest = Math.min(earliest, dueAt)
    const at = Math.max(earliest, this.#pausedUntil)
    return at > this.#now() ? at : undefined
  }

  #read (): void {
    if (this.#hasNew && !this.#isReading) void this.#readNew()
  }

  /** Reads all new events, also those that cannot be sent yet: one device must not hide the events of others. The mailbox limits their number. */
  async #readNew (): Promise<void> {
    this.#isReading = true
    try {
      while (this.#hasNew && this.#canRead) {
        this.#hasNew = false
        for await (const letter of this.#parts.mailbox.letters(this.#parts.owner, this.#after)) {
          if (!this.#canRead) return
          this.#after = Math.max(this.#after, letter.position)
          this.#add(letter)
        }
      }
    } catch (error) {
      this.#hasNew = true // the next tick tries again
      this.#logMailboxError(error)
    } finally {
      this.#isReading = false
    }
  }

  get #canRead (): boolean {
    return !this.#isStopped && !this.#isDisabled
  }

  #add (letter: StoredLetter): void {
    const { deviceId } = subjectOf(letter)
    const event = this.#hold(letter)
    const known = this.#queues.get(deviceId)
    if (known) return void known.events.push(event)
    const queue: DeviceQueue = { deviceId, events: [event], attempts: 0, dueAt: 0, ending: undefined }
    this.#queues.set(deviceId, queue)
    this.#ready.add(queue)
    this.#fill()
  }

  #hold (letter: StoredLetter): StoredLetter | number {
    const size = sizeOf(letter.body)
    if (this.#heldBytes + size > MAX_HELD_BYTES) return letter.position
    this.#heldBytes += size
    return letter
  }

  #removeOldest (queue: DeviceQueue): void {
    const event = queue.events.shift()!
    if (typeof event !== 'number') this.#heldBytes -= sizeOf(event.body)
    Object.assign(queue, { attempts: 0, dueAt: 0, ending: undefined })
  }

  get #hasRoom (): boolean {
    return this.#canRead && this.#running.size < MAX_IN_FLIGHT && this.#now() >= this.#pausedUntil
  }

  #fill (): void {
    for (const queue of this.#ready) {
      if (!this.#hasRoom) return
      this.#ready.delete(queue)
      this.#run(queue)
    }
  }

  #run (queue: DeviceQueue): void {
    const running: RunningRequest = { startedAt: this.#now(), abort: new AbortController(), done: Promise.resolve() }
    this.#running.set(queue, running)
    running.done = this.#process(queue, running.abort.signal)
  }

  async #process (queue: DeviceQueue, signal: AbortSignal): Promise<void> {
    try {
      await this.#processOldest(queue, signal)
      this.#isMailboxFailing = false
    } catch (error) {
      queue.dueAt = this.#now() + MAILBOX_RETRY_DELAY_MS
      this.#logMailboxError(error)
    }
    this.#running.delete(queue)
    if (queue.events.length === 0) this.#queues.delete(queue.deviceId)
    else if (queue.dueAt > this.#now()) this.#delayed.add(queue)
    else this.#ready.add(queue)
    this.#fill()
    if (this.#ready.size === 0) this.#read()
  }

  /** Sends the oldest event of a device, then ends it in the mailbox. Throws if the mailbox fails. */
  async #processOldest (queue: DeviceQueue, signal: AbortSignal): Promise<void> {
    const oldest = queue.events[0]!
    const letter = typeof oldest === 'number' ? await this.#letterAt(oldest) : oldest
    if (letter) {
      queue.ending ??= await this.#endingOf(queue, letter, signal)
      if (!queue.ending) return
      await this.#end(letter, queue.ending)
    }
    this.#removeOldest(queue)
  }

  /** Undefined: it has ended in another way. */
  async #letterAt (position: number): Promise<StoredLetter | undefined> {
    for await (const letter of this.#parts.mailbox.letters(this.#parts.owner, position - 1)) return letter.position === position ? letter : undefined
    return undefined
  }

  async #end (letter: StoredLetter, ending: Ending): Promise<void> {
    const { mailbox, owner, target, log } = this.#parts
    const isEnded = await mailbox.settle(owner, letter.id, ending)
    if (ending === 'delivered') this.#sent++
    if (ending === 'delivered' || !isEnded) return
    this.#deadLettered++
    this.#lastDeadLetter = { id: letter.id, ...subjectOf(letter), at: this.#now() }
    logDeadLetter(log, target.name, letter)
  }

  /** Undefined: it is to be tried again. */
  async #endingOf (queue: DeviceQueue, letter: StoredLetter, signal: AbortSignal): Promise<Ending | undefined> {
    if (this.#now() >= deadlineOf(letter)) return 'dead-lettered'
    const outcome = await this.#post(letter, signal)
    if (typeof outcome !== 'string' && outcome.status >= 200 && outcome.status < 300) {
      this.#failures = 0
      return 'delivered'
    }
    if (!this.#isStopped) this.#failed(queue, letter, outcome)
    return undefined
  }

  /** Resolves with the response, or with the reason why there is none. */
  async #post ({ id, body }: StoredLetter, signal: AbortSignal): Promise<WebhookResponse | string> {
    const { target: { url, keys }, node } = this.#parts
    try {
      return await postWebhook({ url, keys, id, body: Buffer.from(body), node, agent: this.#agent, now: this.#now(), signal })
    } catch (error) {
      return signal.aborted ? 'timeout' : String((error as NodeJS.ErrnoException).code)
    }
  }

  #failed (queue: DeviceQueue, letter: StoredLetter, outcome: WebhookResponse | string): void {
    const now = this.#now()
    const reason = typeof outcome === 'string' ? outcome : `status ${outcome.status}`
    this.#logFailure(letter, reason)
    const { status = undefined, retryAfter = undefined } = typeof outcome === 'string' ? {} : outcome
    if (status === 410) this.#disable()
    else if ((status === 429 || status === 503) && retryAfter !== undefined) this.#pause(Math.min(retryAfter, MAX_RETRY_AFTER_MS))
    else {
      this.#countFailure(status === undefined || status >= 500)
      queue.dueAt = Math.min(now + retryDelay(++queue.attempts, this.#parts.clock.random()), deadlineOf(letter))
    }
  }

  /** The events stay in the mailbox, for the next sender or until they expire. */
  #disable (): void {
    this.#isDisabled = true
    for (const queues of [this.#queues, this.#ready, this.#delayed]) queues.clear()
  }

  /** A response below 500 is about its event, so it does not count. */
  #countFailure (mayBeDown: boolean): void {
    this.#failures = mayBeDown ? this.#failures + 1 : 0
    const excess = this.#failures - MAX_FAILURES
    if (excess >= 0) this.#pause(pauseAfter(excess + 1))
  }

  /** A pause does not end an earlier one that is longer. */
  #pause (milliseconds: number): void {
    this.#pausedUntil = Math.max(this.#pausedUntil, this.#now() + milliseconds)
  }

  /** Logs one failure a minute as a warning: there may be many. */
  #logFailure (letter: StoredLetter, reason: string): void {
    const { target: { name: webhook }, log } = this.#parts
    const now = this.#now()
    this.#lastFailure = { id: letter.id, ...subjectOf(letter), at: now, reason }
    const fields = { webhook, eventId: letter.id, ...subjectOf(letter), reason }
    if (reason === 'status 410') log.error(fields, 'webhook disabled: its endpoint is gone')
    else if (now - this.#loggedAt < LOG_INTERVAL_MS) log.debug(fields, 'webhook failed')
    else {
      log.warn(fields, 'webhook failed')
      this.#loggedAt = now
    }
  }

  /** Logs the first error only: those that follow are likely to be the same. An unreachable mailbox is logged elsewhere. */
  #logMailboxError (error: unknown): void {
    if (this.#isMailboxFailing || isUnreachable(error)) return
    this.#isMailboxFailing = true
    this.#parts.log.error({ err: error, webhook: this.#parts.target.name }, 'webhook queue failed')
  }
}
