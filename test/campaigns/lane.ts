import { setTimeout as sleep } from 'node:timers/promises'
import WebSocket from 'ws'
import { connect, type Client, type ConnectOptions, type Received } from '../../lib/client/index.ts'
import { request } from '../support.ts'
import { seededRandom } from './campaign.ts'
import { LossWindows, type Attempt } from './loss-windows.ts'

/** The gateway that the lanes send to; its process changes over time. */
export interface Gateway {
  readonly url: string
  /** Resolves once a process listens. */
  listens (): Promise<void>
  /** Called when a message was accepted. */
  accepted (): void
}

/** The outcome of a lane. */
export interface LaneResult {
  acknowledged: number
  /** Requests with an unknown outcome, which were repeated. */
  retried: number
  /** Duplicates on the wire that the SDK dropped. */
  dropped: number
  lost: number
  neverAttempted: number
  outOfOrder: number
  twice: number
  /** Messages that the gateway may lose although it acknowledged them, and how many of them it lost. */
  mayBeLost: number
  forgotten: number
  /** Messages seen once more under another id, because the gateway forgot the first attempt. */
  repeated: number
}

/** A message that the application received: its id, and its number if the content is intact. */
interface Delivery {
  number: number | undefined
  id: string
}

const TTL_SECONDS = 86_400
const RETRY_DELAY_MS = 20
const LARGE_SHARE = 0.02
const SLOW_SHARE = 0.1
const [SMALL, LARGE, LONGEST_MOMENT] = [1_000, 15_000, 5]
const deliveryPrefix = Buffer.from('{"jsonrpc":"2.0","id":"')

/** A sender and its device. Each message is sent after the acknowledgement of the one before, so that their order is defined. */
export class Lane {
  readonly deviceId: string
  /** The ids under which the messages were acknowledged, in the order of their numbers. */
  readonly acknowledged: string[] = []
  /** Unexpected answers; each ends the lane. */
  readonly refusals: string[] = []
  readonly #number: number
  readonly #gateway: Gateway
  readonly #random: () => number
  readonly #client: Client
  readonly #deliveries: Delivery[] = []
  readonly #arrivedNumbers = new Set<number>()
  /** When each message was sent and acknowledged, by its number. */
  readonly #attempts: Attempt[] = []
  #retried = 0
  #frames = 0
  #isFinished = false

  constructor (number: number, gateway: Gateway, seed: number) {
    this.deviceId = `device-${number}`
    this.#number = number
    this.#gateway = gateway
    this.#random = seededRandom(seed + number)
    const heard = (frame: Buffer | ArrayBuffer) => { if (Buffer.from(frame as Buffer).subarray(0, deliveryPrefix.length).equals(deliveryPrefix)) this.#frames++ }
    class Tapped extends WebSocket {
      constructor (url: string, protocols: string[]) {
        super(url, protocols)
        this.on('message', heard)
      }
    }
    const options = { deviceId: this.deviceId, minDelay: 20, maxDelay: 300, WebSocket: Tapped as unknown as NonNullable<ConnectOptions['WebSocket']> }
    this.#client = connect(`${gateway.url}/ws`, options).on('message', message => this.#receive(message))
  }

  /** Number of messages that the application received. */
  get arrived (): number {
    return this.#arrivedNumbers.size
  }

  /** Sends messages one after the other until `finish`; resolves once the last is acknowledged. */
  async send (): Promise<void> {
    while (!this.#isFinished) {
      const attempt: Attempt = { attemptedAt: performance.now(), acknowledgedAt: undefined }
      const number = this.#attempts.push(attempt) - 1
      const id = await this.#sendUntilAcknowledged(contentOf(this.#number, number), `${number}`)
      if (id === undefined) return
      attempt.acknowledgedAt = performance.now()
      this.acknowledged.push(id)
      this.#gateway.accepted()
    }
  }

  finish (): void {
    this.#isFinished = true
  }

  close (): void {
    this.#client.close()
  }

  /** The ids of the messages that the gateway must not lose. */
  safeIds (windows: LossWindows): string[] {
    return this.acknowledged.filter((_, number) => !windows.mayLose(this.#attempts[number]!))
  }

  result (windows = new LossWindows()): LaneResult {
    const { acknowledged } = this
    const numbers = this.#deliveries.filter(({ number, id }) => number !== undefined && id === acknowledged[number]).map(({ number }) => number!)
    const received = new Set(numbers)
    const firsts = [...received]
    const mayBeLost = [...acknowledged.keys()].filter(number => windows.mayLose(this.#attempts[number]!))
    const forgotten = mayBeLost.filter(number => !received.has(number)).length
    const repeated = this.#deliveries.filter(({ number, id }) => number !== undefined && id !== acknowledged[number] && windows.mayRepeat(this.#attempts[number]!)).length
    return {
      acknowledged: acknowledged.length,
      retried: this.#retried,
      dropped: this.#frames - this.#deliveries.length,
      lost: acknowledged.length - firsts.length - forgotten,
      neverAttempted: this.#deliveries.length - numbers.length - repeated,
      outOfOrder: firsts.filter((number, at) => at > 0 && number < firsts[at - 1]!).length,
      twice: numbers.length - firsts.length,
      mayBeLost: mayBeLost.length,
      forgotten,
      repeated
    }
  }

  /** Retries with the same key and body until the message is acknowledged; resolves with its id, or undefined if it is refused. */
  async #sendUntilAcknowledged (content: unknown, key: string): Promise<string | undefined> {
    for (;;) {
      await this.#gateway.listens()
      try {
        const path = `/devices/${this.deviceId}/messages?ttl=${TTL_SECONDS}`
        const { status, body } = await request(this.#gateway, 'POST', path, content, { 'idempotency-key': key })
        // 200: an earlier attempt succeeded, and the letter has been delivered since
        if (status === 202 || (status === 200 && body.status === 'delivered')) return body.id
        if (status < 500 && status !== 429) return void this.refusals.push(`${status} ${JSON.stringify(body)}`)
        if (status >= 500) this.#retried++
        await sleep(RETRY_DELAY_MS)
      } catch (error) {
        if ((error as { cause?: { code?: string } }).cause?.code !== 'ECONNREFUSED') this.#retried++
      }
    }
  }

  /** Some messages take a moment to process, so that kills also hit unacknowledged messages. */
  async #receive ({ id, data }: Received): Promise<void> {
    const number = this.#numberOf(data)
    this.#deliveries.push({ number, id })
    if (number !== undefined) this.#arrivedNumbers.add(number)
    if (this.#random() < SLOW_SHARE) await sleep(this.#random() * LONGEST_MOMENT)
  }

  #numberOf (data: unknown): number | undefined {
    const number = data instanceof Uint8Array ? Buffer.from(data.subarray(0, 4)).readUInt32BE() : (data as { number: number }).number
    const isSent = number < this.#attempts.length && textOf(data) === textOf(contentOf(this.#number, number))
    return isSent ? number : undefined
  }
}

function textOf (content: unknown): string {
  return content instanceof Uint8Array ? Buffer.from(content).toString('latin1') : JSON.stringify(content)
}

/** The content of a message, JSON or bytes: reproducible, and unique to the message. */
function contentOf (lane: number, number: number): unknown {
  const random = seededRandom(number * 1_000 + lane)
  const size = Math.floor(random() * (random() < LARGE_SHARE ? LARGE : SMALL))
  const bytes = Buffer.alloc(8 + size)
  bytes.writeUInt32BE(number)
  bytes.writeUInt32BE(lane, 4)
  for (let at = 8; at < bytes.length; at++) bytes[at] = random() * 256
  return random() < 0.5 ? bytes : { lane, number, text: bytes.toString('latin1') }
}
