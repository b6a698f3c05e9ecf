import { failedAnswer, type Answer, type Request } from '../cluster/backplane.ts'
import { encode } from '../cluster/encoding.ts'
import { timeoutOf, withTimeLeft } from '../cluster/request-timeout.ts'
import { checkSize, type Link } from './link.ts'
import { nodeChannel, type NodeMessage, type ReplyContent } from './node-message.ts'
import type { OwnershipTable } from './ownership.ts'

type DeviceRequest = Extract<NodeMessage, { type: 'request' }>

/** Answers what nodes ask of the devices that this node owns. */
export class RequestHandler {
  readonly #link: Link
  readonly #owners: OwnershipTable
  /** The requests that are being worked on, by nonce. */
  readonly #pending = new Map<string, AbortController>()

  constructor (link: Link, owners: OwnershipTable) {
    this.#link = link
    this.#owners = owners
  }

  has (nonce: string): boolean {
    return this.#pending.has(nonce)
  }

  cancel (nonce: string): void {
    this.#pending.get(nonce)?.abort()
  }

  async receive ({ from, nonce, ...request }: DeviceRequest): Promise<void> {
    const controller = new AbortController()
    this.#pending.set(nonce, controller)
    try {
      this.reply(from, nonce, await this.#answer(request, controller.signal))
    } catch (error) {
      this.reply(from, nonce, failedAnswer(error))
    } finally {
      this.#pending.delete(nonce)
    }
  }

  /** Throws if the content cannot be encoded or is too large. */
  reply (node: string, nonce: string, content: ReplyContent): void {
    const payload = encode({ type: 'reply', nonce, ...content } satisfies NodeMessage)
    checkSize(payload)
    if (this.#link.up) this.#link.tell(nodeChannel(node), payload)
  }

  /** A former owner does not answer, because the current one may. */
  async #answer ({ type: _type, deviceId, ...request }: Omit<DeviceRequest, 'from' | 'nonce'>, signal: AbortSignal): Promise<Answer | { hasMoved: true }> {
    const deadline = performance.now() + timeoutOf(request as Request)
    const owner = await this.#owners.confirmed(deviceId)
    return owner ? await owner.answer(withTimeLeft(request as Request, deadline), signal) : { hasMoved: true }
  }
}
