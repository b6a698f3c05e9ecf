import { randomBytes } from 'node:crypto'
import type { Listener, Publication, PublishResult, Unwatch } from '../cluster/backplane.ts'
import { decode, encode } from '../cluster/encoding.ts'
import { deliver } from '../cluster/deliver.ts'
import { RecentIds } from '../cluster/recent-ids.ts'
import { Topics } from '../protocol/topics.ts'
import { publishScript } from './backplane-scripts.ts'
import { checkSize, type Link, type LinkSubscription } from './link.ts'
import { nodeChannel, type NodeMessage } from './node-message.ts'
import type { ServerClock } from './server-clock.ts'

type Counts = Extract<NodeMessage, { type: 'counts' }>['counts']

/** A publication between nodes. */
interface PublishedMessage extends Publication {
  /** The node that published it. */
  from: string
  nonce: string
}

/** A publication whose receivers are being counted. */
class Count {
  readonly result: PublishResult = { sent: 0, nodes: 0 }
  /** The messages that Redis delivered; unknown until it has answered. */
  receivers = Infinity
  answered = 0
  /** Set in the turn in which the receivers become known. */
  done!: () => void
}

/** Time for a node to answer with the number of devices it sent a publication to. */
const COUNT_TIMEOUT_MS = 250
/** A message that took longer was held back; a shorter time may be an error of the clocks. */
const MAX_TRANSIT_MS = 25
const NEWLINE = 0x0a

/** Publishes to the nodes that listen. A node subscribes to the channels of the filters that it watches. */
export class PubSub {
  readonly #link: Link
  readonly #self: string
  readonly #clock: ServerClock
  readonly #watchers = new Topics<Listener>()
  readonly #channels = new Map<string, { filters: number, subscription: LinkSubscription }>()
  readonly #counts = new Map<string, Count>()
  /** The counts to send at the end of this turn, by the channel of the node that gets them. */
  readonly #replies = new Map<string, Counts>()
  /** The nonces of the last publications received. */
  readonly #received = new RecentIds()
  readonly #prefix = randomBytes(6).toString('base64url')
  #published = 0

  constructor (link: Link, self: string, clock: ServerClock) {
    this.#link = link
    this.#self = self
    this.#clock = clock
  }

  watch (filter: string, listener: Listener): Unwatch {
    if (this.#watchers.add(filter, listener)) this.#subscribe(channelOf(filter))
    return () => {
      if (this.#watchers.remove(filter, listener)) this.#unsubscribe(channelOf(filter))
    }
  }

  /** Resolves once each node that listens has answered, or its time is over. */
  async publish (publication: Publication): Promise<PublishResult> {
    const nonce = `${this.#prefix}${++this.#published}`
    const payload = encode({ ...publication, from: this.#self, nonce } satisfies PublishedMessage)
    checkSize(payload)
    const count = new Count()
    this.#counts.set(nonce, count)
    try {
      count.receivers = await this.#link.run(publishScript, channelsOf(publication.topic), [payload as Buffer]) as number
      if (count.answered < count.receivers) await this.#all(count)
      return count.result
    } finally {
      this.#counts.delete(nonce)
    }
  }

  /** The counts of a node that received publications of this one. */
  count (counts: Counts): void {
    for (const [nonce, sent] of counts) {
      const count = this.#counts.get(nonce)
      if (!count) continue // too late
      count.answered++
      if (sent !== null) {
        count.result.sent += sent
        count.result.nodes++
      }
      if (count.answered >= count.receivers) count.done()
    }
  }

  #all (count: Count): Promise<void> {
    return new Promise(resolve => {
      const timer = setTimeout(resolve, COUNT_TIMEOUT_MS)
      count.done = () => {
        clearTimeout(timer)
        resolve()
      }
    })
  }

  #subscribe (channel: string): void {
    const known = this.#channels.get(channel)
    if (known) known.filters++
    else this.#channels.set(channel, { filters: 1, subscription: this.#link.subscribe(channel, payload => this.#receive(payload)) })
  }

  #unsubscribe (channel: string): void {
    const known = this.#channels.get(channel)!
    if (--known.filters > 0) return
    known.subscription.end()
    this.#channels.delete(channel)
  }

  #receive (payload: Buffer): void {
    const end = payload.indexOf(NEWLINE)
    const { from, nonce, ...publication }: PublishedMessage = decode(payload.subarray(end + 1))
    const sent = this.#received.add(nonce) ? this.#deliver(publication, Number(payload.subarray(0, end)) / 1_000) : null // it arrives on up to three channels
    const channel = nodeChannel(from)
    const replies = this.#replies.get(channel)
    if (replies) return void replies.push([nonce, sent])
    this.#replies.set(channel, [[nonce, sent]])
    if (this.#replies.size === 1) setImmediate(() => this.#reply())
  }

  /** Returns the number of devices; null if nobody listens. */
  #deliver (publication: Publication, publishedAt: number): number | null {
    const age = this.#clock.now() - publishedAt
    if (age > MAX_TRANSIT_MS) publication.age = age
    const { sent, nodes } = deliver(this.#watchers, publication)
    return nodes === 0 ? null : sent
  }

  #reply (): void {
    for (const [channel, counts] of this.#replies) if (this.#link.up) this.#link.tell(channel, encode({ type: 'counts', counts } satisfies NodeMessage))
    this.#replies.clear()
  }
}

/** The channel on which a filter listens: of a topic, of all topics with its first level, or of all topics. */
function channelOf (filter: string): string {
  const levels = filter.split('/')
  const wildcard = levels.findIndex(level => level === '+' || level === '#')
  if (wildcard === -1) return topicChannel(filter)
  return wildcard === 0 ? EVERY_TOPIC : branchChannel(levels[0]!)
}

/** No wildcard matches the topics between nodes, which begin with `$`. */
function channelsOf (topic: string): string[] {
  return topic.startsWith('$') ? [topicChannel(topic)] : [topicChannel(topic), branchChannel(topic.split('/', 1)[0]!), EVERY_TOPIC]
}

const EVERY_TOPIC = 'topics'
const topicChannel = (topic: string): string => `topic:${topic}`
const branchChannel = (level: string): string => `topics:${level}`
