import { setTimeout as sleep } from 'node:timers/promises'
import type { Msg } from '@nats-io/transport-node'
import type { PresenceChange, Owner, Ownership, Presence } from '../cluster/backplane.ts'
import { SortedIndex } from '../cluster/sorted-index.ts'
import type { Failure } from '../protocol/errors.ts'
import { decode, encode } from '../cluster/encoding.ts'
import type { Link, LinkSubscription } from './link.ts'
import type { Membership } from './membership.ts'
import { contentOf, isUnaware, mayReplace, OwnedDevice } from './owned-device.ts'
import { hasClaim, ownerRecordOf, presenceOf, type OwnerRecord } from './owner-record.ts'
import { RequestHandler } from './request-handler.ts'
import { RetryQueue } from './retry-queue.ts'
import type { StreamStore, StoredRecord } from './stream-store.ts'
import { deviceSubject, recordSubject } from './subjects.ts'

/** A newer connection, of the given generation, owns the device. */
interface YieldDemand {
  deviceId: string
  generation: number
}

/** Time for the node of an older owner to answer a yield demand; without an answer the demand is repeated. */
const YIELD_TIMEOUT_MS = 250
const YIELD_RETRY_DELAY_MS = 1_000
/** Time for a node to notice that a device has given a handshake up. */
const GIVEN_UP_HANDSHAKE_MS = 500
/** The records of all owned devices are read again in turn, some per interval, so that the loss of a message or a record does not go unnoticed. */
const RECHECK_INTERVAL_MS = 200
const RECHECKS_PER_INTERVAL = 10

/** The devices that this node owns: a record of each in the bucket, and a subject for each that receives the requests of all nodes. */
export class OwnershipTable {
  readonly #link: Link
  readonly #nodes: Membership
  readonly #records: StreamStore
  readonly #publishChange: (change: PresenceChange) => void
  readonly #owned = new Map<string, OwnedDevice>()
  /** The keys of `#owned`, in order. */
  readonly #ids = new SortedIndex()
  readonly #subscriptions = new Map<string, LinkSubscription>()
  readonly #requests: RequestHandler
  /** The connections whose record is, or may come to be, in the bucket. */
  readonly #claims = new Map<string, OwnedDevice>()
  /** The connections to compare with their record, or whose record to erase. */
  readonly #pending: RetryQueue<OwnedDevice>
  readonly #recheckTimer: NodeJS.Timeout
  #recheckCursor: Iterator<OwnedDevice> | undefined
  /** Incremented each time this node may have lost devices: every device is then compared with its record. */
  #epoch = 0
  #highestGeneration = 0

  constructor (link: Link, nodes: Membership, records: StreamStore, publishChange: (change: PresenceChange) => void) {
    this.#link = link
    this.#nodes = nodes
    this.#records = records
    this.#publishChange = publishChange
    this.#pending = new RetryQueue(link, owned => this.#process(owned))
    this.#requests = new RequestHandler(link, { isOwner: owned => this.#isOwner(owned), compare: owned => this.#invalidate(owned) })
    nodes.onLapse(() => this.#invalidateAll())
    link.subscribe(yieldSubject(nodes.self), message => {
      const { deviceId, generation }: YieldDemand = decode(message.data)
      this.#yield(deviceId, generation)
      if (link.up) link.reply(message, '')
    })
    this.#recheckTimer = setInterval(() => this.#recheckNext(), RECHECK_INTERVAL_MS).unref()
  }

  async own (deviceId: string, owner: Owner): Promise<Ownership> {
    const owned = new OwnedDevice(deviceId, owner)
    this.#claims.set(owned.claim, owned)
    try {
      // the current connection on this node must not write its record at the same time
      await this.#owned.get(deviceId)?.comparison?.catch(() => {})
      await this.#takeOver(owned)
    } catch (error) {
      void this.#release(owned)
      throw error
    }
    return {
      get generation () { return owned.generation },
      release: () => this.#release(owned)
    }
  }

  /** The devices of this node whose ids follow the given one and begin with the prefix, in order. */
  * after (id: string, prefix?: string): IterableIterator<{ presence: Presence, owner: Owner }> {
    for (const deviceId of this.#ids.after(id, prefix)) {
      const { owner, generation } = this.#owned.get(deviceId)!
      yield { presence: { ...owner.presence, generation }, owner }
    }
  }

  /** Erases those of the given records that belong to no connection of this node. */
  async disown (found: OwnerRecord[]): Promise<void> {
    for (const { deviceId, generation, claim, node, since } of found) {
      if (this.#claims.has(claim)) continue
      const erased = await this.#records.erase(recordSubject(deviceId), generation, found => hasClaim(found, { claim }))
      if (erased) this.#publishChange({ kind: 'disconnected', presence: { deviceId, node, generation, since } })
    }
  }

  /** Gives up all devices and erases their records. */
  async close (): Promise<void> {
    clearInterval(this.#recheckTimer)
    const all = [...this.#claims.values()]
    for (const owned of all) this.#deactivate(owned)
    if (this.#link.up) await Promise.allSettled(all.map(owned => this.#erase(owned)))
  }

  async #takeOver (owned: OwnedDevice): Promise<void> {
    try {
      await this.#compare(owned)
    } catch (error) {
      if ((error as Failure).reason !== 'unreachable') throw error
      await this.#confirmAlive(owned, undefined)
      this.#ownProvisionally(owned)
    }
  }

  /** The bucket is unreachable, so this node cannot know of owners on other nodes. */
  #ownProvisionally (owned: OwnedDevice): void {
    if (owned.record !== 'written') {
      owned.state = 'provisional'
      owned.generation = ++this.#highestGeneration
    }
    this.#activate(owned)
    this.#invalidate(owned)
  }

  /** Joins the comparison that is under way. */
  #compare (owned: OwnedDevice): Promise<boolean> {
    owned.comparison ??= this.#reconcile(owned).finally(() => { owned.comparison = undefined })
    return owned.comparison
  }

  /** Compares the connection with the record of the device, and writes a record where it may. False: there is a newer owner. */
  async #reconcile (owned: OwnedDevice): Promise<boolean> {
    const epoch = this.#epoch
    const { invalidations } = owned
    const subject = recordSubject(owned.deviceId)
    let found = await this.#records.last(subject)
    while (!hasClaim(found, owned)) {
      if (owned.state === 'new') await this.#confirmAlive(owned, found)
      if (!this.#mayReplace(owned, found)) {
        const later = isUnaware(owned, found) ? await this.#lookLater(subject) : found
        if (later?.seq === found?.seq) return this.#lose(owned)
        found = later
        continue
      }
      owned.record = 'unknown'
      const appended = await this.#records.append(subject, JSON.stringify(contentOf(owned, this.#nodes.self, found)), { after: found?.seq })
      if (appended) await this.#completeTakeover(owned, appended.seq, found)
      // read again even after a write: a newer owner's demand may have come before this node had subscribed
      found = await this.#records.last(subject)
    }
    // the answer to the write was lost, so the other nodes do not know yet
    if (owned.record === 'unknown') await this.#completeTakeover(owned, found!.seq, undefined)
    this.#markWritten(owned, found!.seq)
    if (owned.state === 'provisional') owned.state = 'owned'
    if (owned.invalidations === invalidations) owned.verifiedEpoch = epoch
    return true
  }

  /** A record of a connection of this node that has lost the device is about to be erased. */
  #mayReplace (owned: OwnedDevice, found: StoredRecord | undefined): boolean {
    const isLost = found !== undefined && this.#claims.get(ownerRecordOf(found).claim)?.state === 'lost'
    return mayReplace(owned, isLost ? undefined : found)
  }

  /** Gives the node of a newer connection the time to notice that its device has given the handshake up, and to erase the record. */
  async #lookLater (subject: string): Promise<StoredRecord | undefined> {
    await sleep(GIVEN_UP_HANDSHAKE_MS, undefined, { ref: false })
    return await this.#records.last(subject)
  }

  /** Repeated before each attempt to replace an older owner, because the device may have given this connection up meanwhile. */
  async #confirmAlive ({ deviceId, owner }: OwnedDevice, older: StoredRecord | undefined): Promise<void> {
    if (older || this.#owned.has(deviceId)) await owner.confirmAlive?.()
  }

  async #completeTakeover (owned: OwnedDevice, generation: number, older: StoredRecord | undefined): Promise<void> {
    const isAgain = owned.state !== 'new'
    this.#markWritten(owned, generation)
    this.#highestGeneration = Math.max(this.#highestGeneration, generation)
    if (older) this.#publishChange({ kind: 'disconnected', presence: presenceOf(older) })
    this.#publishChange({ kind: 'connected', presence: { ...owned.owner.presence, generation } })
    const yielded = older && this.#demandYield(ownerRecordOf(older).home, { deviceId: owned.deviceId, generation })
    this.#requests.requestCompare(owned)
    await yielded
    if (owned.state === 'owned') this.#activate(owned)
    // wake-ups for letters put meanwhile went to the older owner, or to nobody
    if (isAgain && owned.state !== 'lost') owned.owner.answer({ kind: 'wake' }).catch(error => this.#link.trouble(error))
  }

  #markWritten (owned: OwnedDevice, generation: number): void {
    owned.generation = generation
    owned.record = 'written'
    // a NATS cluster before 2.11 may accept two records after the same one, so a provisional owner is compared once more
    if (owned.state === 'new') owned.state = 'owned'
  }

  /** Demands that the node of an older owner yields. Resolves after the first attempt, and repeats until the node has answered or is dead. */
  async #demandYield (home: string, demand: YieldDemand): Promise<void> {
    if (home === this.#nodes.self || !this.#nodes.alive(home)) return
    const answer = await this.#link.request(yieldSubject(home), encode(demand), YIELD_TIMEOUT_MS).catch(() => undefined)
    if (!answer) setTimeout(() => void this.#demandYield(home, demand), YIELD_RETRY_DELAY_MS).unref()
  }

  /** A provisional owner has no comparable generation, so it is compared with the record. */
  #yield (deviceId: string, generation: number): void {
    const owned = this.#owned.get(deviceId)
    if (owned?.state === 'owned' && owned.generation < generation) this.#lose(owned)
    else if (owned?.state === 'provisional') this.#invalidate(owned)
  }

  /** Makes the connection the owner on this node. The higher generation wins, in whichever order the two come. */
  #activate (owned: OwnedDevice): void {
    const { deviceId } = owned
    const current = this.#owned.get(deviceId)
    if (current === owned) return
    if (current && current.state === 'owned' && current.generation > owned.generation) return void this.#lose(owned)
    this.#owned.set(deviceId, owned)
    this.#ids.add(deviceId)
    if (current) this.#lose(current, { isReplaced: owned.record === 'written' })
    if (!this.#subscriptions.has(deviceId)) this.#subscriptions.set(deviceId, this.#link.subscribe(deviceSubject(deviceId), message => this.#receive(deviceId, message)))
  }

  #lose (owned: OwnedDevice, { isReplaced = true } = {}): false {
    if (owned.state === 'lost') return false
    if (isReplaced) owned.record = 'none' // overwritten by the record of the newer owner
    this.#deactivate(owned)
    owned.owner.yield()
    this.#pending.add([owned]) // its record is erased, unless another has replaced it
    return false
  }

  #deactivate (owned: OwnedDevice): void {
    owned.state = 'lost'
    const { deviceId } = owned
    if (this.#owned.get(deviceId) !== owned) return
    this.#owned.delete(deviceId)
    this.#ids.delete(deviceId)
    this.#subscriptions.get(deviceId)!.end()
    this.#subscriptions.delete(deviceId)
  }

  async #release (owned: OwnedDevice): Promise<void> {
    if (owned.state !== 'lost') this.#deactivate(owned)
    await this.#pending.process(owned)
  }

  /** Erases the record of this very connection; it no longer exists where a newer one has replaced it. */
  async #erase (owned: OwnedDevice): Promise<void> {
    if (!this.#claims.has(owned.claim)) return
    const position = owned.record === 'unknown' ? await this.#findRecord(owned) : owned.generation
    const erased = owned.record !== 'none' && position !== undefined &&
      await this.#records.erase(recordSubject(owned.deviceId), position, found => hasClaim(found, owned))
    this.#claims.delete(owned.claim)
    if (erased) this.#publishChange({ kind: 'disconnected', presence: { ...owned.owner.presence, generation: position } })
  }

  /** The position of the record of a connection whose write may have failed. */
  async #findRecord (owned: OwnedDevice): Promise<number | undefined> {
    const found = await this.#records.last(recordSubject(owned.deviceId))
    return hasClaim(found, owned) ? found!.seq : undefined
  }

  /** This node was away, or other nodes took it for dead. */
  #invalidateAll (): void {
    this.#epoch++
    this.#pending.add(this.#owned.values())
  }

  #invalidate (owned: OwnedDevice): void {
    owned.verifiedEpoch = -1
    owned.invalidations++
    this.#pending.add([owned])
  }

  #recheckNext (): void {
    if (!this.#link.up) return
    for (let count = 0; count < RECHECKS_PER_INTERVAL; count++) {
      this.#recheckCursor ??= this.#owned.values()
      const { value, done } = this.#recheckCursor.next()
      if (done) return void (this.#recheckCursor = undefined)
      this.#invalidate(value)
    }
  }

  /** Resolves with whether nothing is left to do for the connection. */
  async #process (owned: OwnedDevice): Promise<boolean> {
    if (owned.state === 'lost') await owned.comparison?.catch(() => {}) // it may still write a record
    if (!this.#link.up && !(owned.state === 'lost' && owned.record === 'none')) return false // after a reconnect all devices are compared
    if (owned.state === 'lost') await this.#erase(owned)
    else await this.#isOwner(owned)
    return owned.state === 'lost' ? !this.#claims.has(owned.claim) : owned.verifiedEpoch === this.#epoch
  }

  /** Whether the connection still owns the device; after this node was away, the bucket decides. */
  async #isOwner (owned: OwnedDevice): Promise<boolean> {
    this.#nodes.check()
    if (owned.verifiedEpoch === this.#epoch) return owned.state === 'owned'
    return await this.#compare(owned) && owned.state === 'owned'
  }

  #receive (deviceId: string, message: Msg): void {
    const owned = this.#owned.get(deviceId)
    if (owned) this.#requests.receive(owned, message)
  }
}

const yieldSubject = (node: string): string => `node.${node}.yield`
