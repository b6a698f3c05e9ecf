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
  readonly #topics = new Topics<Session>()
  readonly #watched = new Map<string, Unwatch>()
  readonly #unwatchEveryone: Unwatch

  constructor (backplane: Backplane, everyone: Iterable<Session>, limits: SubscriptionLimits) {
    this.#backplane = backplane
    this.#everyone = everyone
    this.#limits = limits
    this.#unwatchEveryone = backplane.watch(EVERYONE, this.#deliver)
  }

  get size (): number {
    return this.#topics.size
  }

  /** All of the filters, or none. */
  join (session: Session, filters: string[]): void {
    const valid = filters.every(filter => isFilter(filter, this.#limits.topic))
    if (!valid) throw new Failure('bad-topic')
    if (new Set([...session.topics, ...filters]).size > this.#limits.maxTopics) throw new Failure('too-many-topics')
    if (session.left) throw new Failure('dropped')
    for (const filter of filters.map(detached)) {
      session.topics.add(filter)
      if (this.#topics.add(filter, session)) this.#watched.set(filter, this.#backplane.watch(filter, this.#deliver))
    }
  }

  leave (session: Session, filters: Iterable<string>): void {
    for (const filter of filters) {
      if (!session.topics.delete(filter)) continue
      if (!this.#topics.remove(filter, session)) continue
      this.#watched.get(filter)!()
      this.#watched.delete(filter)
    }
  }

  close (): void {
    this.#unwatchEveryone()
  }

  /** One encoded frame for all who speak the same protocol. */
  readonly #deliver = ({ id, topic, data }: Publication): number => {
    const toEveryone = topic === EVERYONE
    const params = toEveryone ? { id, data } : { id, data, topic }
    const frames = new Map<Codec, Frame>()
    let sent = 0
    for (const session of toEveryone ? this.#everyone : this.#topics.match(topic)) {
      let frame = frames.get(session.codec)
      if (!frame) frames.set(session.codec, frame = session.frame({ kind: 'notice', method: 'message', params }))
      session.hand(frame)
      sent++
    }
    return sent
  }
}
