import { setTimeout as sleep } from 'node:timers/promises'
import { gatewayFlags, type Command, type Invocation } from '../command.ts'
import { CommandFailure } from '../command-failure.ts'
import { readEvents, type StreamEvent } from '../event-stream.ts'
import { GatewayClient } from '../gateway-client.ts'
import { time } from '../table.ts'

/** An event as the gateway sends it. */
interface EventRecord {
  type: string
  at?: number
  node?: string
  deviceId?: string
  data?: unknown
}

/** The gateway sends a comment more often than this; without one the connection is dead. */
const SILENCE_TIMEOUT_MS = 60_000
const MIN_DELAY_MS = 1_000
const MAX_DELAY_MS = 30_000

export const tail: Command = {
  name: 'tail',
  summary: 'Follow what happens: devices connect and disconnect, messages arrive, letters end',
  parameters: [],
  flags: {
    types: { value: 'TYPES', about: 'Only these types of events, separated by commas' },
    ...gatewayFlags
  },
  about: [
    'Ends with Ctrl-C. If the connection to the gateway ends, it reconnects and continues after the last event;',
    'the event "gap" says that events were missed.'
  ],
  examples: [
    { line: 'fastify-devices tail --types connected,disconnected', does: 'Who comes and goes' },
    { line: 'fastify-devices tail --types message | jq .data', does: 'What devices send' }
  ],
  async run (invocation) {
    const reader = new EventReader(new GatewayClient(invocation), invocation.flags.text('types'))
    const print = invocation.output.table<EventRecord>([
      { title: 'TIME', of: ({ at }) => time(at), width: 24 },
      { title: 'EVENT', of: ({ type }) => type, width: 13 },
      { title: 'DEVICE', of: ({ deviceId }) => deviceId, width: 16 },
      { title: 'NODE', of: ({ node }) => node, width: 8 },
      { title: 'DATA', of: ({ data }) => data }
    ])
    for (;;) {
      for await (const event of reader.events()) await print([recordOf(event)])
      await pause(invocation, reader.delay)
    }
  }
}

/** Says that the connection has ended, and waits before the next one. */
async function pause ({ output, terminal }: Invocation, delay: number): Promise<void> {
  terminal.signal.throwIfAborted()
  await output.note('The connection to the gateway ended; reconnecting')
  await sleep(delay, undefined, { signal: terminal.signal })
}

/** Reads events over one connection after the other. */
class EventReader {
  readonly #gateway: GatewayClient
  readonly #types: string | undefined
  #lastId = ''
  #minDelay = MIN_DELAY_MS
  #failures = 0
  #hasConnected = false

  constructor (gateway: GatewayClient, types: string | undefined) {
    this.#gateway = gateway
    this.#types = types
  }

  /** Milliseconds to wait before the next connection. */
  get delay (): number {
    return Math.min(MAX_DELAY_MS, this.#minDelay * 2 ** this.#failures)
  }

  /** Ends when the connection ends. Throws if it could not be opened the first time, or if the gateway refuses it. */
  async * events (): AsyncGenerator<StreamEvent> {
    const silence = new AbortController()
    const timer = setTimeout(() => silence.abort(), SILENCE_TIMEOUT_MS)
    try {
      const { body } = await this.#gateway.open('GET', ['events'], { query: { types: this.#types }, headers: this.#headers() }, silence.signal)
      this.#hasConnected = true
      this.#failures = 0
      for await (const event of readEvents(watched(body!, timer))) {
        this.#lastId = event.id
        this.#minDelay = event.retry ?? this.#minDelay
        yield event
      }
    } catch (error) {
      if (!this.#mayReconnect(error)) throw error
      this.#failures++
    } finally {
      clearTimeout(timer)
    }
  }

  #headers (): Record<string, string> {
    return { accept: 'text/event-stream', ...(this.#lastId !== '' && { 'last-event-id': this.#lastId }) }
  }

  /** A connection that breaks rejects with a `TypeError` of `fetch`; what the gateway refuses stays refused. */
  #mayReconnect (error: unknown): boolean {
    return this.#hasConnected && (!(error instanceof CommandFailure) || error.exit === 'unreachable')
  }
}

/** Restarts the timer at each chunk. */
async function * watched (chunks: AsyncIterable<Uint8Array>, timer: NodeJS.Timeout): AsyncGenerator<Uint8Array> {
  for await (const chunk of chunks) {
    timer.refresh()
    yield chunk
  }
}

/** The record of an event. A gateway of another version may send something else. */
function recordOf ({ type, data }: StreamEvent): EventRecord {
  try {
    const record: unknown = JSON.parse(data)
    if (typeof record === 'object' && record !== null && !Array.isArray(record)) return { type, ...record }
  } catch {}
  return { type, data }
}
