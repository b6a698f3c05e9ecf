import { createInbox } from '@nats-io/transport-node'
import type { Msg } from '@nats-io/transport-node'
import type { Listener, Publication, PublishResult, Unwatch } from '../cluster/backplane.ts'
import { Topics } from '../protocol/topics.ts'
import type { Link, LinkSubscription } from './link.ts'
import type { Membership } from './membership.ts'
import { subjectOf } from './subjects.ts'
import { decode, encode } from './encoding.ts'

/** A publication comes once for each filter that matches; those of the same one come close together. */
const REMEMBERED_PUBLICATIONS = 5_000
/** How long a node may take to say how many of its devices it handed a publication to. */
const COUNT_TIMEOUT_MS = 250
/** Less lateness than this is not told from the drift of two clocks. */
const MAX_CLOCK_DRIFT_MS = 25

/** A publication on its way: which node published it, and what its clock showed. */
interface PublishedMessage extends Publication {
  from: string
  sentAt: number
}

/** What is published, and who hears it: a subject for each topic, and on this node only those that somebody watches. */
export class PubSub {
  readonly #link: Link
  readonly #nodes: Membership
  readonly #watchers = new Topics<Listener>()
  readonly #subscribed = new Map<string, LinkSubscription>()
  readonly #inbox: string
  readonly #tallies = new Map<string, PublishResult>()
  #heard = new Set<string>()
  #heardBefore = new Set<string>()
  #published = 0
  #roll: Promise<void> | undefined

  constructor (link: Link, nodes: Membership, inboxPrefix?: string) {
    this.#link = link
    this.#nodes = nodes
    this.#inbox = createInbox(inboxPrefix)
    link.subscribeTo(`${this.#inbox}.*`, message => this.#count(message))
    // it is in the order of what was published: who answers has heard, and answered, all that came before
    link.subscribe(countSubject(nodes.self), message => link.reply(message, ''))
  }

  watch (filter: string, listener: Listener): Unwatch {
    if (this.#watchers.add(filter, listener)) {
      this.#subscribed.set(filter, this.#link.subscribe(subjectOf(filter), message => this.#hear(message)))
    }
    return () => {
      if (!this.#watchers.remove(filter, listener)) return
      this.#subscribed.get(filter)!.end()
      this.#subscribed.delete(filter)
    }
  }

  /** Resolves when every node that lives has answered, or had the time to. */
  async publish (publication: Publication): Promise<PublishResult> {
    const inbox = `${this.#inbox}.${++this.#published}`
    const tally: PublishResult = { sent: 0, nodes: 0 }
    this.#tallies.set(inbox, tally)
    try {
      this.#link.publish(subjectOf(publication.topic), encode({ ...publication, from: this.#nodes.self, sentAt: performance.now() } satisfies PublishedMessage), inbox)
      await this.#callTheRoll()
      return tally
    } finally {
      this.#tallies.delete(inbox)
    }
  }

  /** One for all that is published in the same turn. */
  #callTheRoll (): Promise<void> {
    this.#roll ??= Promise.resolve().then(async () => {
      this.#roll = undefined
      const nodes = await this.#nodes.everyone()
      await Promise.all(nodes.map(node => this.#nodes.ask(node, countSubject(node), '', COUNT_TIMEOUT_MS)))
    })
    return this.#roll
  }

  #hear (message: Msg): void {
    const inbox = message.reply!
    if (this.#wasHeard(inbox)) return
    const { from, sentAt, ...publication }: PublishedMessage = decode(message.data)
    const age = this.#nodes.lateness.of(from, sentAt)
    if (age > MAX_CLOCK_DRIFT_MS) publication.age = age
    // the subject of a topic with very many levels is that of others, too
    const counts = Array.from(this.#watchers.match(publication.topic), listener => listener(publication)).filter(count => count !== undefined)
    if (counts.length > 0) this.#link.reply(message, String(counts.reduce((sum, count) => sum + count, 0)))
  }

  #wasHeard (inbox: string): boolean {
    if (this.#heard.has(inbox) || this.#heardBefore.has(inbox)) return true
    if (this.#heard.size === REMEMBERED_PUBLICATIONS) {
      this.#heardBefore = this.#heard
      this.#heard = new Set()
    }
    this.#heard.add(inbox)
    return false
  }

  #count (message: Msg): void {
    const tally = this.#tallies.get(message.subject)
    if (!tally || message.data.length === 0) return // too late, or nobody listens
    tally.sent += Number(message.string())
    tally.nodes++
  }
}

const countSubject = (node: string): string => `node.${node}.roll`
