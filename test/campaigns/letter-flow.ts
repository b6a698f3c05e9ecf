import { setTimeout as sleep } from 'node:timers/promises'
import WebSocket from 'ws'
import { connect, type Client } from '../../lib/client/index.ts'
import { sumOf, tallyOf, type LetterTally } from './letter-tally.ts'
import { LossWindows, type Attempt } from './loss-windows.ts'

export const TOPIC = 'all'
const LANES = 16
const SEND_INTERVAL_MS = 50
const POLL_INTERVAL_MS = 50
const REQUEST_TIMEOUT_MS = 5_000
const TIMEOUT_MS = 60_000

/** A device, with what its application received. */
export class LetterDevice {
  readonly id: string
  readonly client: Client
  /** Numbers of the letters received, in order. */
  readonly seen: number[] = []
  /** When each letter was sent and acknowledged, by its number. */
  readonly attempts: Attempt[] = []

  constructor (id: string, url: string) {
    this.id = id
    this.client = connect(`${url}/ws`, { deviceId: id, WebSocket: WebSocket as any, minDelay: 100, maxDelay: 500 })
    this.client.on('message', ({ data, topic }) => { if (topic === undefined && typeof data === 'number') this.seen.push(data) })
    this.client.handle('echo', params => params)
    this.client.subscribe(TOPIC, () => {})
    this.client.handle('hang', () => new Promise(() => {}))
    this.client.on('error', () => {})
  }
}

/** Letters for all devices from several senders. Each letter to a device follows the acknowledgement of the one before. */
export class LetterFlow {
  readonly #devices: LetterDevice[]
  /** The addresses of the nodes that accept letters now. */
  readonly #urls: () => string[]
  readonly #stopping = new AbortController()
  readonly #done: Promise<unknown>
  /** Letters that no node accepted. */
  refused = 0

  constructor (devices: LetterDevice[], urls: () => string[]) {
    this.#devices = devices
    this.#urls = urls
    this.#done = Promise.all(Array.from({ length: LANES }, (_, lane) => this.#send(lane)))
  }

  async stop (): Promise<void> {
    this.#stopping.abort()
    await this.#done
  }

  /** What became of the letters, once those in flight have arrived. */
  async tally (windows: () => LossWindows = () => new LossWindows()): Promise<LetterTally> {
    const tally = () => sumOf(this.#devices.map(({ attempts, seen }) => tallyOf(attempts, seen, windows())))
    for (const until = performance.now() + TIMEOUT_MS; tally().lost > 0 && performance.now() < until;) await sleep(POLL_INTERVAL_MS)
    return tally()
  }

  async #send (lane: number): Promise<void> {
    const mine = this.#devices.filter((_, at) => at % LANES === lane)
    for (let at = 0; !this.#stopping.signal.aborted && mine.length > 0; at++) {
      await this.#sendUntilAcknowledged(mine[at % mine.length]!)
      await sleep(SEND_INTERVAL_MS)
    }
  }

  /** Sends a letter to random nodes until one has acknowledged it. */
  async #sendUntilAcknowledged (device: LetterDevice): Promise<void> {
    const attempt: Attempt = { attemptedAt: performance.now(), acknowledgedAt: undefined }
    const number = device.attempts.push(attempt) - 1
    for (const until = performance.now() + TIMEOUT_MS; performance.now() < until;) {
      const urls = this.#urls()
      try {
        const response = await fetch(`${urls[Math.floor(Math.random() * urls.length)]}/devices/${device.id}/messages?ttl=3600`, {
          method: 'POST',
          body: String(number),
          headers: { 'content-type': 'application/json', 'idempotency-key': `${device.id} ${number}` },
          signal: AbortSignal.timeout(REQUEST_TIMEOUT_MS)
        })
        await response.arrayBuffer()
        if (response.ok) return void (attempt.acknowledgedAt = performance.now())
      } catch {} // the node is dead or paused: try another
      await sleep(POLL_INTERVAL_MS)
    }
    this.refused++
  }
}
