import type { Server } from 'node:http'
import type { Duplex } from 'node:stream'
import { Failure } from '../../protocol/errors.ts'

const kTracker = Symbol('upgrade tracker')

/**
 * The sockets of a server with an upgrade request that has not become a device: not answered yet, or upgraded by a route of the host. One for each
 * server: if several scopes register the plugin, each sees the upgrades of all.
 */
export class UpgradeTracker {
  /** With the controller that ends the admission when the device disconnects. */
  readonly #sockets = new Map<Duplex, AbortController | undefined>()
  /** One listener for all sockets, because every socket would retain a closure of its own. */
  readonly #onClose: (this: Duplex) => void

  private constructor () {
    const sockets = this.#sockets
    this.#onClose = function () {
      sockets.get(this)?.abort(new Failure('departed'))
      sockets.delete(this)
    }
  }

  static of (server: Server & { [kTracker]?: UpgradeTracker }): UpgradeTracker {
    server[kTracker] ??= new UpgradeTracker()
    return server[kTracker]
  }

  get size (): number {
    return this.#sockets.size
  }

  track (socket: Duplex, departure = this.#sockets.get(socket)): void {
    if (!this.#sockets.has(socket)) socket.on('close', this.#onClose)
    this.#sockets.set(socket, departure)
  }

  /** The socket belongs to a device now. */
  release (socket: Duplex): void {
    this.#sockets.delete(socket)
    socket.removeListener('close', this.#onClose)
  }

  destroyAll (): void {
    for (const socket of this.#sockets.keys()) socket.destroy()
  }
}
