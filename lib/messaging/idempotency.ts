import { createHash } from 'node:crypto'
import { truncateDetail, Failure, type Reason } from '../protocol/errors.ts'

export interface KeyLimits {
  maxKeys: number
  keyTtl: number
}

/** A send in progress, or its outcome. */
interface KeyedOutcome {
  digest: string
  answer: Promise<unknown>
}

interface RememberedOutcome extends KeyedOutcome {
  expiresAt: number
}

/** Failures after which nothing was sent: the same key may try again. */
const notSentReasons = new Set<Reason>([
  'offline', 'busy', 'congested', 'mailbox-full', 'store-full', 'draining', 'unreachable', 'too-large', 'bad-params', 'key-mismatch'
])

/** Idempotency keys of this node: the same key and body get the same result, and the message is delivered once. */
export class IdempotencyKeys {
  readonly #limits: KeyLimits
  readonly #pending = new Map<string, KeyedOutcome>()
  /** Ordered by age, oldest first. */
  readonly #remembered = new Map<string, RememberedOutcome>()

  constructor (limits: KeyLimits) {
    this.#limits = limits
  }

  get size (): number {
    return this.#pending.size + this.#remembered.size
  }

  /**
   * Sends, or joins the send with the same key. If that one fails before anything was sent, the caller that joined sends itself: its options may let
   * the message wait where the first could not. A result is remembered if it is final.
   */
  async once<T> (key: string, digest: string, send: () => Promise<T>, isFinal: (answer: T) => boolean = always): Promise<T> {
    for (;;) {
      const first = this.#pending.get(key) ?? this.#recall(key)
      if (!first) return await this.#send(key, digest, send, isFinal)
      if (first.digest !== digest) throw new Failure('key-mismatch')
      try {
        return await first.answer as T
      } catch (error) {
        if (!isNotSent(error)) throw error
      }
    }
  }

  #send<T> (key: string, digest: string, send: () => Promise<T>, isFinal: (answer: T) => boolean): Promise<T> {
    const sent = send()
    const answer = sent.catch(error => { throw withShortDetail(error) })
    this.#pending.set(key, { digest, answer })
    const settled = (isKept: boolean) => {
      this.#pending.delete(key)
      if (isKept) this.#remember(key, { digest, answer, expiresAt: Date.now() + this.#limits.keyTtl })
    }
    sent.then(value => settled(isFinal(value)), error => settled(!isNotSent(error)))
    answer.catch(() => {}) // the promise is unhandled if no caller joins
    return sent
  }

  #recall (key: string): RememberedOutcome | undefined {
    const remembered = this.#remembered.get(key)
    return remembered && remembered.expiresAt > Date.now() ? remembered : undefined
  }

  #remember (key: string, remembered: RememberedOutcome): void {
    this.#remembered.delete(key) // re-inserted, so that the map stays ordered by age
    this.#remembered.set(key, remembered)
    const now = Date.now()
    for (const [oldest, { expiresAt }] of this.#remembered) {
      if (expiresAt > now && this.#remembered.size <= this.#limits.maxKeys) return
      this.#remembered.delete(oldest)
    }
  }
}

/** An unexpected error counts as one from before the send. */
function isNotSent (error: unknown): boolean {
  return !(error instanceof Failure) || notSentReasons.has(error.reason)
}

function always (): boolean {
  return true
}

/** A remembered failure keeps only a short detail of the device, to bound memory. */
function withShortDetail (error: unknown): unknown {
  return error instanceof Failure && error.device ? new Failure(error.reason, { message: error.message, detail: truncateDetail(error.device) }) : error
}

export function digestOf (...parts: Array<string | Uint8Array>): string {
  const hash = createHash('sha256')
  for (const part of parts) hash.update(`${part.length}:`).update(part)
  return hash.digest('base64url').slice(0, 22)
}
