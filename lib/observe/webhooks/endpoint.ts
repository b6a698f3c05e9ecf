import type { FastifyBaseLogger } from 'fastify'
import type { Answer, Backplane, Owner, Ownership, Request } from '../../cluster/backplane.ts'
import type { WebhookReport, WebhookStatus } from '../../gateway/webhook-options.ts'
import { isUnreachable } from '../../protocol/errors.ts'
import type { Mailbox, Receipt } from '../../storage/mailbox.ts'
import type { DeviceEvent } from '../device-event.ts'
import { logDeadLetter, WEBHOOK_PREFIX } from '../webhook-letter.ts'
import type { WebhookClock } from './clock.ts'
import { WebhookQueue } from './queue.ts'
import { WebhookSender } from './sender.ts'
import type { WebhookTarget } from './target.ts'

export interface WebhookEndpointParts {
  target: WebhookTarget
  node: string
  mailbox: Mailbox
  backplane: Backplane
  clock: WebhookClock
  log: FastifyBaseLogger
}

/** How often a node checks that another one sends. */
const CHECK_INTERVAL_MS = 5_000
/** Other nodes take longer to notice that a node is suspended. */
const MAX_TICK_GAP_MS = 3_000
const wake: Request = { kind: 'wake' }

/** One endpoint on one node: stores the events of this node, and sends those of all nodes while this node owns the endpoint. */
export class WebhookEndpoint {
  readonly target: WebhookTarget
  readonly #parts: WebhookEndpointParts
  readonly #owner: string
  readonly #queue: WebhookQueue
  readonly #closing = new AbortController()
  #sender: WebhookSender | undefined
  /** The newest sender, also while this node becomes the owner: others may have woken it already. */
  #newestSender: WebhookSender | undefined
  #ownership: Ownership | undefined
  #checkedAt = 0
  #tickedAt: number
  #isChecking = false
  #mustCheckAgain = false
  /** Events that the mailbox has ended, because no sender was there to give them up. */
  #expired = 0

  constructor (parts: WebhookEndpointParts) {
    const { target, mailbox, clock, log } = parts
    this.target = target
    this.#parts = parts
    this.#owner = WEBHOOK_PREFIX + target.name
    this.#tickedAt = clock.monotonic()
    this.#queue = new WebhookQueue({ owner: this.#owner, name: target.name, mailbox, now: clock.now, log, onStored: () => this.wake() })
  }

  /** Resolves once the event is stored. */
  put (event: DeviceEvent): Promise<void> {
    return this.#queue.put(event)
  }

  /** Wakes the sender on whichever node it is; without one, this node becomes it. */
  wake (): void {
    if (this.#sender) this.#sender.wake()
    else void this.#check()
  }

  tick (): void {
    this.#queue.tick()
    if (this.#wasSuspended()) this.#restart()
    else if (this.#sender) this.#sender.tick()
    else if (this.#parts.clock.now() - this.#checkedAt >= CHECK_INTERVAL_MS) void this.#check()
  }

  /** The mailbox has ended an event that has expired. */
  expired (receipt: Receipt): void {
    this.#expired++
    logDeadLetter(this.#parts.log, this.target.name, receipt)
  }

  async report (): Promise<WebhookReport> {
    const { name, publicUrl: url, types } = this.target
    const [waiting, status] = await Promise.all([this.#parts.mailbox.waiting(this.#owner), this.#status()])
    return { name, url, types, ...status, deadLettered: status.deadLettered + this.#expired, waiting, dropped: this.#queue.dropped }
  }

  /** Stores what is pending, aborts requests and leaves the endpoint to other nodes. */
  async close (): Promise<void> {
    this.#closing.abort()
    await Promise.all([this.#queue.close(), this.#sender?.stop(), this.#newestSender?.stop()])
    await this.#ownership?.release()
  }

  /** After a suspension the timers fire first, so no response that came meanwhile has been read yet. */
  #wasSuspended (): boolean {
    const before = this.#tickedAt
    this.#tickedAt = this.#parts.clock.monotonic()
    return this.#tickedAt - before > MAX_TICK_GAP_MS
  }

  /** Another node may send by now. */
  #restart (): void {
    if (this.#sender) this.#yield(this.#sender)
    void this.#check()
  }

  async #status (): Promise<WebhookStatus> {
    if (this.#sender) return this.#sender.status()
    const answer = await this.#parts.backplane.ask(this.#owner, { kind: 'describe' })
    return answer?.ok ? answer.value as WebhookStatus : { state: 'no-sender', inFlight: 0, sent: 0, deadLettered: 0 }
  }

  /** An event that is stored during a check may come too late for the sender that was asked, so it is asked again. */
  async #check (): Promise<void> {
    this.#mustCheckAgain = true
    if (this.#isChecking) return
    this.#isChecking = true
    try {
      while (this.#mustCheckAgain && !this.#sender && !this.#closing.signal.aborted) {
        this.#mustCheckAgain = false
        await this.#askOrOwn()
      }
    } catch (error) {
      if (!isUnreachable(error) && !this.#closing.signal.aborted) this.#parts.log.error({ err: error, webhook: this.target.name }, 'webhook sender not started')
    }
    this.#isChecking = false
    this.#checkedAt = this.#parts.clock.now()
  }

  /** A sender that does not answer may be suspended. It yields once it continues, because the owner with the higher generation wins. */
  async #askOrOwn (): Promise<void> {
    const answer = await this.#parts.backplane.ask(this.#owner, wake, this.#closing.signal)
    if (!answer?.ok && !this.#closing.signal.aborted) await this.#own()
  }

  async #own (): Promise<void> {
    const { node, backplane } = this.#parts
    const sender = this.#newestSender = new WebhookSender({ ...this.#parts, owner: this.#owner })
    const owner: Owner = {
      presence: { deviceId: this.#owner, node, since: Date.now() },
      answer: async request => this.#answer(sender, request),
      listensTo: () => false,
      yield: () => this.#yield(sender)
    }
    const ownership = await backplane.own(this.#owner, owner).catch(error => {
      void sender.stop() // it may have been woken already
      throw error
    })
    if (this.#closing.signal.aborted) return await ownership.release()
    if (sender.isStopped) return
    this.#ownership = ownership
    this.#sender = sender
    sender.wake()
  }

  #answer (sender: WebhookSender, { kind }: Request): Answer {
    if (sender.isStopped) return { ok: false, reason: 'dropped' }
    if (kind === 'describe') return { ok: true, value: sender.status() }
    sender.wake()
    return { ok: true, value: null }
  }

  /** Another node sends now. */
  #yield (sender: WebhookSender): void {
    if (this.#sender === sender) this.#sender = undefined
    void sender.stop()
  }
}
