import { setTimeout as sleep } from 'node:timers/promises'
import WebSocket from 'ws'
import { connect, type Client, type ConnectOptions, type Received } from '../../lib/client/index.ts'
import { request } from '../support.ts'
import { seededRandom } from './campaign.ts'

/** Where the lanes send to, whichever process that is. */
export interface Gateway {
  readonly url: string
  /** Resolves while there is one that listens. */
  listens (): Promise<void>
  /** It has accepted a message. */
  accepted (): void
}

/** What came of what was sent. */
export interface LaneResult {
  acknowledged: number
  /** Requests that ended without an answer that says anything, and were made again. */
  retried: number
  /** Copies on the wire that the application was not shown. */
  dropped: number
  lost: number
  neverAttempted: number
  outOfOrder: number
  twice: number
}

/** A message as the application saw it: its number, where it is as it was sent, and its id. */
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

/** One sender and its device: a message is sent once the one before it was acknowledged, so that their order is defined. */
export class Lane {
  readonly deviceId: string
  /** The ids under which the messages were acknowledged, in the order of their numbers. */
  readonly acknowledged: string[] = []
  /** Answers that are neither an acknowledgement nor a reason to try again; they end the lane. */
  readonly refusals: string[] = []
  readonly #number: number
  readonly #gateway: Gateway
  readonly #random: () => number
  readonly #client: Client
  readonly #deliveries: Delivery[] = []
  readonly #arrivedNumbers = new Set<number>()
  #attempted = 0
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

  /** How many of its messages the application was shown. */
  get arrived (): number {
    return this.#arrivedNumbers.size
  }

  /** Sends one after the other until told to finish; resolves once the last is acknowledged. */
  async send (): Promise<void> {
    while (!this.#isFinished) {
      const number = this.#attempted++
      const id = await this.#sendUntilAcknowledged(contentOf(this.#number, number), `${number}`)
      if (id === undefined) return
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

  result (): LaneResult {
    const { acknowledged } = this
    const numbers = this.#deliveries.filter(({ number, id }) => number !== undefined && id === acknowledged[number]).map(({ number }) => number!)
    const firsts = [...new Set(numbers)]
    return {
      acknowledged: acknowledged.length,
      retried: this.#retried,
      dropped: this.#frames - this.#deliveries.length,
      lost: acknowledged.length - firsts.length,
      neverAttempted: this.#deliveries.length - numbers.length,
      outOfOrder: firsts.filter((number, at) => at > 0 && number < firsts[at - 1]!).length,
      twice: numbers.length - firsts.length
    }
  }

  /** Tries with the same key and body until the message is acknowledged; resolves with its id, or with nothing if it is refused. */
  async #sendUntilAcknowledged (content: unknown, key: string): Promise<string | undefined> {
    for (;;) {
      await this.#gateway.listens()
      try {
        const path = `/devices/${this.deviceId}/messages?ttl=${TTL_SECONDS}`
        const { status, body } = await request(this.#gateway, 'POST', path, content, { 'idempotency-key': key })
        // the second: an earlier try came through, and its letter has arrived meanwhile
        if (status === 202 || (status === 200 && body.status === 'delivered')) return body.id
        if (status < 500 && status !== 429) return void this.refusals.push(`${status} ${JSON.stringify(body)}`)
        if (status >= 500) this.#retried++
        await sleep(RETRY_DELAY_MS)
      } catch (error) {
        if ((error as { cause?: { code?: string } }).cause?.code !== 'ECONNREFUSED') this.#retried++
      }
    }
  }

  /** Some keep the application for a moment, so that a kill meets those too that are not acknowledged yet. */
  async #receive ({ id, data }: Received): Promise<void> {
    const number = this.#numberOf(data)
    this.#deliveries.push({ number, id })
    if (number !== undefined) this.#arrivedNumbers.add(number)
    if (this.#random() < SLOW_SHARE) await sleep(this.#random() * LONGEST_MOMENT)
  }

  #numberOf (data: unknown): number | undefined {
    const number = data instanceof Uint8Array ? Buffer.from(data.subarray(0, 4)).readUInt32BE() : (data as { number: number }).number
    const isSent = number < this.#attempted && textOf(data) === textOf(contentOf(this.#number, number))
    return isSent ? number : undefined
  }
}

function textOf (content: unknown): string {
  return content instanceof Uint8Array ? Buffer.from(content).toString('latin1') : JSON.stringify(content)
}

/** The content of a message, the same each time it is asked for: JSON or bytes, of other messages none like it. */
function contentOf (lane: number, number: number): unknown {
  const random = seededRandom(number * 1_000 + lane)
  const size = Math.floor(random() * (random() < LARGE_SHARE ? LARGE : SMALL))
  const bytes = Buffer.alloc(8 + size)
  bytes.writeUInt32BE(number)
  bytes.writeUInt32BE(lane, 4)
  for (let at = 8; at < bytes.length; at++) bytes[at] = random() * 256
  return random() < 0.5 ? bytes : { lane, number, text: bytes.toString('latin1') }
}
