import { randomBytes } from 'node:crypto'
import type { FastifyBaseLogger } from 'fastify'
import type { Backplane } from '../cluster/backplane.ts'
import type { Stats } from '../connection/stats.ts'
import type { Events } from '../messaging/events.ts'
import { Failure } from '../protocol/errors.ts'
import { eventTypes } from './device-event.ts'
import { EventExchange, type GapReason } from './event-exchange.ts'
import { EventLog, eventText } from './event-log.ts'
import { VanishedDevices, type Connection } from './vanished-devices.ts'

/** What the feed of a node may use. A test may set others. */
export const FEED_LIMITS = {
  maxReaders: 64,
  /** Events kept for readers that are slow or come back. */
  maxEvents: 20_000,
  maxBytes: 8_388_608,
  /** Time for which events are kept after the last reader has left. */
  retentionMs: 300_000,
  /** Interval at which a node with readers announces that it has some. */
  announceMs: 10_000,
  /** Time for a node to report itself what the backplane reports of its devices. */
  graceMs: 5_000
}

interface FeedParts {
  events: Pick<Events, 'on' | 'off'>
  backplane: Backplane
  node: string
  stats: Stats
  log: FastifyBaseLogger
  limits?: typeof FEED_LIMITS
}

export interface FeedRequest {
  /** All types if undefined. */
  types: ReadonlySet<string> | undefined
  /** The id of the last event that the reader has. */
  after: string | undefined
}

/** What the feed tells a reader. */
export interface FeedReader {
  /** There may be something to read. */
  wake (): void
  /** It has fallen behind further than events are kept. */
  overrun (): void
  /** Nothing follows what can be read now. */
  end (): void
}

/** The events of all nodes, kept for a time for readers that come back. Costs nothing until the first reader comes. */
export class EventFeed {
  readonly types: readonly string[] = eventTypes
  readonly #node: string
  readonly #stats: Stats
  readonly #limits: typeof FEED_LIMITS
  readonly #log: EventLog
  readonly #exchange: EventExchange
  readonly #vanished: VanishedDevices
  readonly #cursors = new Set<FeedCursor>()
  readonly #name = randomBytes(6).toString('base64url')
  #gapCount = 0
  #isOpen = false
  #isClosed = false
  #isWaking = false
  #retention: NodeJS.Timeout | undefined

  constructor ({ events, backplane, node, stats, log, limits = FEED_LIMITS }: FeedParts) {
    this.#node = node
    this.#stats = stats
    this.#limits = limits
    this.#log = new EventLog(this.#name, limits)
    this.#exchange = new EventExchange({ events, backplane, node, log, announceMs: limits.announceMs }, {
      event: (type, json, connection) => this.#receive(type, json, connection),
      gap: (reason, from) => this.#add('gap', this.#gapEvent(reason, from))
    })
    this.#vanished = new VanishedDevices({
      backplane,
      graceMs: limits.graceMs,
      report: event => this.#add(event.type, event),
      onOverflow: () => this.#add('gap', this.#gapEvent('overflow'))
    })
  }

  /** Throws a `Failure` if there are too many readers. */
  open ({ types, after }: FeedRequest, reader: FeedReader): FeedCursor {
    if (this.#isClosed) throw new Failure('draining')
    if (this.#cursors.size >= this.#limits.maxReaders) {
      this.#stats.count('refusals', 'too-many-readers')
      throw new Failure('too-many-readers')
    }
    this.#retain()
    const position = after === undefined ? this.#log.next : this.#log.positionAfter(after)
    const id = this.#log.idBefore(position ?? this.#log.next)
    const first = Buffer.from(position === undefined ? eventText(id, 'gap', JSON.stringify(this.#gapEvent('unknown-id'))) : `id: ${id}\n\n`)
    const cursor = new FeedCursor({ log: this.#log, types, position: position ?? this.#log.next, first, reader, onClose: () => this.#left(cursor) })
    this.#cursors.add(cursor)
    return cursor
  }

  /** The readers get what has happened until now, and then end. */
  close (): void {
    this.#isClosed = true
    this.#exchange.close()
    this.#vanished.stop()
    clearTimeout(this.#retention)
    for (const { reader } of this.#cursors) reader.end()
  }

  #retain (): void {
    clearTimeout(this.#retention)
    if (this.#isOpen) return
    this.#isOpen = true
    this.#vanished.start()
    this.#exchange.open()
  }

  #left (cursor: FeedCursor): void {
    if (!this.#cursors.delete(cursor) || this.#cursors.size > 0 || this.#isClosed) return
    this.#retention = setTimeout(() => this.#release(), this.#limits.retentionMs).unref()
  }

  #release (): void {
    this.#isOpen = false
    this.#exchange.stop()
    this.#vanished.stop()
    this.#log.clear()
  }

  #receive (type: string, json: string, connection: Connection | undefined): void {
    if (connection && !this.#vanished.isNew(type as 'connected' | 'disconnected', connection)) return
    this.#append(type, json)
  }

  #add (type: string, event: object): void {
    this.#append(type, JSON.stringify(event))
  }

  #append (type: string, json: string): void {
    this.#log.add(type, json)
    if (this.#isWaking) return
    this.#isWaking = true
    setImmediate(() => this.#wake())
  }

  /** Once a turn, so that readers get the events of the turn together. */
  #wake (): void {
    this.#isWaking = false
    for (const { position, reader } of this.#cursors) {
      if (position < this.#log.first) reader.overrun()
      else reader.wake()
    }
  }

  #gapEvent (reason: GapReason, from?: string): object {
    return { id: `${this.#name}-gap-${++this.#gapCount}`, type: 'gap', at: Date.now(), node: this.#node, data: { reason, ...(from !== undefined && { node: from }) } }
  }
}

interface CursorOptions {
  log: EventLog
  types: ReadonlySet<string> | undefined
  position: number
  /** What it reads first. */
  first: Buffer
  reader: FeedReader
  onClose: () => void
}

/** The place of one reader in the log. */
export class FeedCursor {
  readonly reader: FeedReader
  readonly #log: EventLog
  readonly #types: ReadonlySet<string> | undefined
  readonly #onClose: () => void
  #first: Buffer | undefined
  position: number

  constructor ({ log, types, position, first, reader, onClose }: CursorOptions) {
    this.reader = reader
    this.position = position
    this.#log = log
    this.#types = types
    this.#first = first
    this.#onClose = onClose
  }

  /** The id with which the reader can continue here. */
  get id (): string {
    return this.#log.idBefore(this.position)
  }

  /** The next events; undefined if there are none yet. */
  read (): Uint8Array | undefined {
    const first = this.#first
    this.#first = undefined
    if (first !== undefined || this.position < this.#log.first) return first
    const { chunk, next } = this.#log.read(this.position, this.#types)
    this.position = next
    return chunk
  }

  close (): void {
    this.#onClose()
  }
}
