import { CommandFailure } from './command-failure.ts'

/** A server-sent event. */
export interface StreamEvent {
  type: string
  data: string
  /** The last id that the stream has named, also by an earlier event. */
  id: string
  /** Milliseconds to wait before reconnecting, once the server has asked for it. */
  retry: number | undefined
}

/** Where a reader of the stream can continue: also what has no data moves it on. */
export interface StreamPlace {
  /** The last id that is not empty. */
  id: string
  /** Milliseconds to wait before reconnecting, once the server has asked for it. */
  retry: number | undefined
}

/** A longer event ends the stream. */
const MAX_EVENT_LENGTH = 16_777_216
const lineEnd = /\r\n|\n|\r(?!$)/ // a CR at the end may be half of a CRLF

/** Parses a stream of server-sent events (HTML Living Standard, 9.2.6). What has no data yields nothing, but changes the place. */
export async function * readEvents (chunks: AsyncIterable<Uint8Array>, place: StreamPlace = { id: '', retry: undefined }): AsyncGenerator<StreamEvent> {
  const decoder = new TextDecoder()
  const parser = new EventParser(place)
  let rest = ''
  for await (const chunk of chunks) {
    const lines = (rest + decoder.decode(chunk, { stream: true })).split(lineEnd)
    rest = lines.pop()!
    for (const line of lines) {
      const event = parser.parse(line)
      if (event) yield event
    }
    if (rest.length + parser.length > MAX_EVENT_LENGTH) throw new CommandFailure('failed', `An event is longer than ${MAX_EVENT_LENGTH} characters`)
  }
}

class EventParser {
  readonly #place: StreamPlace
  #type = ''
  #data: string[] = []
  #length = 0
  #id = ''
  #retry: number | undefined

  constructor (place: StreamPlace) {
    this.#place = place
  }

  /** Length of the event so far. */
  get length (): number {
    return this.#length
  }

  /** Takes a line; an empty one completes an event. */
  parse (line: string): StreamEvent | undefined {
    if (line === '') return this.#complete()
    this.#length += line.length
    const [, name, value = ''] = /^([^:]*)(?:: ?(.*))?$/s.exec(line)!
    if (name === 'event') this.#type = value
    if (name === 'data') this.#data.push(value)
    if (name === 'id' && !value.includes('\0')) this.#id = value
    if (name === 'retry' && /^\d{1,9}$/.test(value)) this.#retry = Number(value)
    return undefined
  }

  #complete (): StreamEvent | undefined {
    const event = { type: this.#type || 'message', data: this.#data.join('\n'), id: this.#id, retry: this.#retry }
    const hasData = this.#data.length > 0
    this.#place.id = this.#id || this.#place.id // a new connection begins without an id
    this.#place.retry = this.#retry ?? this.#place.retry
    this.#type = ''
    this.#data = []
    this.#length = 0
    return hasData ? event : undefined
  }
}
