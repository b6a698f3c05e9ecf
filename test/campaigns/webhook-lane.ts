import { setTimeout as sleep } from 'node:timers/promises'
import WebSocket from 'ws'
import { connect, type Client } from '../../lib/client/index.ts'
import type { ReceivedEvent } from '../webhook-receiver.ts'

export interface WebhookLaneResult {
  /** Messages that were acknowledged to the device. */
  acknowledged: number
  /** Messages that the device sent again, because it does not know whether they were accepted. */
  repeated: number
  lost: number
  /** Messages whose first event came after that of a later message. */
  outOfOrder: number
  /** Events that came a second time. */
  twice: number
}

const RETRY_DELAY_MS = 20

/** A device that calls `message` with growing numbers, each after the acknowledgement of the one before. */
export class WebhookLane {
  readonly deviceId: string
  readonly #client: Client
  readonly #isFinished: () => boolean
  acknowledged = 0
  #repeated = 0

  constructor (number: number, url: string, isFinished: () => boolean) {
    this.deviceId = `device-${number}`
    this.#isFinished = isFinished
    this.#client = connect(`${url}/ws`, { deviceId: this.deviceId, minDelay: 20, maxDelay: 300, WebSocket: WebSocket as any })
    this.#client.on('error', () => {})
  }

  async send (): Promise<void> {
    while (!this.#isFinished()) {
      try {
        await this.#client.call('message', { data: this.acknowledged }, { timeout: 10_000 })
        this.acknowledged++
      } catch {
        this.#repeated++
        await sleep(RETRY_DELAY_MS)
      }
    }
  }

  close (): void {
    this.#client.close()
  }

  /** Compares with all events that the endpoint got, in their order. */
  result (events: ReceivedEvent[]): WebhookLaneResult {
    const mine = events.filter(({ deviceId }) => deviceId === this.deviceId)
    const numbers = [...new Set(mine.map(({ body }) => body.data.message as number))]
    const ids = new Set<string>()
    const firsts = mine.filter(({ id }) => !ids.has(id) && ids.add(id))
    const generations = firsts.map(({ body }) => body.generation as string)
    const falls = (list: Array<string | number>) => list.filter((one, at) => at > 0 && one < list[at - 1]!).length
    return {
      acknowledged: this.acknowledged,
      repeated: this.#repeated,
      lost: Array.from({ length: this.acknowledged }, (_, number) => number).filter(number => !numbers.includes(number)).length,
      outOfOrder: falls(numbers) + falls(generations),
      twice: mine.length - firsts.length
    }
  }
}

export function sumOf (lanes: WebhookLane[], events: ReceivedEvent[]): WebhookLaneResult {
  const sum: WebhookLaneResult = { acknowledged: 0, repeated: 0, lost: 0, outOfOrder: 0, twice: 0 }
  for (const lane of lanes) for (const [name, count] of Object.entries(lane.result(events))) sum[name as keyof WebhookLaneResult] += count
  return sum
}
