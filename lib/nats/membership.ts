import { randomBytes } from 'node:crypto'
import { setTimeout as sleep } from 'node:timers/promises'
import type { Msg } from '@nats-io/transport-node'
import { Failure } from '../protocol/errors.ts'
import { LatenessTracker } from './lateness.ts'
import type { Link } from './link.ts'

const HEARTBEAT_INTERVAL_MS = 500
/** A node that has not received its own heartbeat for this long may have lost its devices, */
const SELF_TIMEOUT_MS = 2_500
/** and the others take it for dead when they have not received one for this long. */
const NODE_TIMEOUT_MS = 3_500
/** Nodes taken for dead that are remembered. */
const MAX_REMEMBERED_DEAD = 1_000
/** Time for the others to answer the query of a node that has just joined. */
const DISCOVERY_MS = 100

/** The nodes that are alive: each publishes a heartbeat, which all nodes receive, itself included. */
export class Membership {
  /** Id of this node; a new one after each start. */
  readonly self = randomBytes(9).toString('base64url')
  readonly lateness = new LatenessTracker()
  readonly #link: Link
  readonly #lastHeard = new Map<string, number>()
  /** Nodes that were taken for dead. */
  readonly #dead = new Set<string>()
  readonly #timer: NodeJS.Timeout
  readonly #lapseListeners = new Set<() => void>()
  readonly #deathListeners = new Set<() => void>()
  /** When it last received its own heartbeat. */
  #selfHeardAt = performance.now()
  /** Since when it has received heartbeats without a gap. */
  #listeningSince = performance.now()
  /** A node may have died since the death listeners were called. */
  #mayHaveDied = true

  constructor (link: Link) {
    this.#link = link
    link.subscribe('beat', message => this.#receive(message.string()))
    link.onChange(() => this.#restart())
    this.#timer = setInterval(() => this.#tick(), HEARTBEAT_INTERVAL_MS).unref()
  }

  /** Called when this node may have lost its devices: it was away, was taken for dead, or has missed other nodes. */
  onLapse (listener: () => void): void {
    this.#lapseListeners.add(listener)
  }

  /** Called after nodes have died. */
  onDeath (listener: () => void): void {
    this.#deathListeners.add(listener)
  }

  /** One node leads and does the work that one node has to do for all. A node that has just joined does not know all nodes, so it does not lead. */
  get leads (): boolean {
    return performance.now() - this.#listeningSince >= NODE_TIMEOUT_MS && this.#all.toSorted()[0] === this.self
  }

  /** Notifies a node that it may have lost its devices. */
  warn (node: string): void {
    if (this.#link.up) this.#link.publish('beat', `!${node}`)
  }

  /** The nodes that are alive, this one included. A node that has just joined waits for the others to answer its query. */
  async everyone (): Promise<string[]> {
    const wait = this.#listeningSince + DISCOVERY_MS - performance.now()
    if (wait > 0) await sleep(wait)
    return this.#all
  }

  /** A node that has not listened for long enough takes no other for dead. */
  alive (node: string): boolean {
    this.check()
    const now = performance.now()
    return node === this.self || now - this.#listeningSince < NODE_TIMEOUT_MS || now - (this.#lastHeard.get(node) ?? -Infinity) < NODE_TIMEOUT_MS
  }

  /** Detects that this node was suspended or disconnected, before it judges other nodes or its own devices. */
  check (): void {
    if (this.#link.up && performance.now() - this.#selfHeardAt >= SELF_TIMEOUT_MS) this.#restart()
  }

  /** Resolves with undefined at once if the node is gone, and after the timeout if it is stuck. Rejects if this node cannot reach itself. */
  async ask (node: string, subject: string, question: Uint8Array | string, timeout: number): Promise<Msg | undefined> {
    const isSelf = node === this.self
    try {
      return await this.#link.request(subject, question, isSelf ? SELF_TIMEOUT_MS : timeout)
    } catch {
      if (isSelf || !this.#link.up) throw new Failure('unreachable')
      return undefined
    }
  }

  close (): void {
    clearInterval(this.#timer)
    if (this.#link.up) this.#link.publish('beat', `-${this.self}`)
  }

  get #all (): string[] {
    return [...new Set([this.self, ...this.#lastHeard.keys()])].filter(node => this.alive(node))
  }

  #tick (): void {
    if (!this.#link.up) return
    this.check()
    this.#publish('+')
    const now = performance.now()
    for (const [node, at] of this.#lastHeard) if (now - at >= NODE_TIMEOUT_MS) this.#declareDead(node)
    if (!this.#mayHaveDied || now - this.#listeningSince < NODE_TIMEOUT_MS) return
    this.#mayHaveDied = false
    for (const listener of this.#deathListeners) listener()
  }

  /** The node is dead, or this one is cut off and others may have taken over its devices. */
  #declareDead (node: string): void {
    this.#forget(node)
    this.#dead.add(node)
    if (this.#dead.size > MAX_REMEMBERED_DEAD) this.#forgetDead(this.#dead.values().next().value!)
    this.#lapse()
  }

  #forgetDead (node: string): void {
    this.#dead.delete(node)
    this.lateness.forget(node)
  }

  #lapse (): void {
    for (const listener of this.#lapseListeners) listener()
  }

  #restart (): void {
    this.#selfHeardAt = this.#listeningSince = performance.now()
    this.#lastHeard.clear()
    this.#mayHaveDied = true
    if (!this.#link.up) return
    this.#publish('?')
    this.#lapse()
  }

  /** `+`: alive; `?`: alive, and asks the others to publish a heartbeat; `-`: leaves; `!`: was taken for dead. */
  #receive (heartbeat: string): void {
    const [node = '', sentAt] = heartbeat.slice(1).split(' ')
    const sign = heartbeat[0]
    if (sign === '-') return this.#leave(node)
    if (sign === '!') return node === this.self ? this.#lapse() : undefined
    if (this.#dead.delete(node)) this.warn(node)
    this.lateness.note(node, Number(sentAt))
    this.#lastHeard.set(node, performance.now())
    if (node === this.self) this.#selfHeardAt = performance.now()
    else if (sign === '?' && this.#link.up) this.#publish('+')
  }

  /** A heartbeat of this node, with the time of its clock. */
  #publish (sign: '+' | '?'): void {
    this.#link.publish('beat', `${sign}${this.self} ${Math.round(performance.now())}`)
  }

  #leave (node: string): void {
    this.#forget(node)
    this.lateness.forget(node)
  }

  #forget (node: string): void {
    if (this.#lastHeard.delete(node)) this.#mayHaveDied = true
  }
}
