import { randomBytes } from 'node:crypto'
import { withDeadline } from '../protocol/deadline.ts'
import { beatScript, joinScript, leaveScript, sweepScript } from './backplane-scripts.ts'
import { CHANGES, nodeChannel } from './node-message.ts'
import type { Link, Run } from './link.ts'
import type { ServerClock } from './server-clock.ts'

const BEAT_INTERVAL_MS = 500
/** A node whose lease has not been renewed for this long is dead. */
const LEASE_MS = 3_500
/** A node that has not renewed its lease for this long may have lost its devices. */
const SELF_TIMEOUT_MS = 2_500
/** Beats in a row without an answer, or without hearing them, after which the connection is replaced. */
const MAX_MISSED_BEATS = 4
/** Time for one node to sweep, before it may be the turn of another. */
const SWEEP_TURN_MS = 2_000
const RECORDS_PER_STEP = 500
/** Time for Redis to accept that this node leaves. */
const LEAVE_TIMEOUT_MS = 1_000

/** The lease of this node, and what becomes of nodes whose lease has ended. */
export class Membership {
  /** Id of this node; a new one after each start. */
  readonly self = randomBytes(9).toString('base64url')
  readonly #link: Link
  readonly #clock: ServerClock
  readonly #joinListeners = new Set<() => void>()
  readonly #timer: NodeJS.Timeout
  #epoch = 0
  #highestGeneration = 0
  #joining: Promise<void> | undefined
  #renewedAt = -Infinity
  #unanswered = 0
  #unheard = 0

  constructor (link: Link, clock: ServerClock) {
    this.#link = link
    this.#clock = clock
    link.onChange(up => { if (up) this.#notify() })
    this.#timer = setInterval(() => void this.#beat(), BEAT_INTERVAL_MS).unref()
  }

  /** Counts how often this node has joined. Records of earlier epochs are valid until they are swept, which this node does once it has written its devices again. */
  get epoch (): number {
    return this.#epoch
  }

  /** The highest generation that this node knows of. */
  get highestGeneration (): number {
    return this.#highestGeneration
  }

  /** Calls back after each join, when all devices must be written again. */
  onJoin (listener: () => void): void {
    this.#joinListeners.add(listener)
  }

  note (generation: number): void {
    this.#highestGeneration = Math.max(this.#highestGeneration, generation)
  }

  /** A generation for a connection that comes while Redis is unreachable: the time, which is what Redis would have chosen. */
  nextGeneration (): number {
    this.note(Math.max(this.#highestGeneration + 1, Math.floor(this.#clock.now() * 1_000)))
    return this.#highestGeneration
  }

  /** Joins, on a connection that is not up yet. */
  async prepare (run: Run): Promise<void> {
    this.#epoch++
    this.#clock.invalidate()
    await this.#join(run)
  }

  /** Resolves once this node has a lease. Joins anew if it has been silent for too long: others may have taken its devices. */
  async joined (): Promise<void> {
    if (this.#link.up && performance.now() - this.#renewedAt > SELF_TIMEOUT_MS) this.rejoin()
    await this.#joining
  }

  /** All devices are written again, and what else Redis has of this node is erased. */
  rejoin (): void {
    if (this.#joining || !this.#link.up) return
    this.#epoch++
    this.#joining = this.#join((script, keys, args) => this.#link.run(script, keys, args))
      .then(() => this.#notify(), error => this.#link.reset(`cannot join: ${error.message}`))
      .finally(() => { this.#joining = undefined })
  }

  heard (): void {
    this.#unheard = 0
  }

  /** Erases the records that a node wrote in this epoch or an earlier one. */
  async sweep (home: string, epoch: number): Promise<void> {
    let cursor = '0'
    do {
      cursor = String(await this.#link.run(sweepScript, ['owners', 'index', 'nodes', CHANGES], [home, epoch, cursor, RECORDS_PER_STEP]))
    } while (cursor !== '0')
  }

  async close (): Promise<void> {
    clearInterval(this.#timer)
    if (!this.#link.up) return
    const leaving = this.#link.run(leaveScript, ['nodes'], [this.self])
    await withDeadline(leaving, LEAVE_TIMEOUT_MS, () => new Error('no answer')).catch(() => {}) // then its lease ends
  }

  #notify (): void {
    for (const listener of this.#joinListeners) listener()
  }

  async #join (run: Run): Promise<void> {
    const sentAt = performance.now()
    const time = await run(joinScript, ['nodes', 'generation'], [this.self, this.#epoch, LEASE_MS, this.#highestGeneration])
    this.#clock.note(Number(time) / 1_000, sentAt)
    this.#renewedAt = sentAt
    this.#unanswered = this.#unheard = 0
  }

  async #beat (): Promise<void> {
    if (!this.#link.up || this.#joining) return
    if (this.#unanswered++ >= MAX_MISSED_BEATS) return this.#link.reset('Redis does not answer')
    if (this.#unheard++ >= MAX_MISSED_BEATS) return this.#link.reset('Redis delivers no messages')
    try {
      await this.#renew()
    } catch (error) {
      if (this.#link.up) this.#link.reportOnce(error)
    }
  }

  async #renew (): Promise<void> {
    const sentAt = performance.now()
    const epoch = this.#epoch
    const keys = ['nodes', 'generation', 'sweeper', nodeChannel(this.self)]
    const [time, generation, isAlive, ...dead] = await this.#link.run(beatScript, keys, [this.self, epoch, LEASE_MS, SWEEP_TURN_MS]) as [Buffer, Buffer, number, ...Buffer[]]
    if (epoch !== this.#epoch) return
    this.#unanswered = 0
    this.#clock.note(Number(time) / 1_000, sentAt)
    this.note(Number(generation))
    if (isAlive === 0) return this.rejoin()
    this.#renewedAt = sentAt
    for (let at = 0; at < dead.length; at += 2) await this.sweep(String(dead[at]), Number(dead[at + 1]))
  }
}
