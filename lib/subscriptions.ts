import type { FastifyBaseLogger } from 'fastify'
import { EVERYONE, type Backplane, type Publication, type Unwatch } from './backplane.ts'
import { Failure } from './errors.ts'
import { Frame } from './frame.ts'
import type { Codec } from './message.ts'
import type { Session } from './session.ts'
import { detached } from './text.ts'
import { Topics, isFilter, type TopicLimits } from './topics.ts'

export interface SubscriptionLimits {
  maxTopics: number
  topic: TopicLimits
}

/** Which sessions on this node listen to what; hears from the backplane only what one of them listens to. */
export class Subscriptions {
  readonly #backplane: Backplane
  readonly #everyone: Iterable<Session>
  readonly #limits: SubscriptionLimits
  readonly #log: FastifyBaseLogger
  readonly #topics = new Topics<Session>()
  readonly #watched = new Map<string, Unwatch>()
  readonly #unwatchEveryone: Unwatch

  constructor (backplane: Backplane, everyone: Iterable<Session>, limits: SubscriptionLimits, log: FastifyBaseLogger) {
    this.#log = log
    this.#backplane = backplane
    this.#everyone = everyone
    this.#limits = limits
    this.#unwatchEveryone = backplane.watch(EVERYONE, this.#deliver)
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
    for (const filter of filters.map(detached)) {
      session.topics.add(filter)
      if (this.#topics.add(filter, session)) this.#watched.set(filter, this.#backplane.watch(filter, this.#deliver))
    }
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
    this.#unwatchEveryone()
  }

  #remove (session: Session, filter: string): void {
    if (!this.#topics.remove(filter, session)) return
    const unwatch = this.#watched.get(filter)!
    this.#watched.delete(filter)
    try {
      unwatch()
    } catch (error) { // the backplane is not ours, and who leaves must be gone
      this.#log.warn({ err: error, filter }, 'a topic is still watched')
    }
  }

  /** One encoded frame for all who speak the same protocol. */
  readonly #deliver = ({ id, topic, data }: Publication): number => {
    const toEveryone = topic === EVERYONE
    const params = toEveryone ? { id, data } : { id, data, topic }
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
    for (const session of toEveryone ? this.#everyone : this.#topics.match(topic)) {
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
