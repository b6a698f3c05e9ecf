import { setTimeout as sleep } from 'node:timers/promises'
import { withDeadline } from '../protocol/deadline.ts'
import { Failure } from '../protocol/errors.ts'
import type { Health } from '../protocol/health.ts'
import { invoke } from '../protocol/user-code.ts'

export interface NodeHealth {
  /** The node can do all its work. */
  ok: boolean
  mailbox: Health
  backplane: Health
  /** The node has begun to close. */
  draining: boolean
}

/** As much of a mailbox or a backplane as its health needs. */
interface Engine {
  health? (): Promise<Health>
}

const POLL_INTERVAL_MS = 50
const HEALTH_TIMEOUT_MS = 1_000

/** Whether the mailbox and the backplane of a node can be used. */
export class Readiness {
  readonly #engines: { mailbox: Engine, backplane: Engine }
  readonly #closing = new AbortController()

  constructor (engines: { mailbox: Engine, backplane: Engine }) {
    this.#engines = engines
  }

  /** Never rejects, and takes a second at most. */
  async health (): Promise<NodeHealth> {
    const [mailbox, backplane] = await Promise.all([healthOf(this.#engines.mailbox), healthOf(this.#engines.backplane)])
    const draining = this.#closing.signal.aborted
    return { ok: mailbox.ok && backplane.ok && !draining, mailbox, backplane, draining }
  }

  async ready (): Promise<void> {
    const { signal } = this.#closing
    while (!signal.aborted) {
      if ((await this.health()).ok) return
      await sleep(POLL_INTERVAL_MS, undefined, { signal }).catch(() => {})
    }
    throw new Failure('draining')
  }

  /** Callers of `ready` get the failure `draining`. */
  close (): void {
    this.#closing.abort()
  }
}

/** An engine of the application may throw, return anything, or never answer. */
async function healthOf (engine: Engine): Promise<Health> {
  if (!engine.health) return { ok: true }
  const late = new Error('no answer in time')
  try {
    const { ok, reason } = await withDeadline(invoke(() => engine.health!()), HEALTH_TIMEOUT_MS, () => late)
    return ok === true ? { ok } : { ok: false, reason: typeof reason === 'string' ? reason : 'no reason given' }
  } catch (error) {
    return { ok: false, reason: error === late ? late.message : 'health check failed' }
  }
}
