import { randomBytes } from 'node:crypto'
import { Failure, type Detail } from '../protocol/errors.ts'
import type { Health } from '../protocol/health.ts'
import type { Ending, ExpiredLetter, Letter, Mailbox, MailboxLimits, PutResult, Receipt, StoredLetter } from '../storage/mailbox.ts'
import { decodeLetter, decodeReceipt, encodeLetter, receiptOf, shiftTimes, type EndingRecord } from './letter-format.ts'
import { checkSize, type Link } from './link.ts'
import { addAttemptScript, countScript, dueScript, pageScript, putScript, receiptScript, settleScript } from './mailbox-scripts.ts'
import type { ServerClock } from './server-clock.ts'

interface LettersPage {
  letters: StoredLetter[]
  isLast: boolean
}

const DAY_MS = 86_400_000
const MAX_PER_SWEEP = 100
const MAX_PAGE_LETTERS = 32
const MAX_PAGE_BYTES = 1_048_576
/** A page that is older is read again, because its letters may have been settled meanwhile. */
const MAX_PAGE_AGE_MS = 50
const MAX_UNANSWERED_CALLS = 10_000

/** The mailbox of a link, which all nodes share. It leaves the link to its caller. */
export function mailboxOver (link: Link, clock: ServerClock, keepReceipts = DAY_MS): Mailbox {
  if (!Number.isSafeInteger(keepReceipts) || keepReceipts < 1) throw new Error('fastify-devices/redis: keepReceipts must be a number of milliseconds, at least 1')
  return new RedisMailbox(link, clock, keepReceipts)
}

/** Each operation is one script, so nothing happens between its steps. All stored times are times of the clock of Redis. */
class RedisMailbox implements Mailbox {
  readonly shared = true
  readonly #link: Link
  readonly #clock: ServerClock
  readonly #keepReceipts: number
  /** Begins the id of each call that ends a letter. */
  readonly #instance = randomBytes(9).toString('base64url')
  #calls = 0
  /** The newest calls that may have ended a letter, although their answer was lost. A retry counts as the first call. */
  readonly #unansweredCalls = new Set<string>()
  /** Letters that the last sweep may have ended, although the answer was lost. */
  #unreported: string[] = []

  constructor (link: Link, clock: ServerClock, keepReceipts: number) {
    this.#link = link
    this.#clock = clock
    this.#keepReceipts = keepReceipts
  }

  async put (deviceId: string, letter: Letter, limits: MailboxLimits): Promise<PutResult> {
    const receipt = receiptOf(letter, Date.now())
    const stored = shiftTimes(receipt, this.#clock.ahead)
    const record = encodeLetter(letter, stored)
    checkSize(record)
    const replaced: EndingRecord = { status: 'replaced', at: stored.at }
    const args = [deviceId, letter.id, record, stored.expiresAt, limits.letters, limits.bytes, JSON.stringify(replaced), this.#keepReceipts]
    const [outcome, other] = await this.#link.run(putScript, [''], args) as [Buffer, Buffer?]
    if (outcome.toString() === 'full') throw new Failure('mailbox-full')
    if (outcome.toString() === 'known') return { receipt: this.#decodeReceipt(other!).receipt, fresh: false }
    return { receipt, fresh: true, ...(other && { replaced: this.#decodeReceipt(other).receipt }) }
  }

  async * letters (deviceId: string, after = 0): AsyncGenerator<StoredLetter> {
    let position = after
    let isLast = false
    while (!isLast) {
      const page = await this.#readPage(deviceId, position)
      const readAt = performance.now()
      isLast = page.isLast
      for (const letter of page.letters) {
        if (performance.now() - readAt > MAX_PAGE_AGE_MS) {
          isLast = false
          break
        }
        yield letter
        position = letter.position
      }
    }
  }

  async waiting (deviceId: string): Promise<number> {
    return await this.#link.run(countScript, [`order:${deviceId}`], []) as number
  }

  async size (): Promise<number> {
    return await this.#link.run(countScript, ['expiries'], []) as number
  }

  async settle (deviceId: string, letterId: string, ending: Ending, device?: Detail): Promise<boolean> {
    return await this.#end(deviceId, letterId, ending, device) !== undefined
  }

  async receipt (deviceId: string, letterId: string): Promise<Receipt | undefined> {
    const found = await this.#link.run(receiptScript, [''], [deviceId, letterId]) as Buffer | null
    return found ? this.#decodeReceipt(found).receipt : undefined
  }

  async addAttempt (deviceId: string, letterId: string): Promise<number> {
    return await this.#link.run(addAttemptScript, [''], [deviceId, letterId]) as number
  }

  /** All nodes sweep; each expired letter is reported by the one that ended it. */
  async sweep (now: number, signal?: AbortSignal): Promise<ExpiredLetter[]> {
    if (signal?.aborted) return []
    const found = await this.#link.run(dueScript, ['expiries'], [now + this.#clock.ahead, MAX_PER_SWEEP - this.#unreported.length]) as Buffer[]
    const due = [...new Set([...this.#unreported, ...found.map(String)])]
    const outcomes = await Promise.allSettled(due.map(one => this.#expire(one)))
    this.#unreported = due.filter((_, at) => outcomes[at]!.status === 'rejected')
    const expired = outcomes.flatMap(outcome => outcome.status === 'fulfilled' ? outcome.value ?? [] : [])
    const failed = outcomes.find(({ status }) => status === 'rejected')
    // expired letters are reported even after a failure; the rest is tried again with the next sweep
    if (failed && expired.length === 0) throw (failed as PromiseRejectedResult).reason
    return expired
  }

  async health (): Promise<Health> {
    return await this.#link.health()
  }

  async #readPage (deviceId: string, after: number): Promise<LettersPage> {
    const [hasMore, ...found] = await this.#link.run(pageScript, [''], [deviceId, after, MAX_PAGE_LETTERS, MAX_PAGE_BYTES]) as [number, ...Buffer[]]
    const letters: StoredLetter[] = []
    for (let at = 0; at < found.length; at += 2) letters.push(shiftTimes(decodeLetter(found[at + 1]!, Number(found[at])), -this.#clock.ahead))
    return { letters, isLast: hasMore === 0 }
  }

  async #expire (due: string): Promise<ExpiredLetter | undefined> {
    const space = due.indexOf(' ') // a device id has none
    const deviceId = due.slice(0, space)
    const receipt = await this.#end(deviceId, due.slice(space + 1), 'expired')
    return receipt && { deviceId, receipt }
  }

  /** Undefined: the letter no longer waited. */
  async #end (deviceId: string, letterId: string, status: Ending, device?: Detail): Promise<Receipt | undefined> {
    const call = `${this.#instance}${(++this.#calls).toString(36)}`
    const ending: EndingRecord = { status, at: Date.now() + this.#clock.ahead, ...(device && { device }), call }
    const isSent = this.#link.up
    try {
      const reply = await this.#link.run(settleScript, [''], [deviceId, letterId, JSON.stringify(ending), this.#keepReceipts])
      const [isEnded, record] = reply as [number, Buffer | null]
      if (!record) return undefined
      const ended = this.#decodeReceipt(record)
      const isOurs = isEnded === 1 || (ended.receipt.status === status && this.#unansweredCalls.delete(ended.call!))
      return isOurs ? ended.receipt : undefined
    } catch (error) {
      if (isSent) this.#rememberUnanswered(call)
      throw error
    }
  }

  #rememberUnanswered (call: string): void {
    this.#unansweredCalls.add(call)
    if (this.#unansweredCalls.size > MAX_UNANSWERED_CALLS) this.#unansweredCalls.delete(this.#unansweredCalls.values().next().value!)
  }

  #decodeReceipt (record: Buffer): ReturnType<typeof decodeReceipt> {
    const { receipt, call } = decodeReceipt(record)
    return { receipt: shiftTimes(receipt, -this.#clock.ahead), call }
  }
}
