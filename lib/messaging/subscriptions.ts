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

/** Which sessions on this node listen to what. A remote backplane is asked only for topics that one of them listens to. */
export class Subscriptions {
  readonly #backplane: Backplane
  readonly #everyone: Iterable<Session>
  readonly #limits: SubscriptionLimits
  readonly #log: FastifyBaseLogger
  readonly #topics = new Topics<Session>()
  readonly #watched = new Map<string, Unwatch>()
  /** The last topic that was asked about, and who listens to it. */
  #asked: { topic: string, listeners: Set<Session> } | undefined

  constructor (backplane: Backplane, everyone: Iterable<Session>, limits: SubscriptionLimits, log: FastifyBaseLogger) {
    this.#log = log
    this.#backplane = backplane
    this.#everyone = everyone
    this.#limits = limits
    // a backplane within one process has nothing to filter out: watching each filter would only build a second tree
    for (const filter of backplane.remote ? [EVERYONE_TOPIC] : [EVERYONE_TOPIC, '#']) this.#watch(filter)
  }

  get size (): number {
    return this.#topics.size
  }

  /** Throws unless the session may have these filters as well. */
  check (session: Session, filters: string[]): void {
    if (new Set([...session.topics, ...filters]).size > this.#limits.maxTopics) throw new Failure('too-many-topics')
    if (!filters.every(filter => isFilter(filter, this.#limits.topic))) throw new Failure('bad-topic')
    if (session.left) throw new Failure('dropped')
  }

  /** All of the filters, or none. */
  join (session: Session, filters: string[]): void {
    this.check(session, filters)
    this.#asked = undefined
    for (const filter of filters.filter(filter => !session.topics.has(filter)).map(flatString)) {
      session.topics.add(filter)
      if (this.#topics.add(filter, session) && this.#backplane.remote) this.#watch(filter)
    }
  }

  /** A page of devices by topic asks for one session after the other, so the last match is kept until a subscription changes. */
  listens (session: Session, topic: string): boolean {
    if (this.#asked?.topic !== topic) this.#asked = { topic, listeners: this.#topics.match(topic) }
    return this.#asked.listeners.has(session)
  }

  /** Resolves once what was joined is heard from every node. */
  async effective (): Promise<void> {
    await this.#backplane.flush?.()
  }

  leave (session: Session, filters: string[]): void {
    for (const filter of filters) {
      if (session.topics.delete(filter)) this.#remove(session, filter)
    }
  }

  /** The session has left; what it listened to stays written on it. */
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
    this.#asked = undefined
    if (this.#topics.remove(filter, session) && this.#backplane.remote) this.#unwatch(filter)
  }

  #unwatch (filter: string): void {
    const unwatch = this.#watched.get(filter)!
    this.#watched.delete(filter)
    try {
      unwatch()
    } catch (error) { // the backplane is not ours, and who leaves must be gone
      this.#log.warn({ err: error, filter }, 'a topic is still watched')
    }
  }

  readonly #deliver = (publication: Publication): number | undefined => {
    const { topic, age } = publication
    const listeners = topic === EVERYONE_TOPIC ? this.#everyone : this.#topics.match(topic)
    if (listeners instanceof Set && listeners.size === 0) return undefined
    return this.#send(publication, age === undefined ? listeners : thoseIn(listeners, clock() - age))
  }

  /** One encoded frame for all who speak the same protocol. */
  #send ({ id, topic, data }: Publication, sessions: Iterable<Session>): number {
    const params = topic === EVERYONE_TOPIC ? { id, data } : { id, data, topic }
    const frames = new Map<Codec, Frame | undefined>()
    let failure: unknown
    const encoded = (session: Session): Frame | undefined => {
      try {
        return session.notice('message', params)
      } catch (error) { // it is too large for this protocol; for another it may not be
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
    if (failure) this.#log.warn({ err: failure, topic, id }, 'a broadcast could not be told to all')
    return sent
  }
}

function * thoseIn (sessions: Iterable<Session>, moment: number): Iterable<Session> {
  for (const session of sessions) if (session.wasIn(moment)) yield session
}
