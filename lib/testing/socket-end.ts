import { Duplex } from 'node:stream'

type Done = (error?: Error | null) => void

/** One end of a connection within this process. What one end writes arrives at the other in a later turn of the event loop, as over a network. */
export class SocketEnd extends Duplex {
  /** As a socket of Node has them. */
  readonly remoteAddress: string
  readonly localAddress: string
  readonly #isClient: boolean
  #other!: SocketEnd
  /** Completes the write of the other end that waits until this end has room for it. */
  #completeWrite: Done | undefined
  #isReadEnded = false

  private constructor (localAddress: string, remoteAddress: string, isClient: boolean) {
    super()
    this.#isClient = isClient
    this.localAddress = localAddress
    this.remoteAddress = remoteAddress
  }

  /** The end of the client, whose address the other end sees as its `remoteAddress`, and the end of the server. */
  static pair (clientAddress: string, serverAddress: string): [client: SocketEnd, server: SocketEnd] {
    const [client, server] = [new SocketEnd(clientAddress, serverAddress, true), new SocketEnd(serverAddress, clientAddress, false)]
    client.#other = server
    server.#other = client
    return [client, server]
  }

  override _read (): void {
    const done = this.#completeWrite
    this.#completeWrite = undefined
    done?.()
  }

  override _write (chunk: Buffer, _encoding: BufferEncoding, done: Done): void {
    setImmediate(() => this.#other.#receive(chunk, done))
  }

  override _final (done: Done): void {
    setImmediate(() => this.#other.#endRead())
    done()
  }

  /** A client that destroys its end resets the connection. What a server has written before still arrives: it may be a refusal. */
  override _destroy (error: Error | null, done: Done): void {
    this._read()
    const isReset = this.#isClient && !this.writableFinished
    setImmediate(() => isReset ? this.#other.destroy() : this.#other.#endRead())
    done(error)
  }

  #receive (chunk: Buffer, done: Done): void {
    if (this.destroyed || this.push(chunk)) done()
    else this.#completeWrite = done
  }

  #endRead (): void {
    if (this.#isReadEnded || this.destroyed) return
    this.#isReadEnded = true
    this.push(null)
  }
}
