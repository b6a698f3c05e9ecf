import { once } from 'node:events'
import { get, type IncomingHttpHeaders, type IncomingMessage } from 'node:http'

/** An event as a reader of `GET /events` gets it. */
export interface ReceivedEvent {
  id: string
  type: string
  at: number
  node: string
  deviceId: string
  generation?: number
  data: any
}

export interface ReadOptions {
  types?: string
  /** The id of the last event that it has. */
  after?: string | undefined
  headers?: Record<string, string>
}

/** A reader of `GET /events` over a connection of its own. */
export class EventReader {
  readonly events: ReceivedEvent[] = []
  readonly status: number
  readonly headers: IncomingHttpHeaders
  /** The id with which it can continue. */
  lastId: string | undefined
  retry: number | undefined
  comments = 0
  hasEnded = false
  /** Resolves with whether the response is complete. */
  readonly ended: Promise<boolean>
  readonly #response: IncomingMessage
  readonly #waiting = new Set<() => void>()
  #text = ''
  #taken = 0

  private constructor (response: IncomingMessage) {
    this.status = response.statusCode!
    this.headers = response.headers
    this.#response = response
    response.setEncoding('utf8')
    response.on('data', (text: string) => this.#receive(text))
    response.on('error', () => {})
    this.ended = new Promise(resolve => response.once('close', resolve)).then(() => {
      this.hasEnded = true
      this.#wake()
      return response.complete
    })
  }

  /** Resolves once the response has begun. */
  static async open (app: { url: string }, { types, after, headers }: ReadOptions = {}): Promise<EventReader> {
    const request = get(`${app.url}/events${types === undefined ? '' : `?types=${types}`}`, {
      agent: false, headers: { ...headers, ...(after !== undefined && { 'last-event-id': after }) }
    })
    request.on('error', () => {}) // also after the response
    const [response] = await once(request, 'response') as [IncomingMessage]
    return new EventReader(response)
  }

  /** The next event that matches; rejects if the stream ends before it. */
  async next (matches: (event: ReceivedEvent) => boolean = () => true): Promise<ReceivedEvent> {
    for (;;) {
      while (this.#taken < this.events.length) {
        const event = this.events[this.#taken++]!
        if (matches(event)) return event
      }
      if (this.hasEnded) throw new Error('the stream has ended')
      await new Promise<void>(resolve => this.#waiting.add(resolve))
    }
  }

  /** Resolves once it has an id to continue with. */
  async started (): Promise<this> {
    while (this.lastId === undefined) await new Promise<void>(resolve => this.#waiting.add(resolve))
    return this
  }

  /** Cuts the connection. */
  cut (): void {
    this.#response.destroy()
  }

  pause (): void {
    this.#response.pause()
  }

  resume (): void {
    this.#response.resume()
  }

  #receive (text: string): void {
    const blocks = (this.#text + text).split('\n\n')
    this.#text = blocks.pop()!
    for (const block of blocks) this.#dispatch(block)
    this.#wake()
  }

  #dispatch (block: string): void {
    let type: string | undefined
    for (const line of block.split('\n')) {
      const [, name = '', value = ''] = /^(\w*): ?(.*)$/.exec(line) ?? []
      if (name === '') this.comments++
      else if (name === 'id') this.lastId = value
      else if (name === 'retry') this.retry = Number(value)
      else if (name === 'event') type = value
      else if (name === 'data') {
        const event = JSON.parse(value)
        if (event.type !== type) throw new Error(`event: ${type}, but data: ${value}`)
        this.events.push(event)
      }
    }
  }

  #wake (): void {
    for (const wake of this.#waiting) wake()
    this.#waiting.clear()
  }
}
