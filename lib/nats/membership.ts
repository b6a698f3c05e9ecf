import { randomBytes } from 'node:crypto'
import { setTimeout as sleep } from 'node:timers/promises'
import type { Msg } from '@nats-io/transport-node'
import { Failure } from '../protocol/errors.ts'
import { LatenessTracker } from './lateness.ts'
import type { Link } from './link.ts'

/** Every node says so often that it lives, */
const HEARTBEAT_INTERVAL_MS = 500
/** has lost its hold when it has not heard itself for so long, */
const SELF_TIMEOUT_MS = 2_500
/** and is dead to the others when they have not heard it for so long. */
const NODE_TIMEOUT_MS = 3_500
/** So many nodes that were given up are remembered. */
const MAX_REMEMBERED_DEAD = 1_000
/** How long the others may take to say that they live, when a node asks them. */
const DISCOVERY_MS = 100

/** Which nodes live: each tells all others, and itself, time and again. */
export class Membership {
  /** This node, from its start to its end: one that starts again under the same name is another. */
  readonly self = randomBytes(9).toString('base64url')
  readonly lateness = new LatenessTracker()
  readonly #link: Link
  readonly #heard = new Map<string, number>()
  /** Those that were taken for dead. */
  readonly #givenUp = new Set<string>()
  readonly #beating: NodeJS.Timeout
  readonly #lapsed = new Set<() => void>()
  readonly #missed = new Set<() => void>()
  /** When it last heard itself. */
  #echo = performance.now()
  /** Since when it has heard the others without a gap. */
  #since = performance.now()
  /** A node may have died since the last look. */
  #changed = true

  constructor (link: Link) {
    this.#link = link
    link.subscribe('beat', message => this.#hear(message.string()))
    link.onChange(() => this.#restart())
    this.#beating = setInterval(() => this.#beat(), HEARTBEAT_INTERVAL_MS).unref()
  }

  /** This node was away, or was taken for dead, or has missed others: it may have lost what it holds. */
  onLapse (listener: () => void): void {
    this.#lapsed.add(listener)
  }

  /** Nodes have died. */
  onDeath (listener: () => void): void {
    this.#missed.add(listener)
  }

  /** Of the nodes that live, one leads: it does what one has to do for all. A node that has just come does not yet know. */
  get leads (): boolean {
    return performance.now() - this.#since >= NODE_TIMEOUT_MS && this.#all.toSorted()[0] === this.self
  }

  /** Tells a node that it may have lost what it holds. */
  warn (node: string): void {
    if (this.#link.up) this.#link.publish('beat', `!${node}`)
  }

  /** Those that live, this one included; one that has just come lets the others introduce themselves. */
  async everyone (): Promise<string[]> {
    const wait = this.#since + DISCOVERY_MS - performance.now()
    if (wait > 0) await sleep(wait)
    return this.#all
  }

  /** Who has not listened for long enough takes nobody for dead. */
  alive (node: string): boolean {
    this.check()
    const now = performance.now()
    return node === this.self || now - this.#since < NODE_TIMEOUT_MS || now - (this.#heard.get(node) ?? -Infinity) < NODE_TIMEOUT_MS
  }

  /** Whether it was heard since this node itself is back. */
  hears (node: string): boolean {
    return node === this.self || this.#heard.has(node)
  }

  /** Finds out whether this node was away, in a pause or behind a broken line, before it says anything about the others or itself. */
  check (): void {
    if (this.#link.up && performance.now() - this.#echo >= SELF_TIMEOUT_MS) this.#restart()
  }

  /** One that is gone does not answer, which is known at once; one that is stuck, after a while. Rejects when even this one cannot hear itself. */
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
    clearInterval(this.#beating)
    if (this.#link.up) this.#link.publish('beat', `-${this.self}`)
  }

  get #all (): string[] {
    return [...new Set([this.self, ...this.#heard.keys()])].filter(node => this.alive(node))
  }

  #beat (): void {
    if (!this.#link.up) return
    this.check()
    this.#say('+')
    const now = performance.now()
    for (const [node, at] of this.#heard) if (now - at >= NODE_TIMEOUT_MS) this.#giveUp(node)
    if (!this.#changed || now - this.#since < NODE_TIMEOUT_MS) return
    this.#changed = false
    for (const listener of this.#missed) listener()
  }

  /** It is dead, or this node is cut off from it and others may have taken what this one holds. */
  #giveUp (node: string): void {
    this.#forget(node)
    this.#givenUp.add(node)
    if (this.#givenUp.size > MAX_REMEMBERED_DEAD) this.#forgetGivenUp(this.#givenUp.values().next().value!)
    this.#lapse()
  }

  #forgetGivenUp (node: string): void {
    this.#givenUp.delete(node)
    this.lateness.forget(node)
  }

  #lapse (): void {
    for (const listener of this.#lapsed) listener()
  }

  #restart (): void {
    this.#echo = this.#since = performance.now()
    this.#heard.clear()
    this.#changed = true
    if (!this.#link.up) return
    this.#say('?')
    this.#lapse()
  }

  /** `+` lives, `?` lives and wants to know who else does, `-` leaves, `!` was taken for dead. */
  #hear (beat: string): void {
    const [node = '', sentAt] = beat.slice(1).split(' ')
    const sign = beat[0]
    if (sign === '-') return this.#leave(node)
    if (sign === '!') return node === this.self ? this.#lapse() : undefined
    if (this.#givenUp.delete(node)) this.warn(node)
    this.lateness.note(node, Number(sentAt))
    this.#heard.set(node, performance.now())
    if (node === this.self) this.#echo = performance.now()
    else if (sign === '?' && this.#link.up) this.#say('+')
  }

  /** A word of this node, and what its clock shows. */
  #say (sign: '+' | '?'): void {
    this.#link.publish('beat', `${sign}${this.self} ${Math.round(performance.now())}`)
  }

  #leave (node: string): void {
    this.#forget(node)
    this.lateness.forget(node)
  }

  #forget (node: string): void {
    if (this.#heard.delete(node)) this.#changed = true
  }
}
