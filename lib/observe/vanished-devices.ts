import type { Backplane, Presence, PresenceChange, Unwatch } from '../cluster/backplane.ts'
import { closeCodes } from '../protocol/errors.ts'
import type { DeviceEvent } from './device-event.ts'

/** Checks within the time for the event of the node itself to arrive. */
const CHECKS = 5
/** Connections remembered, in each of two generations; and changes that may wait, and devices that may be missing. */
const MAX_REMEMBERED = 10_000

/** Identifies a connection. Its generation does not: a connection that began while the backplane was down gets another one later. */
export type Connection = Pick<Presence, 'deviceId' | 'node' | 'since'>
type Kind = PresenceChange['kind']

export interface VanishedDevicesOptions {
  backplane: Backplane
  report: (event: DeviceEvent & { type: Kind }) => void
  /** More changes than can wait. */
  onOverflow: () => void
  /** Time for the event of the node itself to arrive. */
  graceMs: number
}

/**
 * A node that was killed does not say that its devices have left; the backplane does. Reports `disconnected` of a connection whose node has not, and
 * `connected` if the device is still there after that: its node was cut off.
 */
export class VanishedDevices {
  readonly #options: VanishedDevicesOptions
  readonly #waiting = new Map<string, PresenceChange & { reportedAt: number }>()
  /** The events that have come, in two generations. */
  #recent = new Set<string>()
  #older = new Set<string>()
  /** The events that were reported here, until those of the nodes themselves come. */
  readonly #reported = new Set<string>()
  /** The devices whose `disconnected` was reported here. */
  readonly #missing = new Set<string>()
  #unfollow: Unwatch | undefined
  #timer: NodeJS.Timeout | undefined

  constructor (options: VanishedDevicesOptions) {
    this.#options = options
  }

  /** Within one process no node can vanish. */
  start (): void {
    const { backplane } = this.#options
    if (backplane.remote) this.#unfollow = backplane.follow(change => this.#changed(change))
  }

  stop (): void {
    this.#unfollow?.()
    clearInterval(this.#timer)
    this.#timer = undefined
    for (const known of [this.#waiting, this.#recent, this.#older, this.#reported, this.#missing]) known.clear()
  }

  /** The node itself has reported it. False: it was reported here already. Two connections of a device that began in the same millisecond look alike. */
  isNew (kind: Kind, connection: Connection): boolean {
    if (!this.#options.backplane.remote) return true
    const key = keyOf(kind, connection)
    this.#waiting.delete(key)
    if (kind === 'connected') this.#missing.delete(connection.deviceId)
    this.#remember(key)
    return !this.#reported.delete(key)
  }

  #changed ({ kind, presence }: PresenceChange): void {
    const key = keyOf(kind, presence)
    if (kind === 'connected' ? !this.#missing.has(presence.deviceId) : this.#isKnown(key)) return
    if (this.#waiting.size === MAX_REMEMBERED) return this.#options.onOverflow()
    this.#waiting.set(key, { kind, presence, reportedAt: performance.now() })
    this.#timer ??= setInterval(() => this.#check(), this.#options.graceMs / CHECKS).unref()
  }

  /** Changes wait in the order in which they came. */
  #check (): void {
    const due = performance.now() - this.#options.graceMs
    for (const [key, { kind, presence, reportedAt }] of this.#waiting) {
      if (reportedAt > due) return
      this.#waiting.delete(key)
      this.#remember(key)
      addBounded(this.#reported, key)
      this.#report(kind, presence)
    }
    clearInterval(this.#timer)
    this.#timer = undefined
  }

  #report (kind: Kind, presence: Presence): void {
    const { deviceId, generation, node, since } = presence
    if (kind === 'connected') this.#isBack(presence)
    else addBounded(this.#missing, deviceId)
    const data = kind === 'connected' ? { since } : { since, code: closeCodes.lost.code, reason: 'its node is gone or was cut off' }
    this.#options.report({ id: `${kind}-${generation}-${deviceId}`, type: kind, at: Date.now(), node, deviceId, generation, data })
  }

  /** The end of the connection was reported, and will come again. */
  #isBack (connection: Connection): void {
    this.#missing.delete(connection.deviceId)
    const key = keyOf('disconnected', connection)
    this.#recent.delete(key)
    this.#older.delete(key)
    this.#reported.delete(key)
  }

  #isKnown (key: string): boolean {
    return this.#recent.has(key) || this.#older.has(key)
  }

  #remember (key: string): void {
    if (this.#isKnown(key)) return
    if (this.#recent.size === MAX_REMEMBERED) {
      this.#older = this.#recent
      this.#recent = new Set()
    }
    this.#recent.add(key)
  }
}

function keyOf (kind: Kind, { deviceId, node, since }: Connection): string {
  return `${kind} ${since} ${deviceId} ${node}`
}

function addBounded (set: Set<string>, value: string): void {
  set.add(value)
  if (set.size > MAX_REMEMBERED) set.delete(set.values().next().value!)
}
