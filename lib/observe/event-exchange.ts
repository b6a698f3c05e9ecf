import type { FastifyBaseLogger } from 'fastify'
import { EVENTS_INTEREST_TOPIC, EVENTS_TOPIC, type Backplane, type Publication, type Unwatch } from '../cluster/backplane.ts'
import type { Events } from '../messaging/events.ts'
import { eventTypes, listenToEvents, type DeviceEvent } from './device-event.ts'
import { decodeBatch } from './event-batch.ts'
import { EventPublisher } from './event-publisher.ts'
import { EventSources } from './event-sources.ts'
import type { Connection } from './vanished-devices.ts'

/** How long an announcement holds, in intervals between announcements. */
const INTEREST_INTERVALS = 3
/** Time for the nodes with readers to answer a node that starts or is back, in such intervals. Meanwhile it publishes its events. */
const DISCOVERY_INTERVALS = 0.5

/** `wanted`: the sender has readers. `discovery`: the sender asks who has. */
interface InterestMessage {
  source: string
  kind: 'wanted' | 'discovery'
}

/** Why events may be missing. */
export type GapReason = 'unknown-id' | 'cut-off' | 'back' | 'missed' | 'node-gone' | 'overflow'

export interface EventSink {
  /** An event of any node, and its JSON. `connection` is there if it says that one has begun or ended. */
  event (type: string, json: string, connection?: Connection): void
  /** Events of the node, or of all other nodes, may be missing. */
  gap (reason: GapReason, node?: string): void
}

interface ExchangeParts {
  events: Pick<Events, 'on' | 'off'>
  backplane: Backplane
  node: string
  log: FastifyBaseLogger
  /** Interval at which a node with readers announces that it has some. */
  announceMs: number
}

/** Collects the events of all nodes while this node has readers, and publishes those of this node while another has. */
export class EventExchange {
  readonly #events: Pick<Events, 'on' | 'off'>
  readonly #backplane: Backplane
  readonly #node: string
  readonly #sink: EventSink
  readonly #publisher: EventPublisher
  readonly #sources: EventSources
  readonly #announceMs: number
  readonly #unwatchInterest: Unwatch
  #unwatchEvents: Unwatch | undefined
  #stopListening: (() => void) | undefined
  #announcing: NodeJS.Timeout | undefined
  /** Runs while another node has readers. */
  #asked: NodeJS.Timeout | undefined
  #askedUntil = 0
  #isClosed = false

  constructor ({ events, backplane, node, log, announceMs }: ExchangeParts, sink: EventSink) {
    this.#events = messagesAsReceived(events)
    this.#backplane = backplane
    this.#node = node
    this.#sink = sink
    this.#announceMs = announceMs
    this.#sources = new EventSources(announceMs)
    this.#publisher = new EventPublisher(backplane, node, log)
    this.#unwatchInterest = backplane.watch(EVENTS_INTEREST_TOPIC, publication => this.#hearInterest(publication))
    backplane.onLink?.(up => this.#linkChanged(up))
    this.#discover()
  }

  /** Collects the events of all nodes from now on. */
  open (): void {
    this.#sources.restart()
    this.#unwatchEvents = this.#backplane.watch(EVENTS_TOPIC, publication => this.#receive(publication))
    this.#announcing = setInterval(() => this.#renew(), this.#announceMs).unref()
    this.#announce('wanted')
    this.#listen()
  }

  /** The last reader has left long ago. */
  stop (): void {
    clearInterval(this.#announcing)
    this.#unwatchEvents?.()
    this.#unwatchEvents = undefined
    this.#listen()
  }

  /** Publishes the last events. */
  close (): void {
    this.#isClosed = true
    this.#unwatchInterest()
    if (this.#asked) this.#publisher.close()
    clearTimeout(this.#asked)
    this.#asked = undefined
    this.stop()
  }

  get #isOpen (): boolean {
    return this.#unwatchEvents !== undefined
  }

  /** Listens to the events of this node while anyone wants them. */
  #listen (): void {
    const isWanted = this.#isOpen || this.#asked !== undefined
    if (isWanted) this.#stopListening ??= listenToEvents(this.#events, this.#node, eventTypes, event => this.#take(event))
    if (isWanted) return
    this.#stopListening?.()
    this.#stopListening = undefined
  }

  #take (event: DeviceEvent): void {
    const json = JSON.stringify(event)
    if (this.#asked) this.#publisher.add({ type: event.type, json })
    if (this.#isOpen) this.#sink.event(event.type, json, connectionOf(event.type, event))
  }

  #receive ({ data }: Publication): undefined {
    const { header, events } = decodeBatch(data as Buffer)
    if (header.source === this.#publisher.source) return
    if (this.#sources.receive(header)) this.#sink.gap('missed', header.node)
    for (const { type, json } of events) this.#sink.event(type, json, connectionOf(type, json))
  }

  #hearInterest ({ data }: Publication): undefined {
    const { source, kind } = data as InterestMessage
    if (source === this.#publisher.source) return
    if (kind === 'discovery' && this.#isOpen) this.#announce('wanted')
    if (kind === 'wanted') this.#ask(INTEREST_INTERVALS)
  }

  /** Publishes the events of this node for some announcement intervals. */
  #ask (intervals: number): void {
    this.#askedUntil = Math.max(this.#askedUntil, performance.now() + intervals * this.#announceMs)
    clearTimeout(this.#asked)
    this.#asked = setTimeout(() => this.#lapse(), this.#askedUntil - performance.now()).unref()
    this.#listen()
    this.#publisher.publishSequence()
  }

  /** No node has readers, or none can be heard. */
  #lapse (): void {
    this.#asked = undefined
    this.#publisher.skip()
    this.#listen()
  }

  #renew (): void {
    this.#announce('wanted')
    for (const node of this.#sources.takeSilent()) this.#sink.gap('node-gone', node)
  }

  /** Until a node with readers has answered, there may be one. Within one process it answers at once. */
  #discover (): void {
    if (this.#backplane.remote) this.#ask(DISCOVERY_INTERVALS)
    this.#announce('discovery')
    if (!this.#asked) this.#publisher.skip()
  }

  #linkChanged (up: boolean): void {
    if (this.#isClosed) return
    this.#sources.restart()
    if (this.#isOpen) this.#sink.gap(up ? 'back' : 'cut-off')
    if (!up) return
    this.#discover()
    if (this.#isOpen) this.#announce('wanted')
  }

  /** If it is lost, the next one follows soon. */
  #announce (kind: InterestMessage['kind']): void {
    const { source } = this.#publisher
    const data: InterestMessage = { source, kind }
    this.#backplane.publish({ id: `${source}-${kind}`, topic: EVENTS_INTEREST_TOPIC, data }).catch(() => {})
  }
}

/** Messages are seen as they are received, by whatever they are answered: a reader must not count as their listener. */
function messagesAsReceived (events: Pick<Events, 'on' | 'off'>): Pick<Events, 'on' | 'off'> {
  const nameOf = (name: string) => (name === 'message' ? 'message received' : name) as 'message'
  return {
    on: (name, listener) => { events.on(nameOf(name), listener as () => void) },
    off: (name, listener) => { events.off(nameOf(name), listener as () => void) }
  }
}

/** The connection that has begun or ended. Other events are not parsed. */
function connectionOf (type: string, event: DeviceEvent | string): Connection | undefined {
  if (type !== 'connected' && type !== 'disconnected') return undefined
  const { deviceId, node, data } = typeof event === 'string' ? JSON.parse(event) : event
  return { deviceId, node, since: data.since }
}
