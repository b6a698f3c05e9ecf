import { randomBytes } from 'node:crypto'
import { setTimeout as sleep } from 'node:timers/promises'
import type { Answer, Request } from '../backplane.ts'
import { MAX_TIMER } from '../peer.ts'
import type { Link } from './link.ts'
import type { Nodes } from './nodes.ts'
import { heldOf, recordOf, wordsOf, type Word } from './owners.ts'
import type { Records } from './records.ts'
import { decode, encode } from './wire.ts'

/** A request that names no time of its own may take so long: more than a device that takes its messages slowly is given. */
const PATIENCE = 15_000
/** What an answer takes on its way, beyond the time that the owner allows itself. */
const ON_THE_WAY = 1_000
/** How long a device may be between two owners. */
const HAND_OVER = 10
/** When to look whether the owner is still there, at first and then. */
const FIRST_LOOK = 100
const NEXT_LOOK = 1_000
const LOOK_WITHIN = 2_000

/** Asks whoever owns a device: one request, to the subject of the device. */
export class Asks {
  readonly #link: Link
  readonly #nodes: Nodes
  readonly #records: Records
  readonly #prefix = randomBytes(6).toString('base64url')
  #asked = 0

  constructor (link: Link, nodes: Nodes, records: Records) {
    this.#link = link
    this.#nodes = nodes
    this.#records = records
  }

  async ask (deviceId: string, request: Request, signal?: AbortSignal): Promise<Answer | undefined> {
    const answer = await this.#ask(deviceId, request, signal)
    if (answer || !await this.#isHeld(deviceId)) return answer
    await sleep(HAND_OVER)
    return await this.#ask(deviceId, request, signal)
  }

  /** Nobody heard, but somebody may be about to. */
  async #isHeld (deviceId: string): Promise<boolean> {
    const found = await this.#records.last(recordOf(deviceId))
    return found !== undefined && this.#nodes.alive(heldOf(found).home)
  }

  async #ask (deviceId: string, request: Request, signal?: AbortSignal): Promise<Answer | undefined> {
    const subject = wordsOf(deviceId)
    const nonce = `${this.#prefix}${++this.#asked}`
    // a handler of a worker takes the time that it takes; should the worker die, that is found out
    const timeout = request.kind === 'answer' ? MAX_TIMER : ('timeout' in request ? request.timeout : PATIENCE) + ON_THE_WAY
    const asked = this.#link.request(subject, encode({ ...request, nonce }), timeout)
    const giveUp = () => { if (this.#link.up) this.#link.publish(subject, encode({ kind: 'cancel', nonce } satisfies Word)) }
    const settled = new AbortController()
    if (signal?.aborted) giveUp()
    signal?.addEventListener('abort', giveUp, { once: true, signal: settled.signal })
    try {
      const message = await Promise.race([asked, this.#lost(subject, nonce, settled.signal)])
      return message && (message === 'lost' ? { ok: false, reason: 'dropped' } : decode(message.data))
    } finally {
      settled.abort()
    }
  }

  /** Resolves when whoever was asked is no longer there to answer: a node may die, and nobody says so. */
  async #lost (subject: string, nonce: string, settled: AbortSignal): Promise<'lost' | undefined> {
    const probe = encode({ kind: 'probe', nonce } satisfies Word)
    for (let wait = FIRST_LOOK; ; wait = NEXT_LOOK) {
      await sleep(wait, undefined, { signal: settled, ref: false }).catch(() => {})
      if (settled.aborted) return undefined
      try {
        const answer = await this.#link.request(subject, probe, LOOK_WITHIN)
        if (answer?.string() !== '1') return 'lost'
      } catch {} // it is held still, or the link fell, which ends the request too
    }
  }
}
