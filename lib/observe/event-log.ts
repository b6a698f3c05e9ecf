/** Maximum bytes that a reader gets at a time. */
const MAX_CHUNK_BYTES = 65_536
/** Removed entries that may stay at the beginning of the array. */
const MAX_REMOVED = 1_024

export interface EventLogLimits {
  maxEvents: number
  maxBytes: number
}

interface LoggedEvent {
  type: string
  /** As server-sent event. */
  text: Buffer
}

/** Events from a position on, as one chunk; without a chunk there are none. */
export interface LogPage {
  chunk: Buffer | undefined
  /** The position behind them. */
  next: number
}

/** The last events, as text of server-sent events. Each has a position; positions only grow. */
export class EventLog {
  readonly #id: string
  readonly #limits: EventLogLimits
  /** Those before `#removed` were removed. */
  #events: Array<LoggedEvent | undefined> = []
  #removed = 0
  #bytes = 0
  /** The position of the next event. */
  #next = 1
  /** The last page read: readers that are level share one chunk. */
  #lastPage: { position: number, next: number, types: ReadonlySet<string> | undefined, page: LogPage } | undefined

  constructor (id: string, limits: EventLogLimits) {
    this.#id = id
    this.#limits = limits
  }

  get next (): number {
    return this.#next
  }

  /** The position of the oldest event. */
  get first (): number {
    return this.#next - this.#events.length + this.#removed
  }

  add (type: string, json: string): void {
    const text = Buffer.from(eventText(this.idBefore(this.#next + 1), type, json))
    this.#events.push({ type, text })
    this.#next++
    this.#bytes += text.length
    const { maxEvents, maxBytes } = this.#limits
    // the newest stays, however large it is
    while (this.#next - this.first > maxEvents || (this.#bytes > maxBytes && this.#next - this.first > 1)) this.#removeFirst()
  }

  /** Removes all events. The position that is skipped makes the ids that readers have unknown: events may be missed until the next `add`. */
  clear (): void {
    this.#events = []
    this.#removed = 0
    this.#bytes = 0
    this.#lastPage = undefined
    this.#next++
  }

  /** The id that continues at a position: that of the event before it. */
  idBefore (position: number): string {
    return `${this.#id}-${position - 1}`
  }

  /** The position behind the event with this id; undefined if later events may have been removed. */
  positionAfter (id: string): number | undefined {
    const [, log, digits] = /^(.*)-(\d{1,15})$/.exec(id) ?? []
    const position = Number(digits) + 1
    return log === this.#id && position >= this.first && position <= this.#next ? position : undefined
  }

  /** The next events of these types; all types if undefined. The type `gap` always belongs to them. */
  read (position: number, types: ReadonlySet<string> | undefined): LogPage {
    const last = this.#lastPage
    if (last?.position === position && last.types === types && last.next === this.#next) return last.page
    const page = this.#read(position, types)
    this.#lastPage = { position, next: this.#next, types, page }
    return page
  }

  #read (position: number, types: ReadonlySet<string> | undefined): LogPage {
    const texts: Buffer[] = []
    let bytes = 0
    let next = position
    for (; next < this.#next && bytes < MAX_CHUNK_BYTES; next++) {
      const { type, text } = this.#events[this.#removed + next - this.first]!
      if (types && !types.has(type) && type !== 'gap') continue
      texts.push(text)
      bytes += text.length
    }
    return { chunk: texts.length > 0 ? Buffer.concat(texts, bytes) : undefined, next }
  }

  #removeFirst (): void {
    this.#bytes -= this.#events[this.#removed]!.text.length
    this.#events[this.#removed++] = undefined
    if (this.#removed < MAX_REMOVED || this.#removed < this.#events.length / 2) return
    this.#events = this.#events.slice(this.#removed)
    this.#removed = 0
  }
}

export function eventText (id: string, type: string, json: string): string {
  return `id: ${id}\nevent: ${type}\ndata: ${json}\n\n`
}
