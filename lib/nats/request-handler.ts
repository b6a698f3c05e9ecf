import type { Msg } from '@nats-io/transport-node'
import { failedAnswer, type Request } from '../cluster/backplane.ts'
import { decode, encode } from '../cluster/encoding.ts'
import { timeoutOf, withTimeLeft } from '../cluster/request-timeout.ts'
import type { Link } from './link.ts'
import type { OwnedDevice } from './owned-device.ts'
import { deviceSubject } from './subjects.ts'

/** A message to the owner of a device: a request, its cancellation, the question whether it is still being worked on, or the generation of a new record. */
export type DeviceRequest =
  | Request & { nonce: string }
  | { kind: 'cancel' | 'probe', nonce: string }
  | { kind: 'compare', generation: number }

interface OwnershipChecks {
  /** Resolves with whether the connection still owns the device. */
  isOwner (owned: OwnedDevice): Promise<boolean>
  /** Compares the connection with the record of the device. */
  compare (owned: OwnedDevice): void
}

/** Answers what nodes ask of the devices that this node owns. */
export class RequestHandler {
  readonly #link: Link
  readonly #ownership: OwnershipChecks
  /** The requests that are being worked on, by nonce. */
  readonly #pending = new Map<string, AbortController>()

  constructor (link: Link, ownership: OwnershipChecks) {
    this.#link = link
    this.#ownership = ownership
  }

  /** NATS may accept two records after the same one: the owner that wrote the other one must compare itself. */
  requestCompare ({ deviceId, generation }: OwnedDevice): void {
    if (this.#link.up) this.#link.publish(deviceSubject(deviceId), encode({ kind: 'compare', generation } satisfies DeviceRequest))
  }

  receive (owned: OwnedDevice, message: Msg): void {
    const request: DeviceRequest = decode(message.data)
    switch (request.kind) {
      case 'cancel': return this.#pending.get(request.nonce)?.abort()
      case 'probe': return this.#reply(message, this.#pending.has(request.nonce) ? '1' : '0')
      case 'compare': return owned.generation < request.generation ? this.#ownership.compare(owned) : undefined
      default: void this.#answer(owned, request, message)
    }
  }

  async #answer (owned: OwnedDevice, { nonce, ...request }: Request & { nonce: string }, message: Msg): Promise<void> {
    const controller = new AbortController()
    const deadline = performance.now() + timeoutOf(request)
    this.#pending.set(nonce, controller)
    try {
      // a former owner does not answer, because the current one does
      if (!await this.#ownership.isOwner(owned)) return
      const answer = await owned.owner.answer(withTimeLeft(request, deadline), controller.signal)
      this.#reply(message, encode(answer))
    } catch (error) {
      this.#reply(message, encode(failedAnswer(error)))
    } finally {
      this.#pending.delete(nonce)
    }
  }

  #reply (message: Msg, payload: Uint8Array | string): void {
    if (this.#link.up) this.#link.reply(message, payload)
  }
}
