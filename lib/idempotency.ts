import { createHash } from 'node:crypto'
import { briefly, Failure, type Reason } from './errors.ts'

export interface KeyLimits {
  maxKeys: number
  keyTtl: number
}

interface Used {
  digest: string
  answer: Promise<unknown>
  until: number
}

/** Failures after which nothing is on its way: the same key may try again. */
const nothingSent = new Set<Reason>(['offline', 'busy', 'congested', 'mailbox-full', 'store-full', 'draining', 'unreachable', 'too-large'])

/** Idempotency keys of this node: the same key and body get the same answer, and one delivery. */
export class Keys {
  readonly #limits: KeyLimits
  readonly #used = new Map<string, Used>()

  constructor (limits: KeyLimits) {
    this.#limits = limits
  }

  get size (): number {
    return this.#used.size
  }

  once<T> (key: string, digest: string, send: () => Promise<T>): Promise<T> {
    const now = Date.now()
    const used = this.#used.get(key)
    if (used && used.until > now) {
      return used.digest === digest ? used.answer as Promise<T> : Promise.reject(new Failure('key-mismatch'))
    }
    const sent = send()
    const answer = sent.catch(error => { throw lightened(error) })
    this.#used.delete(key) // so that the order of the map is that of age
    this.#used.set(key, { digest, answer, until: now + this.#limits.keyTtl })
    this.#trim(now)
    answer.catch(error => {
      const uncertain = error instanceof Failure && !nothingSent.has(error.reason)
      if (!uncertain && this.#used.get(key)?.answer === answer) this.#used.delete(key)
    })
    return sent
  }

  #trim (now: number): void {
    for (const [key, { until }] of this.#used) {
      if (until > now && this.#used.size <= this.#limits.maxKeys) return
      this.#used.delete(key)
    }
  }
}

/** What is remembered for long holds little of what the device said. */
function lightened (error: unknown): unknown {
  return error instanceof Failure && error.device ? new Failure(error.reason, { message: error.message, detail: briefly(error.device) }) : error
}

export function digestOf (...parts: Array<string | Uint8Array>): string {
  const hash = createHash('sha256')
  for (const part of parts) hash.update(`${part.length}:`).update(part)
  return hash.digest('base64url').slice(0, 22)
}
