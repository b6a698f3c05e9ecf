import { setTimeout as sleep } from 'node:timers/promises'
import type { Link } from './link.ts'

/** Failed work is retried after this delay, which doubles up to the maximum. */
const MIN_RETRY_DELAY_MS = 250
const MAX_RETRY_DELAY_MS = 1_000
const CONCURRENCY = 64

/** Items to work on while the link is up, until the work on each has succeeded. */
export class RetryQueue<Item> {
  readonly #link: Link
  /** Resolves with false where the item must be worked on again. */
  readonly #work: (item: Item) => Promise<boolean>
  readonly #items = new Set<Item>()
  #isRunning = false

  constructor (link: Link, work: (item: Item) => Promise<boolean>) {
    this.#link = link
    this.#work = work
  }

  add (items: Iterable<Item>): void {
    for (const item of items) this.#items.add(item)
    void this.#run()
  }

  /** Works on an item of the queue now. It stays in the queue if that fails. */
  async process (item: Item): Promise<void> {
    this.#items.add(item)
    await this.#process(item)
    void this.#run()
  }

  /** Failures are retried last in the next pass, so they delay no other item. */
  async #run (): Promise<void> {
    if (this.#isRunning) return
    this.#isRunning = true
    let delay = MIN_RETRY_DELAY_MS
    let isReported = false
    while (this.#link.up && this.#items.size > 0) {
      const errors = await this.#pass()
      if (errors.length === 0) continue
      if (!isReported) this.#link.trouble(errors[0])
      isReported = true
      await sleep(delay, undefined, { ref: false })
      delay = Math.min(2 * delay, MAX_RETRY_DELAY_MS)
    }
    this.#isRunning = false
  }

  /** One concurrent pass over all items. It stops early where many fail, because each failure may take a timeout. */
  async #pass (): Promise<unknown[]> {
    const items = [...this.#items].values()
    const errors: unknown[] = []
    const processEach = async () => {
      for (const item of items) {
        const error = await this.#process(item)
        if (error) errors.push(error)
        if (errors.length >= CONCURRENCY) return
      }
    }
    await Promise.all(Array.from({ length: CONCURRENCY }, processEach))
    return errors
  }

  /** Resolves with the error where the work failed. */
  async #process (item: Item): Promise<unknown> {
    try {
      if (await this.#work(item)) this.#items.delete(item)
      return undefined
    } catch (error) {
      if (this.#items.delete(item)) this.#items.add(item)
      return error
    }
  }
}
