import { createInbox } from '@nats-io/transport-node'
import type { Msg } from '@nats-io/transport-node'
import type { Listener, Publication, PublishResult, Unwatch } from '../cluster/backplane.ts'
import { deliver } from '../cluster/deliver.ts'
import { RecentIds } from '../cluster/recent-ids.ts'
import { Topics } from '../protocol/topics.ts'
import type { Link, LinkSubscription } from './link.ts'
import type { Membership } from './membership.ts'
import { subjectOf } from './subjects.ts'
import { decode, encode } from '../cluster/encoding.ts'

/** Time for a node to answer with the number of devices it sent a publication to. */
const COUNT_TIMEOUT_MS = 250
/** Lateness below this may be the drift of two clocks. */
const MAX_CLOCK_DRIFT_MS = 25

/** A publication between nodes. */
interface PublishedMessage extends Publication {
  /** The id of the node that published it. */
  from: string
  /** When, by the clock of that node. */
  sentAt: number
}

/** Publishes to all nodes: one subject per topic, to which a node subscribes only while it has a watcher. */
export class PubSub {
  readonly #link: Link
  readonly #nodes: Membership
  readonly #watchers = new Topics<Listener>()
  readonly #subscriptions = new Map<string, LinkSubscription>()
  readonly #inbox: string
  readonly #results = new Map<string, PublishResult>()
  /** The inboxes of the last publications received. */
  readonly #received = new RecentIds()
  #published = 0
  #barrier: Promise<void> | undefined

  constructor (link: Link, nodes: Membership, inboxPrefix?: string) {
    this.#link = link
    this.#nodes = nodes
    this.#inbox = createInbox(inboxPrefix)
    link.subscribeTo(`${this.#inbox}.*`, message => this.#count(message))
    // messages stay in order: a node that answers this has received and counted all earlier publications
    link.subscribe(countSubject(nodes.self), message => link.reply(message, ''))
  }

  watch (filter: string, listener: Listener): Unwatch {
    if (this.#watchers.add(filter, listener)) {
      this.#subscriptions.set(filter, this.#link.subscribe(subjectOf(filter), message => this.#receive(message)))
    }
    return () => {
      if (!this.#watchers.remove(filter, listener)) return
      this.#subscriptions.get(filter)!.end()
      this.#subscriptions.delete(filter)
    }
  }

  /** Resolves once each live node has answered or its time is over. */
  async publish (publication: Publication): Promise<PublishResult> {
    const inbox = `${this.#inbox}.${++this.#published}`
    const result: PublishResult = { sent: 0, nodes: 0 }
    this.#results.set(inbox, result)
    try {
      this.#link.publish(subjectOf(publication.topic), encode({ ...publication, from: this.#nodes.self, sentAt: performance.now() } satisfies PublishedMessage), inbox)
      await this.#waitForNodes()
      return result
    } finally {
      this.#results.delete(inbox)
    }
  }

  /** One round trip for all publications of the same turn. */
  #waitForNodes (): Promise<void> {
    this.#barrier ??= Promise.resolve().then(async () => {
      this.#barrier = undefined
      const nodes = await this.#nodes.everyone()
      await Promise.all(nodes.map(node => this.#nodes.ask(node, countSubject(node), '', COUNT_TIMEOUT_MS)))
    })
    return this.#barrier
  }

  #receive (message: Msg): void {
    const inbox = message.reply!
    if (!this.#received.add(inbox)) return // it arrives once per matching filter
    const { from, sentAt, ...publication }: PublishedMessage = decode(message.data)
    const age = this.#nodes.lateness.of(from, sentAt)
    if (age > MAX_CLOCK_DRIFT_MS) publication.age = age
    // topics with very many levels share a subject, so the topic is matched again
    const { sent, nodes } = deliver(this.#watchers, publication)
    if (nodes > 0) this.#link.reply(message, String(sent))
  }

  #count (message: Msg): void {
    const result = this.#results.get(message.subject)
    if (!result || message.data.length === 0) return // too late, or NATS reports no subscriber
    result.sent += Number(message.string())
    result.nodes++
  }
}

const countSubject = (node: string): string => `node.${node}.roll`
