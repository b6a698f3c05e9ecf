import { withDeadline } from '../protocol/deadline.ts'
import { invoke } from '../protocol/user-code.ts'
import type { Mailbox } from '../storage/mailbox.ts'

const TIMEOUT_MS = 1_000

/** Asks a mailbox how many letters wait. Callers at the same time share one question, and a mailbox that does not answer is not asked again. */
export class MailboxSize {
  readonly #mailbox: Pick<Mailbox, 'size'>
  #isAsking = false
  #reading: Promise<number | undefined> | undefined

  constructor (mailbox: Pick<Mailbox, 'size'>) {
    this.#mailbox = mailbox
  }

  /** Undefined if the mailbox does not count letters, fails, returns no number, or takes too long. Never rejects. */
  read (): Promise<number | undefined> {
    return this.#reading ??= this.#ask().finally(() => { this.#reading = undefined })
  }

  async #ask (): Promise<number | undefined> {
    if (!this.#mailbox.size || this.#isAsking) return undefined
    this.#isAsking = true
    const asked = invoke(() => this.#mailbox.size!()).finally(() => { this.#isAsking = false })
    try {
      const size = await withDeadline(asked, TIMEOUT_MS, () => new Error('no answer in time'))
      return Number.isSafeInteger(size) && size >= 0 ? size : undefined
    } catch {
      return undefined
    }
  }
}
