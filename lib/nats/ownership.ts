import { randomBytes } from 'node:crypto'
import { setTimeout as sleep } from 'node:timers/promises'
import type { Msg } from '@nats-io/transport-node'
import type { Answer, PresenceChange, Owner, Ownership, Presence, Request } from '../cluster/backplane.ts'
import { Failure } from '../protocol/errors.ts'
import { failureMessage } from '../protocol/message.ts'
import { SortedIndex } from '../cluster/sorted-index.ts'
import type { Link, LinkSubscription } from './link.ts'
import type { Membership } from './membership.ts'
import type { StreamStore, StoredRecord } from './stream-store.ts'
import { textOf, token } from './subjects.ts'
import { decode, encode } from './encoding.ts'

/** What the bucket says of a device. */
export interface OwnerRecord extends Presence {
  /** The node, from its start to its end. */
  home: string
  /** The connection. */
  claim: string
  /** It was written without an older record to compare with, and perhaps late: another may have been written meanwhile. */
  first?: true
}

/** A newer connection, of the given generation, owns the device. */
interface YieldDemand {
  deviceId: string
  generation: number
}

/** What nodes say to each other about a device, besides what they ask of it. */
export type DeviceRequest =
  | Request & { nonce: string }
  | { kind: 'cancel' | 'probe', nonce: string }
  | { kind: 'compare', generation: number }

/** Time for the node of an older owner to let go; without an answer the demand is repeated. */
const YIELD_TIMEOUT_MS = 250
const YIELD_RETRY_MS = 1_000
/** What failed is tried again after this time, and ever more rarely. */
const RETRY_MS = 250
const MAX_RETRY_MS = 1_000
const SIDE_BY_SIDE = 64
/** Held records are read again all the time, so many every so often: no loss of a message or a record stays unnoticed. */
const RECHECK_EVERY_MS = 200
const RECHECKED_AT_ONCE = 10

/** A connection that holds a device, or will. */
class OwnedDevice {
  readonly deviceId: string
  readonly owner: Owner
  readonly claim = randomBytes(9).toString('base64url')
  generation = 0
  /** Whether it is in the bucket; where it is, the generation is its place. */
  record: 'none' | 'unknown' | 'written' = 'none'
  /** `new` takes the device from whoever has it, `alone` came while the bucket could not be reached. */
  state: 'new' | 'alone' | 'held' | 'lost' = 'new'
  /** When the hold was last made sure of, see `Owners.#doubts`. */
  sureAt = -1
  settling: Promise<boolean> | undefined

  constructor (deviceId: string, owner: Owner) {
    this.deviceId = deviceId
    this.owner = owner
  }
}

/** The devices this node owns: their records in the bucket, and a subject for each, on which whoever asks is answered. */
export class OwnershipTable {
  readonly #link: Link
  readonly #nodes: Membership
  readonly #records: StreamStore
  readonly #tell: (change: PresenceChange) => void
  readonly #owned = new Map<string, OwnedDevice>()
  /** The keys of `#owned`, in order. */
  readonly #ids = new SortedIndex()
  readonly #subscribed = new Map<string, LinkSubscription>()
  readonly #underway = new Map<string, AbortController>()
  /** All whose record is, or may come to be, in the bucket. */
  readonly #claims = new Map<string, OwnedDevice>()
  /** What is to be compared with its record, or erased. */
  readonly #unsettled = new Set<OwnedDevice>()
  readonly #rechecking: NodeJS.Timeout
  #rechecked: Iterator<OwnedDevice> | undefined
  /** How often this node could not be sure of what it holds. */
  #doubts = 0
  #highest = 0
  #isSettling = false

  constructor (link: Link, nodes: Membership, records: StreamStore, tell: (change: PresenceChange) => void) {
    this.#link = link
    this.#nodes = nodes
    this.#records = records
    this.#tell = tell
    nodes.onLapse(() => this.#doubtAll())
    link.subscribe(yieldSubject(nodes.self), message => {
      const { deviceId, generation }: YieldDemand = decode(message.data)
      this.#yield(deviceId, generation)
      this.#reply(message, '')
    })
    this.#rechecking = setInterval(() => this.#recheck(), RECHECK_EVERY_MS).unref()
  }

  async own (deviceId: string, owner: Owner): Promise<Ownership> {
    const owned = new OwnedDevice(deviceId, owner)
    this.#claims.set(owned.claim, owned)
    try {
      // whoever has it here shall not write about itself meanwhile
      await this.#owned.get(deviceId)?.settling?.catch(() => {})
      await this.#settleOrHoldAlone(owned)
    } catch (error) {
      void this.#release(owned)
      throw error
    }
    return {
      get generation () { return owned.generation },
      release: () => this.#release(owned)
    }
  }

  /** The devices that are here, in the order of their ids, from behind this one. */
  * after (id: string): IterableIterator<{ presence: Presence, owner: Owner }> {
    for (const deviceId of this.#ids.after(id)) {
      const { owner, generation } = this.#owned.get(deviceId)!
      yield { presence: { ...owner.presence, generation }, owner }
    }
  }

  /** Erases records of this node that nothing here has made, or that could not be erased before. */
  async disown (found: OwnerRecord[]): Promise<void> {
    for (const { deviceId, generation, claim, node, since } of found) {
      if (this.#claims.has(claim)) continue
      const erased = await this.#records.erase(recordSubject(deviceId), generation, found => isOf(found, { claim }))
      if (erased) this.#tell({ kind: 'disconnected', presence: { deviceId, node, generation, since } })
    }
  }

  /** Gives everything back. */
  async close (): Promise<void> {
    clearInterval(this.#rechecking)
    const all = [...this.#claims.values()]
    for (const owned of all) this.#letGo(owned)
    if (this.#link.up) await Promise.allSettled(all.map(owned => this.#erase(owned)))
  }

  async #settleOrHoldAlone (owned: OwnedDevice): Promise<void> {
    try {
      await this.#settle(owned)
    } catch (error) {
      if ((error as Failure).reason !== 'unreachable') throw error
      await this.#confirmAlive(owned, undefined)
      this.#holdAlone(owned)
    }
  }

  /** The bucket cannot be reached: the device is this node's as far as this node knows. */
  #holdAlone (owned: OwnedDevice): void {
    if (owned.record !== 'written') {
      owned.state = 'alone'
      owned.generation = ++this.#highest
    }
    this.#enter(owned)
    this.#doubt(owned)
  }

  /** False: there is a newer owner. */
  async #settle (owned: OwnedDevice): Promise<boolean> {
    const doubts = this.#doubts
    const subject = recordSubject(owned.deviceId)
    let found = await this.#records.last(subject)
    while (!isOf(found, owned)) {
      if (!mayTake(owned, found)) return this.#lose(owned)
      if (owned.state === 'new') await this.#confirmAlive(owned, found)
      owned.record = 'unknown'
      const appended = await this.#records.append(subject, JSON.stringify(this.#heldBy(owned, found)), { after: found?.seq })
      if (appended) await this.#took(owned, appended.seq, found)
      // once more, although it was written: somebody may have been quicker than our subscription
      found = await this.#records.last(subject)
    }
    this.#written(owned, found!.seq)
    if (owned.state === 'alone') owned.state = 'held'
    owned.sureAt = doubts
    return true
  }

  /** Repeated before each attempt to replace an older owner, because the device may have given this connection up meanwhile. */
  async #confirmAlive ({ deviceId, owner }: OwnedDevice, older: StoredRecord | undefined): Promise<void> {
    if (older || this.#owned.has(deviceId)) await owner.confirmAlive?.()
  }

  async #took (owned: OwnedDevice, generation: number, older: StoredRecord | undefined): Promise<void> {
    const isAgain = owned.state !== 'new'
    this.#written(owned, generation)
    this.#highest = Math.max(this.#highest, generation)
    if (older) this.#tell({ kind: 'disconnected', presence: presenceOf(older) })
    this.#tell({ kind: 'connected', presence: { ...owned.owner.presence, generation } })
    if (older) await this.#demand(ownerRecordOf(older).home, { deviceId: owned.deviceId, generation })
    else this.#askToCompare(owned)
    if (owned.state === 'held') this.#enter(owned)
    // the older owner, or nobody, was told of letters that came before
    if (isAgain && owned.state !== 'lost') owned.owner.answer({ kind: 'ring' }).catch(error => this.#link.trouble(error))
  }

  #written (owned: OwnedDevice, generation: number): void {
    owned.generation = generation
    owned.record = 'written'
    // a NATS cluster before 2.11 may write two records after the same one, so one that came alone is compared once more
    if (owned.state === 'new') owned.state = 'held'
  }

  /** Tells the node of an older owner to let go. Resolves after the first try, and repeats until the node has answered or is dead. */
  async #demand (home: string, demand: YieldDemand): Promise<void> {
    if (home === this.#nodes.self || !this.#nodes.alive(home)) return
    const answer = await this.#link.request(yieldSubject(home), encode(demand), YIELD_TIMEOUT_MS).catch(() => undefined)
    if (!answer) setTimeout(() => void this.#demand(home, demand), YIELD_RETRY_MS).unref()
  }

  /** Without an older record nobody is known to have the device: whoever wrote the first one at the same time compares itself. */
  #askToCompare ({ deviceId, generation }: OwnedDevice): void {
    if (this.#link.up) this.#link.publish(deviceSubject(deviceId), encode({ kind: 'compare', generation } satisfies DeviceRequest))
  }

  /** A connection that came while the bucket could not be reached compares itself with the record. */
  #yield (deviceId: string, generation: number): void {
    const owned = this.#owned.get(deviceId)
    if (owned?.state === 'held' && owned.generation < generation) this.#lose(owned)
    else if (owned?.state === 'alone') this.#doubt(owned)
  }

  #compare (owned: OwnedDevice, generation: number): void {
    if (owned.generation < generation) this.#doubt(owned)
  }

  /** The higher generation stays, whichever comes first. */
  #enter (owned: OwnedDevice): void {
    const { deviceId } = owned
    const current = this.#owned.get(deviceId)
    if (current === owned) return
    if (current && current.state === 'held' && current.generation > owned.generation) return void this.#lose(owned)
    this.#owned.set(deviceId, owned)
    this.#ids.add(deviceId)
    if (current) this.#lose(current, { isReplaced: owned.record === 'written' })
    if (!this.#subscribed.has(deviceId)) this.#subscribed.set(deviceId, this.#link.subscribe(deviceSubject(deviceId), message => this.#hear(deviceId, message)))
  }

  #lose (owned: OwnedDevice, { isReplaced = true } = {}): false {
    if (owned.state === 'lost') return false
    if (isReplaced) owned.record = 'none' // the newer one stands in its place
    this.#letGo(owned)
    owned.owner.yield()
    void this.#settleAll()
    return false
  }

  /** Its record is to be erased, unless another has taken its place. */
  #letGo (owned: OwnedDevice): void {
    owned.state = 'lost'
    this.#unsettled.add(owned)
    const { deviceId } = owned
    if (this.#owned.get(deviceId) !== owned) return
    this.#owned.delete(deviceId)
    this.#ids.delete(deviceId)
    this.#subscribed.get(deviceId)!.end()
    this.#subscribed.delete(deviceId)
  }

  async #release (owned: OwnedDevice): Promise<void> {
    if (owned.state !== 'lost') this.#letGo(owned)
    await owned.settling?.catch(() => {})
    await this.#settled(owned)
    void this.#settleAll()
  }

  /** Only the record of this very connection goes; there is none any more where a newer one took its place. */
  async #erase (owned: OwnedDevice): Promise<void> {
    if (!this.#claims.has(owned.claim)) return
    const place = owned.record === 'unknown' ? await this.#placeOf(owned) : owned.generation
    const erased = owned.record !== 'none' && place !== undefined &&
      await this.#records.erase(recordSubject(owned.deviceId), place, found => isOf(found, owned))
    this.#claims.delete(owned.claim)
    if (erased) this.#tell({ kind: 'disconnected', presence: { ...owned.owner.presence, generation: place } })
  }

  /** Where the record of a connection is of which nobody knows whether it was written. */
  async #placeOf (owned: OwnedDevice): Promise<number | undefined> {
    const found = await this.#records.last(recordSubject(owned.deviceId))
    return isOf(found, owned) ? found!.seq : undefined
  }

  /** This node was away, or others took it for dead. */
  #doubtAll (): void {
    this.#doubts++
    for (const owned of this.#owned.values()) this.#unsettled.add(owned)
    void this.#settleAll()
  }

  #doubt (owned: OwnedDevice): void {
    owned.sureAt = -1
    this.#unsettled.add(owned)
    void this.#settleAll()
  }

  #recheck (): void {
    if (!this.#link.up) return
    for (let count = 0; count < RECHECKED_AT_ONCE; count++) {
      this.#rechecked ??= this.#owned.values()
      const { value, done } = this.#rechecked.next()
      if (done) return void (this.#rechecked = undefined)
      this.#doubt(value)
    }
  }

  /** Compares and erases until nothing is left to do. Those that fail come last in the next pass, and hold up no other. */
  async #settleAll (): Promise<void> {
    if (this.#isSettling) return
    this.#isSettling = true
    let wait = RETRY_MS
    let isTold = false
    while (this.#link.up && this.#unsettled.size > 0) {
      const errors = await this.#pass()
      if (errors.length === 0) continue
      if (!isTold) this.#link.trouble(errors[0])
      isTold = true
      await sleep(wait, undefined, { ref: false })
      wait = Math.min(2 * wait, MAX_RETRY_MS)
    }
    this.#isSettling = false
  }

  /** Once through all, side by side; less where much fails, because then each costs time. */
  async #pass (): Promise<unknown[]> {
    const waiting = [...this.#unsettled].values()
    const errors: unknown[] = []
    const lane = async () => {
      for (const owned of waiting) {
        const error = await this.#settled(owned)
        if (error) errors.push(error)
        if (errors.length >= SIDE_BY_SIDE) return
      }
    }
    await Promise.all(Array.from({ length: SIDE_BY_SIDE }, lane))
    return errors
  }

  /** Undefined: it is done with. */
  async #settled (owned: OwnedDevice): Promise<unknown> {
    if (!this.#link.up) return undefined // the next link begins with all of them
    try {
      if (owned.state === 'lost') await this.#erase(owned)
      else await this.#holds(owned)
      if (owned.state !== 'lost' ? owned.sureAt === this.#doubts : !this.#claims.has(owned.claim)) this.#unsettled.delete(owned)
      return undefined
    } catch (error) {
      if (this.#unsettled.delete(owned)) this.#unsettled.add(owned)
      return error
    }
  }

  /** Whether the device is still this connection's; a node that was away asks the bucket first. */
  async #holds (owned: OwnedDevice): Promise<boolean> {
    this.#nodes.check()
    if (owned.sureAt === this.#doubts) return owned.state === 'held'
    owned.settling ??= this.#settle(owned).finally(() => { owned.settling = undefined })
    return await owned.settling && owned.state === 'held'
  }

  #hear (deviceId: string, message: Msg): void {
    const word: DeviceRequest = decode(message.data)
    const owned = this.#owned.get(deviceId)
    if (!owned) return
    switch (word.kind) {
      case 'cancel': return this.#underway.get(word.nonce)?.abort()
      case 'probe': return this.#reply(message, this.#underway.has(word.nonce) ? '1' : '0')
      case 'compare': return this.#compare(owned, word.generation)
      default: void this.#answer(owned, word, message)
    }
  }

  async #answer (owned: OwnedDevice, { nonce, ...request }: Request & { nonce: string }, message: Msg): Promise<void> {
    const controller = new AbortController()
    const askedAt = performance.now()
    this.#underway.set(nonce, controller)
    try {
      // who is not the owner any more keeps quiet: the owner answers
      if (!await this.#holds(owned)) return
      const answer = await owned.owner.answer(shortened(request, performance.now() - askedAt), controller.signal)
      this.#reply(message, encode(answer))
    } catch (error) {
      const { reason } = failureMessage(null, error)
      // what cannot be encoded is the answer, and whoever asked is not to blame for that
      this.#reply(message, encode({ ok: false, reason: reason === 'bad-params' ? 'internal' : reason } satisfies Answer))
    } finally {
      this.#underway.delete(nonce)
    }
  }

  #reply (message: Msg, payload: Uint8Array | string): void {
    if (this.#link.up) this.#link.reply(message, payload)
  }

  #heldBy ({ owner, claim }: OwnedDevice, older: StoredRecord | undefined): Omit<OwnerRecord, 'generation' | 'deviceId'> {
    const { node, since } = owner.presence
    return { node, since, home: this.#nodes.self, claim, ...(!older && { first: true }) }
  }
}

/** The request with as much less time as it has waited already. */
function shortened (request: Request, waited: number): Request {
  return 'timeout' in request ? { ...request, timeout: Math.max(1, Math.ceil(request.timeout - waited)) } : request
}

/** The subject of a device in the bucket, and the one on which its owner hears. */
export const recordSubject = (deviceId: string): string => token(deviceId)
export const deviceSubject = (deviceId: string): string => `device.${token(deviceId)}`
const yieldSubject = (node: string): string => `node.${node}.yield`

export function ownerRecordOf ({ subject, seq, data }: StoredRecord): OwnerRecord {
  const held = JSON.parse(Buffer.from(data).toString())
  return { deviceId: textOf(subject.split('.').at(-1)!), generation: seq, ...held }
}

export function presenceOf (stored: StoredRecord): Presence {
  const { deviceId, node, generation, since } = ownerRecordOf(stored)
  return { deviceId, node, generation, since }
}

export function isOf (found: StoredRecord | undefined, { claim }: Pick<OwnerRecord, 'claim'>): boolean {
  return found !== undefined && ownerRecordOf(found).claim === claim
}

/** One that came just now takes the device from everybody, one that came while NATS was away from those that were before it. */
function mayTake ({ state, owner, generation }: OwnedDevice, found: StoredRecord | undefined): boolean {
  const isOlder = (found: StoredRecord) => ownerRecordOf(found).since <= owner.presence.since
  switch (state) {
    case 'new': return true
    case 'alone': return !found || isOlder(found)
    // another node took this one for dead, NATS went back to an earlier state, or a write came late that knew of no owner
    case 'held': return !found || (isOlder(found) && (found.seq < generation || ownerRecordOf(found).first === true))
    case 'lost': return false
  }
}
