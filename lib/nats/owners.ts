import { randomBytes } from 'node:crypto'
import { setTimeout as sleep } from 'node:timers/promises'
import type { Msg } from '@nats-io/transport-node'
import type { Answer, Change, Owner, Ownership, Presence, Request } from '../backplane.ts'
import { Failure } from '../errors.ts'
import { failed } from '../message.ts'
import type { Link, Subscribed } from './link.ts'
import type { Nodes } from './nodes.ts'
import type { Records, Stored } from './records.ts'
import { textOf, token } from './subjects.ts'
import { decode, encode } from './wire.ts'

/** What the bucket says of a device. */
export interface Held extends Presence {
  /** The node, from its start to its end. */
  home: string
  /** The connection. */
  claim: string
}

/** What nodes say to each other about a device, besides what they ask of it. */
export type Word =
  | Request & { nonce: string }
  | { kind: 'cancel' | 'probe', nonce: string }
  | { kind: 'yield', generation: number }

/** How long an older owner has to let go; one that is stuck finds out when it wakes. */
const LET_GO = 250
/** A connection that could not be entered for so long is an old one. */
const FRESH = 2_500
const SIDE_BY_SIDE = 64

/** A connection that holds a device, or will. */
class Owned {
  readonly deviceId: string
  readonly owner: Owner
  readonly claim = randomBytes(9).toString('base64url')
  readonly began = performance.now()
  generation = 0
  /** Whether the generation is the place of its record. */
  recorded = false
  /** `new` takes the device from whoever has it, `alone` came while NATS was away. */
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
export class Owners {
  readonly #link: Link
  readonly #nodes: Nodes
  readonly #records: Records
  readonly #tell: (change: Change) => void
  readonly #owned = new Map<string, Owned>()
  readonly #subscribed = new Map<string, Subscribed>()
  readonly #underway = new Map<string, AbortController>()
  /** Those that have left, until their records are erased. */
  readonly #left = new Set<Owned>()
  /** How often this node could not be sure of what it holds. */
  #doubts = 0
  #highest = 0
  #makingSure = false

  constructor (link: Link, nodes: Nodes, records: Records, tell: (change: Change) => void) {
    this.#link = link
    this.#nodes = nodes
    this.#records = records
    this.#tell = tell
    nodes.onLapse(() => {
      this.#doubts++
      void this.#makeSure()
    })
  }

  async own (deviceId: string, owner: Owner): Promise<Ownership> {
    const owned = new Owned(deviceId, owner)
    try {
      // whoever has it here shall not write about itself meanwhile
      await this.#owned.get(deviceId)?.settling?.catch(() => {})
      await this.#settle(owned)
    } catch (error) {
      if (!(error instanceof Failure) || this.#link.up) {
        void this.#release(owned).catch(error => this.#link.trouble(error)) // it may have been written all the same
        throw error
      }
      this.#holdAlone(owned)
    }
    return {
      get generation () { return owned.generation },
      release: () => this.#release(owned)
    }
  }

  /** Those that are here, in the order of their ids. */
  * [Symbol.iterator] (): IterableIterator<{ presence: Presence, owner: Owner }> {
    for (const deviceId of [...this.#owned.keys()].toSorted()) {
      const { owner, generation } = this.#owned.get(deviceId)!
      yield { presence: { ...owner.presence, generation }, owner }
    }
  }

  /** Gives everything back. */
  async close (): Promise<void> {
    for (const owned of this.#owned.values()) {
      this.#forget(owned.deviceId)
      this.#left.add(owned)
    }
    if (this.#link.up) await Promise.allSettled([...this.#left].map(owned => this.#erase(owned)))
  }

  /** NATS is away: the device is this node's as far as this node knows. */
  #holdAlone (owned: Owned): void {
    owned.state = 'alone'
    owned.generation = ++this.#highest
    this.#enter(owned)
  }

  /** False: there is a newer owner. */
  async #settle (owned: Owned): Promise<boolean> {
    const doubts = this.#doubts
    const subject = recordOf(owned.deviceId)
    let found = await this.#records.last(subject)
    while (!isOf(found, owned)) {
      if (!mayTake(owned, found)) return this.#lose(owned)
      const appended = await this.#records.append(subject, JSON.stringify(this.#heldBy(owned)), { after: found?.seq ?? 0 })
      if (appended) await this.#took(owned, appended.seq, found)
      else if (owned.state === 'new' && performance.now() - owned.began > FRESH) throw new Failure('unreachable')
      // once more, although it was written: somebody may have been quicker than our subscription
      found = await this.#records.last(subject)
    }
    owned.generation = found!.seq
    owned.recorded = true
    if (owned.state !== 'lost') owned.state = 'held'
    owned.sureAt = doubts
    return true
  }

  async #took (owned: Owned, generation: number, older: Stored | undefined): Promise<void> {
    owned.generation = generation
    owned.recorded = true
    if (owned.state !== 'lost') owned.state = 'held'
    this.#highest = Math.max(this.#highest, generation)
    if (older) this.#tell({ kind: 'disconnected', presence: presenceOf(older) })
    this.#tell({ kind: 'connected', presence: { ...owned.owner.presence, generation } })
    const home = older && heldOf(older).home
    if (home && home !== this.#nodes.self && this.#nodes.alive(home)) {
      await this.#link.request(wordsOf(owned.deviceId), encode({ kind: 'yield', generation } satisfies Word), LET_GO).catch(() => {})
    }
    if (owned.state === 'held') this.#enter(owned)
  }

  /** The higher generation stays, whichever comes first. */
  #enter (owned: Owned): void {
    const { deviceId } = owned
    const current = this.#owned.get(deviceId)
    if (current === owned) return
    if (current && current.state === 'held' && current.generation > owned.generation) return void this.#lose(owned)
    this.#owned.set(deviceId, owned)
    if (current) this.#lose(current)
    if (!this.#subscribed.has(deviceId)) this.#subscribed.set(deviceId, this.#link.subscribe(wordsOf(deviceId), message => this.#hear(deviceId, message)))
  }

  #lose (owned: Owned): false {
    if (owned.state === 'lost') return false
    owned.state = 'lost'
    if (this.#owned.get(owned.deviceId) === owned) this.#forget(owned.deviceId)
    owned.owner.yield()
    return false
  }

  #forget (deviceId: string): void {
    this.#owned.delete(deviceId)
    this.#subscribed.get(deviceId)!.end()
    this.#subscribed.delete(deviceId)
  }

  async #release (owned: Owned): Promise<void> {
    if (owned.state === 'lost') return
    owned.state = 'lost'
    if (this.#owned.get(owned.deviceId) === owned) this.#forget(owned.deviceId)
    this.#left.add(owned)
    await owned.settling?.catch(() => {})
    if (this.#link.up) await this.#erase(owned)
  }

  /** Only the record of this very connection goes; there is none any more where a newer one took its place. */
  async #erase (owned: Owned): Promise<void> {
    const place = owned.recorded ? owned.generation : await this.#placeOf(owned)
    const erased = place !== undefined && await this.#records.erase(place)
    this.#left.delete(owned)
    if (erased) this.#tell({ kind: 'disconnected', presence: { ...owned.owner.presence, generation: place } })
  }

  /** Where the record of a connection is of which nobody knows whether it was written. */
  async #placeOf (owned: Owned): Promise<number | undefined> {
    const found = await this.#records.last(recordOf(owned.deviceId))
    return isOf(found, owned) ? found!.seq : undefined
  }

  /** After a gap: what is held is made sure of, what was given back meanwhile is told. */
  async #makeSure (): Promise<void> {
    if (this.#makingSure) return
    this.#makingSure = true
    try {
      for (const owned of this.#left) await this.#erase(owned)
      const unsure = [...this.#owned.values()]
      const lane = async () => {
        for (let owned = unsure.pop(); owned; owned = unsure.pop()) await this.#holds(owned)
      }
      await Promise.all(Array.from({ length: SIDE_BY_SIDE }, lane))
    } catch (error) {
      this.#link.trouble(error)
      await sleep(LET_GO, undefined, { ref: false })
    }
    this.#makingSure = false
    const done = this.#left.size === 0 && [...this.#owned.values()].every(({ sureAt }) => sureAt === this.#doubts)
    if (!done && this.#link.up) void this.#makeSure()
  }

  /** Whether the device is still this connection's; a node that was away asks the bucket first. */
  async #holds (owned: Owned): Promise<boolean> {
    this.#nodes.check()
    if (owned.sureAt === this.#doubts) return owned.state === 'held'
    owned.settling ??= this.#settle(owned).finally(() => { owned.settling = undefined })
    return await owned.settling && owned.state === 'held'
  }

  #hear (deviceId: string, message: Msg): void {
    const word: Word = decode(message.data)
    const owned = this.#owned.get(deviceId)
    if (!owned) return
    switch (word.kind) {
      case 'cancel': return this.#underway.get(word.nonce)?.abort()
      case 'probe': return this.#reply(message, this.#underway.has(word.nonce) ? '1' : '0')
      case 'yield': {
        // one that came while NATS was away compares itself with the record
        if (owned.state === 'held' && owned.generation < word.generation) this.#lose(owned)
        return this.#reply(message, '')
      }
      default: void this.#answer(owned, word, message)
    }
  }

  async #answer (owned: Owned, { nonce, ...request }: Request & { nonce: string }, message: Msg): Promise<void> {
    const controller = new AbortController()
    this.#underway.set(nonce, controller)
    try {
      // who is not the owner any more keeps quiet: the owner answers
      if (!await this.#holds(owned)) return
      const answer = await owned.owner.answer(request, controller.signal)
      this.#reply(message, encode(answer))
    } catch (error) {
      const { reason } = failed(null, error)
      // what cannot be encoded is the answer, and whoever asked is not to blame for that
      this.#reply(message, encode({ ok: false, reason: reason === 'bad-params' ? 'internal' : reason } satisfies Answer))
    } finally {
      this.#underway.delete(nonce)
    }
  }

  #reply (message: Msg, payload: Uint8Array | string): void {
    if (this.#link.up) this.#link.reply(message, payload)
  }

  #heldBy ({ owner, claim }: Owned): Omit<Held, 'generation' | 'deviceId'> {
    const { node, since } = owner.presence
    return { node, since, home: this.#nodes.self, claim }
  }
}

/** The subject of a device in the bucket, and the one on which its owner hears. */
export const recordOf = (deviceId: string): string => token(deviceId)
export const wordsOf = (deviceId: string): string => `device.${token(deviceId)}`

export function heldOf ({ subject, seq, data }: Stored): Held {
  const held = JSON.parse(Buffer.from(data).toString())
  return { deviceId: textOf(subject.split('.').at(-1)!), generation: seq, ...held }
}

export function presenceOf (stored: Stored): Presence {
  const { deviceId, node, generation, since } = heldOf(stored)
  return { deviceId, node, generation, since }
}

function isOf (found: Stored | undefined, { claim }: Owned): boolean {
  return found !== undefined && heldOf(found).claim === claim
}

/** One that came just now takes the device from everybody, one that came while NATS was away from those that were before it. */
function mayTake ({ state, owner }: Owned, found: Stored | undefined): boolean {
  switch (state) {
    case 'new': return true
    case 'alone': return !found || heldOf(found).since <= owner.presence.since
    case 'held': return !found // a node took this one for dead
    case 'lost': return false
  }
}
