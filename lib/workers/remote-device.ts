import type { FastifyBaseLogger } from 'fastify'
import type { DeviceConnection } from '../cluster/backplane.ts'
import { assertTimestamp, type Credentials, type Device } from '../connection/device.ts'
import type { Devices } from '../gateway/devices.ts'
import type { Dispatcher } from '../messaging/dispatcher.ts'
import type { CallOptions } from '../protocol/peer.ts'
import type { RequestContext } from '../protocol/request-context.ts'

interface RemoteDeviceParts {
  devices: Devices
  dispatcher: Dispatcher
  log: FastifyBaseLogger
  /** The request that caused the call of the device, as far as its gateway knows it. */
  context: RequestContext | undefined
}

/**
 * A device that is connected to another node, as it was when it called. Messages to it go to its current connection. Only the signal of the
 * handler tells that the device has left.
 */
export class RemoteDevice implements Device {
  readonly id: string
  readonly node: string
  readonly generation: number
  readonly since: number
  readonly address: string | undefined
  readonly localAddress: string | undefined
  readonly protocol: string
  readonly credentials: Credentials
  readonly topics: ReadonlySet<string>
  readonly left: undefined
  readonly #parts: RemoteDeviceParts

  constructor ({ id, node, generation, since, address, localAddress, protocol, credentials, topics }: DeviceConnection, parts: RemoteDeviceParts) {
    this.id = id
    this.node = node
    this.generation = generation
    this.since = since
    this.address = address
    this.localAddress = localAddress
    this.protocol = protocol
    this.credentials = credentials
    this.topics = new Set(topics)
    this.#parts = parts
  }

  send (data: unknown): void {
    void this.#try(this.#parts.devices.send(this.id, data), 'message to device failed')
  }

  /** An `id` has no effect: the node of the device chooses it. */
  async call (method: string, params?: unknown, { timeout, signal, request }: CallOptions = {}): Promise<unknown> {
    return await this.#parts.devices.call(this.id, method, params, { timeout, signal, request })
  }

  renew (expiresAt: number): void {
    assertTimestamp(expiresAt)
    const { id, generation } = this
    void this.#try(this.#parts.dispatcher.reach(id, { kind: 'renew', generation, expiresAt }), 'renewal of credentials failed')
  }

  /** Logs a failure, because no caller waits for the outcome. */
  async #try (work: Promise<unknown>, failure: string): Promise<void> {
    try {
      await work
    } catch (error) {
      this.#parts.log.warn({ err: error, reqId: this.#parts.context?.id, deviceId: this.id }, failure)
    }
  }
}
