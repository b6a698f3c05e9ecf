/** A server-sent event. */
export interface StreamEvent {
  type: string
  data: string
  /** The last id that the stream has named, also by an earlier event. */
  id: string
  /** Milliseconds to wait before reconnecting, once the server has asked for it. */
  retry: number | undefined
}

/** A longer event ends the stream. */
const MAX_EVENT_LENGTH = 16_777_216
const lineEnd = /\r\n|\n|\r(?!$)/ // a CR at the end may be half of a CRLF

/** Parses a stream of server-sent events (HTML Living Standard, 9.2.6). Comments yield nothing. */
export async function * readEvents (chunks: AsyncIterable<Uint8Array>): AsyncGenerator<StreamEvent> {
  const decoder = new TextDecoder()
  const parser = new EventParser()
  let rest = ''
  for await (const chunk of chunks) {
    const lines = (rest + decoder.decode(chunk, { stream: true })).split(lineEnd)
    rest = lines.pop()!
    for (const line of lines) {
      const event = parser.parse(line)
      if (event) yield event
    }
    if (rest.length + parser.length > MAX_EVENT_LENGTH) throw new Error(`An event is longer than ${MAX_EVENT_LENGTH} characters`)
  }
}

class EventParser {
  #type = ''
  #data: string[] = []
  #length = 0
  #id = ''
  #retry: number | undefined

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
    this.#type = ''
    this.#data = []
    this.#length = 0
    return hasData ? event : undefined
  }
}
