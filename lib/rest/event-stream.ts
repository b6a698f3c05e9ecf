import { Readable } from 'node:stream'

/** Interval of keep-alive comments: proxies close connections that are silent for longer. */
const KEEP_ALIVE_MS = 15_000

/** The events of all nodes, as the route needs them. */
export interface EventFeed {
  readonly types: readonly string[]
  /** Throws a `Failure` if there are too many readers. `after` is the id of the last event that the reader has. */
  open (request: { types: ReadonlySet<string> | undefined, after: string | undefined }, reader: EventReader): EventCursor
}

interface EventReader {
  /** There may be something to read. */
  wake (): void
  /** What it has not read is no longer kept. */
  overrun (): void
  /** Nothing follows what can be read now. */
  end (): void
}

interface EventCursor {
  /** The id with which a reader can continue here. */
  readonly id: string
  /** The next events, as text of server-sent events; undefined if there are none yet. */
  read (): Uint8Array | undefined
  close (): void
}

interface EventStreamOptions {
  open: (reader: EventReader) => EventCursor
  onEnd: () => void
  keepAliveMs?: number
}

/** The body of a response. Reads events as fast as the client takes them; a client that takes none is disconnected. */
export class EventStream extends Readable {
  readonly #cursor: EventCursor
  readonly #keepAlive: NodeJS.Timeout
  #isWaiting = false
  #isEnding = false
  #pushed = 0
  /** How much the client had taken at the last keep-alive, if it had left something. */
  #taken: number | undefined

  constructor ({ open, onEnd, keepAliveMs = KEEP_ALIVE_MS }: EventStreamOptions) {
    super()
    this.#cursor = open({
      wake: () => this.#wake(),
      overrun: () => this.destroy(new Error('This reader of events is too slow')),
      end: () => {
        this.#isEnding = true
        clearInterval(this.#keepAlive)
        this.#wake()
        onEnd()
      }
    })
    this.#keepAlive = setInterval(() => this.#beat(), keepAliveMs).unref()
  }

  override _read (): void {
    const chunk = this.#cursor.read()
    this.#isWaiting = chunk === undefined
    if (chunk !== undefined) this.#push(chunk)
    else if (this.#isEnding) this.push(null)
  }

  override _destroy (error: Error | null, done: (error: Error | null) => void): void {
    clearInterval(this.#keepAlive)
    this.#cursor.close()
    done(error)
  }

  #wake (): void {
    if (this.#isWaiting) this._read()
  }

  /** The id moves on with events of other types, so that a client which comes back does not ask for one that is no longer kept. */
  #beat (): void {
    const taken = this.#pushed - this.readableLength
    if (this.readableLength === 0) {
      this.#taken = undefined
      if (this.#isWaiting) this.#push(Buffer.from(`: keep-alive\nid: ${this.#cursor.id}\n\n`))
    } else if (taken === this.#taken) this.destroy(new Error('This reader of events reads nothing'))
    else this.#taken = taken
  }

  #push (chunk: Uint8Array): void {
    this.#pushed += chunk.length
    this.push(chunk)
  }
}
