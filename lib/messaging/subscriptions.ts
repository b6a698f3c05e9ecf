import type { FastifyBaseLogger } from 'fastify'
import { EVERYONE_TOPIC, type Backplane, type Publication, type Unwatch } from '../cluster/backplane.ts'
import { clock } from '../connection/clock.ts'
import { Failure } from '../protocol/errors.ts'
import { Frame } from '../connection/frame.ts'
import type { Codec } from '../protocol/message.ts'
import type { Session } from '../connection/session.ts'
import { flatString } from '../connection/flat-string.ts'
import { Topics, isFilter, type TopicLimits } from '../protocol/topics.ts'

export interface SubscriptionLimits {
  maxTopics: number
  topic: TopicLimits
}

/** The topic filters of the sessions on this node. On a remote backplane, a node watches only filters that one of its sessions has. */
export class Subscriptions {
  readonly #backplane: Backplane
  readonly #allSessions: Iterable<Session>
  readonly #limits: SubscriptionLimits
  readonly #log: FastifyBaseLogger
  readonly #topics = new Topics<Session>()
  readonly #watched = new Map<string, Unwatch>()
  /** The last topic that `listens` looked up, and its listeners. */
  #lastMatch: { topic: string, listeners: Set<Session> } | undefined

  constructor (backplane: Backplane, allSessions: Iterable<Session>, limits: SubscriptionLimits, log: FastifyBaseLogger) {
    this.#log = log
    this.#backplane = backplane
    this.#allSessions = allSessions
    this.#limits = limits
    // a backplane within one process gains nothing from filtering: one watch for all topics saves a second tree of filters
    for (const filter of backplane.remote ? [EVERYONE_TOPIC] : [EVERYONE_TOPIC, '#']) this.#watch(filter)
  }

  get size (): number {
    return this.#topics.size
  }

  /** Throws if the session may not add these filters. */
  check (session: Session, filters: string[]): void {
    if (new Set([...session.topics, ...filters]).size > this.#limits.maxTopics) throw new Failure('too-many-topics')
    if (!filters.every(filter => isFilter(filter, this.#limits.topic))) throw new Failure('bad-topic')
    if (session.left) throw new Failure('dropped')
  }

  /** Adds all of the filters, or throws and adds none. */
  join (session: Session, filters: string[]): void {
    this.check(session, filters)
    this.#lastMatch = undefined
    for (const filter of filters.filter(filter => !session.topics.has(filter)).map(flatString)) {
      session.topics.add(filter)
      if (this.#topics.add(filter, session) && this.#backplane.remote) this.#watch(filter)
    }
  }

  /** Listing devices by topic asks this for each session in turn, so the last match is cached until a subscription changes. */
  listens (session: Session, topic: string): boolean {
    if (this.#lastMatch?.topic !== topic) this.#lastMatch = { topic, listeners: this.#topics.match(topic) }
    return this.#lastMatch.listeners.has(session)
  }

  /** Resolves once the added filters are in effect on all nodes. */
  async effective (): Promise<void> {
    await this.#backplane.flush?.()
  }

  leave (session: Session, filters: string[]): void {
    for (const filter of filters) {
      if (session.topics.delete(filter)) this.#remove(session, filter)
    }
  }

  /** Removes the filters of a session that has ended; the session keeps its list. */
  drop (session: Session): void {
    for (const filter of session.topics) this.#remove(session, filter)
  }

  close (): void {
    for (const filter of this.#watched.keys()) this.#unwatch(filter)
  }

  #watch (filter: string): void {
    this.#watched.set(filter, this.#backplane.watch(filter, this.#deliver))
  }

  #remove (session: Session, filter: string): void {
    this.#lastMatch = undefined
    if (this.#topics.remove(filter, session) && this.#backplane.remote) this.#unwatch(filter)
  }

  #unwatch (filter: string): void {
    const unwatch = this.#watched.get(filter)!
    this.#watched.delete(filter)
    try {
      unwatch()
    } catch (error) { // a backplane of the application must not stop the clean-up of a session
      this.#log.warn({ err: error, filter }, 'unwatch failed')
    }
  }

  readonly #deliver = (publication: Publication): number | undefined => {
    const { topic, age } = publication
    const listeners = topic === EVERYONE_TOPIC ? this.#allSessions : this.#topics.match(topic)
    if (listeners instanceof Set && listeners.size === 0) return undefined
    return this.#send(publication, age === undefined ? listeners : connectedAt(listeners, clock() - age))
  }

  /** Encodes one frame per codec. */
  #send ({ id, topic, data, context }: Publication, sessions: Iterable<Session>): number {
    const params = topic === EVERYONE_TOPIC ? { id, data } : { id, data, topic }
    const frames = new Map<Codec, Frame | undefined>()
    let failure: unknown
    const encoded = (session: Session): Frame | undefined => {
      try {
        return session.notice('message', params, context)
      } catch (error) { // too large for this codec; for another it may not be
        failure = error
        return undefined
      }
    }
    let codec: Codec | undefined
    let frame: Frame | undefined
    let sent = 0
    for (const session of sessions) {
      if (session.codec !== codec) {
        codec = session.codec
        if (!frames.has(codec)) frames.set(codec, encoded(session))
        frame = frames.get(codec)
      }
      if (!frame) continue
      session.cast(frame)
      sent++
    }
    if (failure && sent === 0) throw failure
    if (failure) this.#log.warn({ err: failure, topic, id }, 'broadcast not encoded for all codecs')
    return sent
  }
}

function * connectedAt (sessions: Iterable<Session>, moment: number): Iterable<Session> {
  for (const session of sessions) if (session.wasIn(moment)) yield session
}
