import { randomBytes } from 'node:crypto'
import { setImmediate as turn } from 'node:timers/promises'
import type { FastifyBaseLogger } from 'fastify'
import { EVENTS_TOPIC, type Backplane } from '../cluster/backplane.ts'
import { isUnreachable } from '../protocol/errors.ts'
import { encodeBatch, type BatchedEvent } from './event-batch.ts'

/** Maximum characters of the events in one publication, unless a single event is larger, */
const MAX_BATCH_LENGTH = 262_144
/** and of the events that wait to be published. */
const MAX_WAITING_LENGTH = 4_194_304

/** Publishes the events of this node to the other nodes, in order. The events of one turn, or of one round trip, travel together. */
export class EventPublisher {
  /** Names this process. */
  readonly source = randomBytes(6).toString('base64url')
  readonly #backplane: Backplane
  readonly #node: string
  readonly #log: FastifyBaseLogger
  #waiting: BatchedEvent[] = []
  #waitingLength = 0
  #mustPublish = false
  #isPublishing = false
  #sequence = 0

  constructor (backplane: Backplane, node: string, log: FastifyBaseLogger) {
    this.#backplane = backplane
    this.#node = node
    this.#log = log
  }

  add (event: BatchedEvent): void {
    this.#waiting.push(event)
    this.#waitingLength += event.json.length
    if (this.#waitingLength > MAX_WAITING_LENGTH) this.#drop()
    void this.#publish()
  }

  /** Publishes the sequence number, even without events. */
  publishSequence (): void {
    this.#mustPublish = true
    void this.#publish()
  }

  /** Events were not, or will not be, published: the readers see a missing number. */
  skip (): void {
    this.#sequence++
  }

  /** Publishes what waits, without waiting for earlier publications, and says that nothing follows. */
  close (): void {
    while (this.#waiting.length > 0) void this.#send(this.#take(), false)
    void this.#send([], true)
    this.#mustPublish = false
  }

  async #publish (): Promise<void> {
    if (this.#isPublishing) return
    this.#isPublishing = true
    await turn()
    while (this.#waiting.length > 0 || this.#mustPublish) {
      this.#mustPublish = false
      await this.#send(this.#take(), false)
    }
    this.#isPublishing = false
  }

  /** A publication that fails leaves a missing number. */
  async #send (events: BatchedEvent[], isLast: boolean): Promise<void> {
    const { source } = this
    const sequence = ++this.#sequence
    const data = encodeBatch({ node: this.#node, source, sequence, isLast }, events)
    try {
      await this.#backplane.publish({ id: `${source}-${sequence}`, topic: EVENTS_TOPIC, data })
    } catch (error) {
      if (!isUnreachable(error)) this.#log.warn({ err: error, events: events.length }, 'events not published to the other nodes')
    }
  }

  #take (): BatchedEvent[] {
    let length = 0
    let count = 0
    while (count < this.#waiting.length && (count === 0 || length + this.#waiting[count]!.json.length <= MAX_BATCH_LENGTH)) length += this.#waiting[count++]!.json.length
    this.#waitingLength -= length
    return this.#waiting.splice(0, count)
  }

  /** The other nodes take events more slowly than they come. */
  #drop (): void {
    this.#log.warn({ events: this.#waiting.length }, 'events dropped: too many wait to be published to the other nodes')
    this.#waiting = []
    this.#waitingLength = 0
    this.skip()
    this.#mustPublish = true
  }
}
