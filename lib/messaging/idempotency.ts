import { createHash } from 'node:crypto'
import { truncateDetail, Failure, type Reason } from '../protocol/errors.ts'

export interface KeyLimits {
  maxKeys: number
  keyTtl: number
}

/** A message under way, or what became of it. */
interface PendingOutcome {
  digest: string
  answer: Promise<unknown>
}

interface StoredOutcome extends PendingOutcome {
  until: number
}

/** Failures after which nothing is on its way: the same key may try again. */
const nothingSent = new Set<Reason>([
  'offline', 'busy', 'congested', 'mailbox-full', 'store-full', 'draining', 'unreachable', 'too-large', 'bad-params', 'key-mismatch'
])

/** Idempotency keys of this node: the same key and body get the same answer, and one delivery. */
export class IdempotencyKeys {
  readonly #limits: KeyLimits
  readonly #underway = new Map<string, PendingOutcome>()
  /** Oldest first. */
  readonly #remembered = new Map<string, StoredOutcome>()

  constructor (limits: KeyLimits) {
    this.#limits = limits
  }

  get size (): number {
    return this.#underway.size + this.#remembered.size
  }

  /**
   * Sends, or joins what was sent under the same key. Where nothing was sent after all, the one that joined tries itself: it may wait where the first
   * would not. An answer is remembered if it is final.
   */
  async once<T> (key: string, digest: string, send: () => Promise<T>, isFinal: (answer: T) => boolean = always): Promise<T> {
    for (;;) {
      const first = this.#underway.get(key) ?? this.#recall(key)
      if (!first) return await this.#send(key, digest, send, isFinal)
      if (first.digest !== digest) throw new Failure('key-mismatch')
      try {
        return await first.answer as T
      } catch (error) {
        if (!isNothingSent(error)) throw error
      }
    }
  }

  #send<T> (key: string, digest: string, send: () => Promise<T>, isFinal: (answer: T) => boolean): Promise<T> {
    const sent = send()
    const answer = sent.catch(error => { throw lightened(error) })
    this.#underway.set(key, { digest, answer })
    const settled = (isKnown: boolean) => {
      this.#underway.delete(key)
      if (isKnown) this.#remember(key, { digest, answer, until: Date.now() + this.#limits.keyTtl })
    }
    sent.then(value => settled(isFinal(value)), error => settled(!isNothingSent(error)))
    answer.catch(() => {}) // there may be nobody who joined
    return sent
  }

  #recall (key: string): StoredOutcome | undefined {
    const remembered = this.#remembered.get(key)
    return remembered && remembered.until > Date.now() ? remembered : undefined
  }

  #remember (key: string, remembered: StoredOutcome): void {
    this.#remembered.delete(key) // so that the order of the map is that of age
    this.#remembered.set(key, remembered)
    const now = Date.now()
    for (const [oldest, { until }] of this.#remembered) {
      if (until > now && this.#remembered.size <= this.#limits.maxKeys) return
      this.#remembered.delete(oldest)
    }
  }
}

/** An accident of ours is taken for one before anything was sent. */
function isNothingSent (error: unknown): boolean {
  return !(error instanceof Failure) || nothingSent.has(error.reason)
}

function always (): boolean {
  return true
}

/** What is remembered for long holds little of what the device said. */
function lightened (error: unknown): unknown {
  return error instanceof Failure && error.device ? new Failure(error.reason, { message: error.message, detail: truncateDetail(error.device) }) : error
}

export function digestOf (...parts: Array<string | Uint8Array>): string {
  const hash = createHash('sha256')
  for (const part of parts) hash.update(`${part.length}:`).update(part)
  return hash.digest('base64url').slice(0, 22)
}
