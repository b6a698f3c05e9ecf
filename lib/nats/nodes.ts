import { randomBytes } from 'node:crypto'
import { setTimeout as sleep } from 'node:timers/promises'
import type { Msg } from '@nats-io/transport-node'
import { Failure } from '../errors.ts'
import type { Link } from './link.ts'

/** Every node says so often that it lives, */
const BEAT = 500
/** has lost its hold when it has not heard itself for so long, */
const LAPSE = 2_500
/** and is dead to the others when they have not heard it for so long. */
const LIFE = 3_500
/** How long the others may take to say that they live, when a node asks them. */
const INTRODUCTIONS = 100

/** Which nodes live: each tells all others, and itself, time and again. */
export class Nodes {
  /** This node, from its start to its end: one that starts again under the same name is another. */
  readonly self = randomBytes(9).toString('base64url')
  readonly #link: Link
  readonly #heard = new Map<string, number>()
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
    this.#beating = setInterval(() => this.#beat(), BEAT).unref()
  }

  /** This node was away: it may have lost what it holds. */
  onLapse (listener: () => void): void {
    this.#lapsed.add(listener)
  }

  /** Nodes have died, and this one is to clear up behind them. */
  onDeath (listener: () => void): void {
    this.#missed.add(listener)
  }

  /** Those that live, this one included; one that has just come lets the others introduce themselves. */
  async everyone (): Promise<string[]> {
    const wait = this.#since + INTRODUCTIONS - performance.now()
    if (wait > 0) await sleep(wait)
    return this.#all
  }

  /** Who has not listened for long enough takes nobody for dead. */
  alive (node: string): boolean {
    this.check()
    const now = performance.now()
    return node === this.self || now - this.#since < LIFE || now - (this.#heard.get(node) ?? -Infinity) < LIFE
  }

  /** Whether it was heard since this node itself is back. */
  hears (node: string): boolean {
    return node === this.self || this.#heard.has(node)
  }

  /** Finds out whether this node was away, in a pause or behind a broken line, before it says anything about the others or itself. */
  check (): void {
    if (this.#link.up && performance.now() - this.#echo >= LAPSE) this.#restart()
  }

  /** One that is gone does not answer, which is known at once; one that is stuck, after a while. Rejects when even this one cannot hear itself. */
  async ask (node: string, subject: string, question: Uint8Array | string, timeout: number): Promise<Msg | undefined> {
    const isSelf = node === this.self
    try {
      return await this.#link.request(subject, question, isSelf ? LAPSE : timeout)
    } catch (error) {
      if (!this.#link.up) throw error
      if (isSelf) throw new Failure('unreachable')
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
    this.#link.publish('beat', `+${this.self}`)
    const now = performance.now()
    for (const [node, at] of this.#heard) if (now - at >= LIFE) this.#forget(node)
    if (!this.#changed || now - this.#since < LIFE) return
    this.#changed = false
    if (this.#all.toSorted()[0] === this.self) for (const listener of this.#missed) listener()
  }

  #restart (): void {
    this.#echo = this.#since = performance.now()
    this.#heard.clear()
    this.#changed = true
    if (!this.#link.up) return
    this.#link.publish('beat', `?${this.self}`)
    for (const listener of this.#lapsed) listener()
  }

  /** `+` lives, `?` lives and wants to know who else does, `-` leaves. */
  #hear (beat: string): void {
    const [sign, node] = [beat[0], beat.slice(1)]
    if (sign === '-') return this.#forget(node)
    this.#heard.set(node, performance.now())
    if (node === this.self) this.#echo = performance.now()
    else if (sign === '?' && this.#link.up) this.#link.publish('beat', `+${this.self}`)
  }

  #forget (node: string): void {
    if (this.#heard.delete(node)) this.#changed = true
  }
}
