import type { TokenBucket } from './token-bucket.ts'
import type { Disconnect } from './device.ts'
import type { Session } from './session.ts'

const REMEMBERED = 10_000

/** The sessions on this node, one per device. */
export class Registry {
  readonly #sessions = new Map<string, Session>()
  readonly #left = new Map<string, { leave: Disconnect, bucket: TokenBucket }>()

  get size (): number {
    return this.#sessions.size
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

  /** The higher generation stays, whichever comes first; the other is shown out. */
  enter (session: Session): void {
    const current = this.#sessions.get(session.id)
    if (current && current.generation > session.generation) return session.end('replaced')
    current?.end('replaced')
    this.#sessions.set(session.id, session)
  }

  /** What an older session does late changes nothing for the newer one. False: this one was not in. */
  leave (session: Session): boolean {
    if (this.#sessions.get(session.id) !== session) return false
    this.#sessions.delete(session.id)
    this.#left.delete(session.id)
    this.#left.set(session.id, { leave: session.left!, bucket: session.bucket })
    if (this.#left.size > REMEMBERED) this.#left.delete(this.#left.keys().next().value!)
    return true
  }

  /** How the last connection of a device to this node ended, if that was not too many devices ago. */
  lastDisconnect (deviceId: string): Disconnect | undefined {
    return this.#left.get(deviceId)?.leave
  }

  /** The bucket of the device's connection before. */
  bucketOf (deviceId: string): TokenBucket | undefined {
    return (this.#sessions.get(deviceId) ?? this.#left.get(deviceId))?.bucket
  }
}
