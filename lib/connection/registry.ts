import type { TokenBucket } from './token-bucket.ts'
import type { Disconnect } from './device.ts'
import type { Session } from './session.ts'

/** Limit of the devices whose last disconnect is kept. */
const MAX_DISCONNECTED = 10_000

/** The sessions of this node, one per device. */
export class Registry {
  readonly #sessions = new Map<string, Session>()
  readonly #disconnected = new Map<string, { disconnect: Disconnect, bucket: TokenBucket }>()
  readonly #connected: Record<string, Record<string, number>> = {}

  get size (): number {
    return this.#sessions.size
  }

  /** The number of sessions by transport and protocol; 0 where all have left. */
  get connected (): Record<string, Record<string, number>> {
    return structuredClone(this.#connected)
  }

  get (deviceId: string): Session | undefined {
    return this.#sessions.get(deviceId)
  }

  has (deviceId: string): boolean {
    return this.#sessions.has(deviceId)
  }

  [Symbol.iterator] (): IterableIterator<Session> {
    return this.#sessions.values()
  }

  /** The session with the higher generation stays, in whichever order they enter; the other ends. */
  enter (session: Session): void {
    const current = this.#sessions.get(session.id)
    if (current && current.generation > session.generation) return session.end('replaced')
    current?.end('replaced')
    this.#sessions.set(session.id, session)
    this.#count(session, 1)
  }

  /** False: the session was not registered. An older session that leaves late does not remove the newer one. */
  leave (session: Session): boolean {
    if (this.#sessions.get(session.id) !== session) return false
    this.#sessions.delete(session.id)
    this.#count(session, -1)
    this.#disconnected.delete(session.id)
    this.#disconnected.set(session.id, { disconnect: session.left!, bucket: session.bucket })
    if (this.#disconnected.size > MAX_DISCONNECTED) this.#disconnected.delete(this.#disconnected.keys().next().value!)
    return true
  }

  /** How the last connection of a device to this node ended; undefined once 10,000 other devices have left since. */
  lastDisconnect (deviceId: string): Disconnect | undefined {
    return this.#disconnected.get(deviceId)?.disconnect
  }

  /** The token bucket of the current or last connection of a device. */
  bucketOf (deviceId: string): TokenBucket | undefined {
    return (this.#sessions.get(deviceId) ?? this.#disconnected.get(deviceId))?.bucket
  }

  #count ({ transport, protocol }: Session, change: 1 | -1): void {
    const counts = this.#connected[transport] ??= {}
    counts[protocol] = (counts[protocol] ?? 0) + change
  }
}
