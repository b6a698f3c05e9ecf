import { setImmediate as nextTurn } from 'node:timers/promises'
import type { FastifyBaseLogger } from 'fastify'
import { isUnreachable } from '../protocol/errors.ts'
import type { ExpiredLetter, Mailbox } from '../storage/mailbox.ts'

const INTERVAL_MS = 1_000

/** Removes the letters that have expired from the mailbox, once a second. */
export class ExpirySweeper {
  readonly #mailbox: Mailbox
  readonly #node: string
  readonly #log: FastifyBaseLogger
  readonly #onExpired: (expired: ExpiredLetter) => void
  readonly #closing = new AbortController()
  #timer: NodeJS.Timeout | undefined
  #sweeping: Promise<void> | undefined
  #isReachable = true
  #isFailing = false

  constructor ({ mailbox, node, log, onExpired }: { mailbox: Mailbox, node: string, log: FastifyBaseLogger, onExpired: (expired: ExpiredLetter) => void }) {
    this.#mailbox = mailbox
    this.#node = node
    this.#log = log
    this.#onExpired = onExpired
  }

  start (delay = INTERVAL_MS): void {
    this.#timer = setTimeout(() => { this.#sweeping = this.#sweepInTurn() }, delay).unref()
  }

  /** Removes all expired letters, in batches; yields to the event loop between them. */
  async sweep (now: number): Promise<void> {
    const { signal } = this.#closing
    while (!signal.aborted) {
      const expired = await this.#mailbox.sweep(now, signal)
      if (expired.length === 0) return
      for (const one of expired) this.#onExpired(one)
      await nextTurn()
    }
  }

  /** Resolves once the sweep in progress has stopped. */
  async close (): Promise<void> {
    clearTimeout(this.#timer)
    this.#closing.abort()
    await this.#sweeping
  }

  /** Sweeps never overlap: after one that took longer than the interval, the next begins at once. */
  async #sweepInTurn (): Promise<void> {
    const startedAt = performance.now()
    try {
      await this.sweep(Date.now())
      this.#setReachable(true)
      this.#isFailing = false
    } catch (error) {
      if (isUnreachable(error)) this.#setReachable(false)
      else this.#failed(error)
    }
    if (!this.#closing.signal.aborted) this.start(Math.max(startedAt + INTERVAL_MS - performance.now(), 0))
  }

  /** Logs the first failure only: the next sweeps are likely to fail in the same way. */
  #failed (error: unknown): void {
    if (!this.#isFailing) this.#log.error({ err: error }, 'sweep failed')
    this.#isFailing = true
  }

  #setReachable (isReachable: boolean): void {
    if (isReachable !== this.#isReachable) this.#log.warn({ node: this.#node }, isReachable ? 'mailbox reachable again' : 'mailbox unreachable')
    this.#isReachable = isReachable
  }
}
