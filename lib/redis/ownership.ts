import { setTimeout as sleep } from 'node:timers/promises'
import type { Owner, Ownership, Presence } from '../cluster/backplane.ts'
import { SortedIndex } from '../cluster/sorted-index.ts'
import { Failure, isUnreachable } from '../protocol/errors.ts'
import { assertScript, claimScript, releaseScript } from './backplane-scripts.ts'
import type { Link } from './link.ts'
import type { Membership } from './membership.ts'
import { CHANGES, nodeChannel } from './node-message.ts'

/** A connection of this node that owns a device, or is about to. */
interface OwnedDevice {
  readonly deviceId: string
  readonly owner: Owner
  /** Its number on this node. */
  readonly claim: number
  generation: number
  /** The generation of the connection that it replaced; 0 if there was none. */
  after: string
  /** The epoch in which Redis has last confirmed it. */
  epoch: number
  /** The highest generation that demands the device; it may come before this connection knows its own. */
  demanded: number
  isLost: boolean
}

const KEYS = ['owners', 'index', 'nodes', 'generation', CHANGES, nodeChannel('')]
/** The record of a device was written anew. */
const WRITTEN = 2
/** The devices that are written in one step. */
const DEVICES_PER_STEP = 200
/** Time for a node to notice that a device has given a handshake up. */
const GIVEN_UP_HANDSHAKE_MS = 500
/** The records of all devices are compared in turn, some per interval, so that the loss of a record does not go unnoticed. */
const RECHECK_INTERVAL_MS = 500
const RECHECK_INTERVALS = 60

/** The devices that this node owns, each with a record in Redis. The connection with the highest generation owns a device. */
export class OwnershipTable {
  readonly #link: Link
  readonly #nodes: Membership
  readonly #owned = new Map<string, OwnedDevice>()
  /** The keys of `#owned`, in order. */
  readonly #ids = new SortedIndex()
  /** Connections that do not know their generation yet. */
  readonly #claiming = new Set<OwnedDevice>()
  readonly #recheckTimer: NodeJS.Timeout
  #recheckCursor: Iterator<OwnedDevice> | undefined
  #claims = 0

  constructor (link: Link, nodes: Membership) {
    this.#link = link
    this.#nodes = nodes
    nodes.onJoin(() => void this.#restore())
    this.#recheckTimer = setInterval(() => this.#recheckNext(), RECHECK_INTERVAL_MS).unref()
  }

  async own (deviceId: string, owner: Owner): Promise<Ownership> {
    const owned: OwnedDevice = { deviceId, owner, claim: ++this.#claims, generation: 0, after: '0', epoch: 0, demanded: 0, isLost: false }
    this.#claiming.add(owned)
    try {
      await this.#claim(owned)
      this.#activate(owned)
      const hasJoinedSince = owned.epoch !== 0 && owned.epoch !== this.#nodes.epoch
      if (hasJoinedSince) await this.#assert([owned]).catch(() => {}) // compared again after the next join
    } finally {
      this.#claiming.delete(owned)
    }
    return {
      generation: owned.generation,
      release: () => this.#release(owned)
    }
  }

  /** The connection that owns a device, once Redis has confirmed it. */
  async confirmed (deviceId: string): Promise<Owner | undefined> {
    const owned = this.#owned.get(deviceId)
    if (!owned) return undefined
    await this.#nodes.joined()
    if (owned.epoch !== this.#nodes.epoch) await this.#assert([owned])
    return owned.isLost || owned.epoch !== this.#nodes.epoch ? undefined : owned.owner
  }

  /** The devices of this node whose ids follow the given one and begin with the prefix, in order. */
  * after (id: string, prefix?: string): IterableIterator<{ presence: Presence, owner: Owner }> {
    for (const deviceId of this.#ids.after(id, prefix)) {
      const { owner, generation } = this.#owned.get(deviceId)!
      yield { presence: { ...owner.presence, generation }, owner }
    }
  }

  /** A newer connection, of this generation, owns the device. */
  yield (deviceId: string, generation: number): void {
    this.#nodes.note(generation)
    for (const owned of this.#claiming) if (owned.deviceId === deviceId) owned.demanded = Math.max(owned.demanded, generation)
    const owned = this.#owned.get(deviceId)
    if (owned && owned.generation < generation) this.#lose(owned)
  }

  /** Gives up all devices. */
  async close (): Promise<void> {
    clearInterval(this.#recheckTimer)
    const all = [...this.#owned.values()]
    for (const owned of all) this.#remove(owned)
    while (all.length > 0 && this.#link.up) await this.#erase(all.splice(0, DEVICES_PER_STEP)).catch(() => all.splice(0))
  }

  /** Without Redis this node cannot know of owners on other nodes: the connection owns the device until they can be compared. */
  async #claim (owned: OwnedDevice): Promise<void> {
    const current = this.#owned.get(owned.deviceId)
    if (current && (!this.#link.up || current.epoch === 0)) await owned.owner.confirmAlive?.() // Redis does not know of the current connection
    try {
      await this.#nodes.joined()
      await this.#take(owned)
    } catch (error) {
      if (!isUnreachable(error)) throw error
      owned.generation = this.#nodes.nextGeneration()
      this.#nodes.rejoin() // Redis may have executed what it did not answer
    }
  }

  /** Repeats it for each connection that comes in between: its device may have given this one up meanwhile. */
  async #take (owned: OwnedDevice): Promise<void> {
    for (;;) {
      const { epoch } = this.#nodes
      const { deviceId, claim, after, owner: { presence: { since, node } } } = owned
      const args = [this.#nodes.self, epoch, this.#nodes.highestGeneration, deviceId, claim, since, node, after]
      const [isOwner, generation] = await this.#link.run(claimScript, KEYS, args) as [number, Buffer] | []
      if (isOwner === undefined) throw new Failure('unreachable', { message: 'The lease of this node has ended' })
      if (isOwner === 1) {
        Object.assign(owned, { generation: Number(generation), epoch })
        return this.#nodes.note(owned.generation)
      }
      await owned.owner.confirmAlive?.()
      owned.after = String(generation)
    }
  }

  /** Makes the connection the owner on this node. The higher generation wins, in whichever order the two come. */
  #activate (owned: OwnedDevice): void {
    const { deviceId } = owned
    const current = this.#owned.get(deviceId)
    if (owned.demanded > owned.generation || (current && current.generation > owned.generation)) return this.#lose(owned)
    this.#owned.set(deviceId, owned)
    this.#ids.add(deviceId)
    if (!current) return
    current.isLost = true
    current.owner.yield()
  }

  #lose (owned: OwnedDevice): void {
    if (owned.isLost) return
    this.#remove(owned)
    owned.owner.yield()
  }

  #remove (owned: OwnedDevice): void {
    owned.isLost = true
    if (this.#owned.get(owned.deviceId) !== owned) return
    this.#owned.delete(owned.deviceId)
    this.#ids.delete(owned.deviceId)
  }

  async #release (owned: OwnedDevice): Promise<void> {
    if (owned.isLost) return
    this.#remove(owned)
    try {
      if (this.#link.up) await this.#erase([owned])
    } catch {
      this.#nodes.rejoin() // erases the records of devices that are not here
    }
  }

  async #erase (released: OwnedDevice[]): Promise<void> {
    await this.#link.run(releaseScript, ['owners', 'index', CHANGES], [this.#nodes.self, ...released.flatMap(({ deviceId, claim }) => [deviceId, claim])])
  }

  /** This node has joined: writes all its devices, and erases what else Redis has of it. */
  async #restore (): Promise<void> {
    const { epoch } = this.#nodes
    try {
      const all = [...this.#owned.values()]
      while (all.length > 0) await this.#assert(all.splice(0, DEVICES_PER_STEP))
      if (epoch === this.#nodes.epoch) await this.#nodes.sweep(this.#nodes.self, epoch - 1)
    } catch (error) {
      if (this.#link.up && epoch === this.#nodes.epoch) this.#link.reset(`devices cannot be written: ${(error as Error).message}`)
    }
  }

  /** Compares devices with their records, and writes the records where they may. Those whose records are written anew look for letters: wake-ups may have been lost. */
  async #assert (devices: OwnedDevice[], isSecond = false): Promise<void> {
    const { epoch } = this.#nodes
    const live = devices.filter(({ isLost }) => !isLost)
    const args = live.flatMap(owned => [owned.deviceId, owned.claim, owned.generation, owned.owner.presence.since, owned.after, owned.owner.presence.node])
    const results = await this.#link.run(assertScript, KEYS, [this.#nodes.self, epoch, ...args]) as Array<number | Buffer>
    if (results.length < live.length) throw new Failure('unreachable', { message: 'The lease of this node has ended' })
    for (const [at, owned] of live.entries()) {
      const result = results[at]!
      if (typeof result === 'number') this.#confirm(owned, epoch, result === WRITTEN)
      else this.#dispute(owned, String(result), isSecond)
    }
  }

  #confirm (owned: OwnedDevice, epoch: number, isWritten: boolean): void {
    owned.epoch = epoch
    if (isWritten && !owned.isLost) owned.owner.answer({ kind: 'wake' }).catch(error => this.#link.trouble(error))
  }

  /**
   * The record is of a connection with a higher generation. If that came without knowing of this one, nobody has asked its device whether it is alive: it may
   * have given that handshake up, and its node needs time to notice.
   */
  #dispute (owned: OwnedDevice, record: string, isSecond: boolean): void {
    const [generation, after] = record.split(' ').map(Number) as [number, number]
    this.#nodes.note(generation)
    if (isSecond || after >= owned.generation) return this.#lose(owned)
    void sleep(GIVEN_UP_HANDSHAKE_MS, undefined, { ref: false }).then(() => this.#assert([owned], true)).catch(() => {}) // compared again after the next join
  }

  #recheckNext (): void {
    if (!this.#link.up) return
    const some: OwnedDevice[] = []
    while (some.length < this.#owned.size / RECHECK_INTERVALS) {
      this.#recheckCursor ??= this.#owned.values()
      const { value, done } = this.#recheckCursor.next()
      if (done) {
        this.#recheckCursor = undefined
        break
      }
      some.push(value)
    }
    if (some.length > 0) this.#assert(some).catch(() => {}) // compared again in turn, or after the next join
  }
}
