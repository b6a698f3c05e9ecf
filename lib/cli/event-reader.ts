import { CommandFailure } from './command-failure.ts'
import { readEvents, type StreamEvent, type StreamPlace } from './event-stream.ts'
import type { GatewayClient } from './gateway-client.ts'

/** The gateway sends a comment more often than this; without one the connection is dead. */
const SILENCE_TIMEOUT_MS = 60_000
const MIN_DELAY_MS = 1_000
const MAX_DELAY_MS = 30_000

/** Reads events over one connection after the other. */
export class EventReader {
  readonly #gateway: Pick<GatewayClient, 'open'>
  readonly #types: string | undefined
  readonly #silenceTimeout: number
  readonly #place: StreamPlace = { id: '', retry: undefined }
  #failures = 0
  #hasConnected = false

  constructor (gateway: Pick<GatewayClient, 'open'>, types: string | undefined, silenceTimeout = SILENCE_TIMEOUT_MS) {
    this.#gateway = gateway
    this.#types = types
    this.#silenceTimeout = silenceTimeout
  }

  /** Milliseconds to wait before the next connection. */
  get delay (): number {
    return Math.min(MAX_DELAY_MS, (this.#place.retry ?? MIN_DELAY_MS) * 2 ** this.#failures)
  }

  /** Ends when the connection ends. Throws if it could not be opened the first time, or if the gateway refuses it. */
  async * events (): AsyncGenerator<StreamEvent> {
    const silence = new AbortController()
    const timer = setTimeout(() => silence.abort(), this.#silenceTimeout)
    try {
      const { body } = await this.#gateway.open('GET', ['events'], { query: { types: this.#types }, headers: this.#headers() }, silence.signal)
      this.#hasConnected = true
      this.#failures = 0
      yield * readEvents(watched(body!, timer), this.#place)
    } catch (error) {
      if (!this.#mayReconnect(error)) throw error
      this.#failures++
    } finally {
      clearTimeout(timer)
    }
  }

  #headers (): Record<string, string> {
    return { accept: 'text/event-stream', ...(this.#place.id !== '' && { 'last-event-id': this.#place.id }) }
  }

  /** A connection that breaks rejects with a `TypeError` of `fetch`; what the gateway refuses stays refused, unless it is full. */
  #mayReconnect (error: unknown): boolean {
    return this.#hasConnected && (!(error instanceof CommandFailure) || error.exit === 'unreachable' || error.exit === 'busy')
  }
}

/** Restarts the timer at each chunk. */
async function * watched (chunks: AsyncIterable<Uint8Array>, timer: NodeJS.Timeout): AsyncGenerator<Uint8Array> {
  for await (const chunk of chunks) {
    timer.refresh()
    yield chunk
  }
}
