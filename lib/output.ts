import { Failure } from './errors.ts'
import type { Frame } from './frame.ts'

/** What an output needs of a connection. */
export interface Sink {
  readonly buffered: number
  send (frame: Frame): void
  /** Calls back once, when what is buffered has been written. */
  onDrain (listener: () => void): void
}

interface Waiting {
  frame: Frame
  settle (failure?: Failure): void
}

/** What is on its way out to one device: never more than the limit, in order, and with a way to wait for room. */
export class Output {
  readonly #sink: Sink
  readonly #limit: number
  #waiting: Waiting[] = none
  #waitingBytes = 0

  constructor (sink: Sink, limit: number) {
    this.#sink = sink
    this.#limit = limit
  }

  /** Writes at once. False: more waits than may. */
  write (frame: Frame): boolean {
    if (this.#waiting.length > 0) this.#wait(frame, () => {})
    else this.#sink.send(frame)
    return this.#backlog <= this.#limit
  }

  /** Writes as soon as there is room, and resolves then; rejects where there will be none for long. */
  offer (frame: Frame): Promise<void> {
    if (this.#waiting.length === 0 && this.#hasRoom) {
      this.#sink.send(frame)
      return Promise.resolve()
    }
    if (this.#backlog + frame.wire.length > this.#limit) return Promise.reject(new Failure('congested'))
    return new Promise((resolve, reject) => {
      this.#wait(frame, failure => failure ? reject(failure) : resolve())
    })
  }

  /** The connection has ended. */
  end (): void {
    for (const { settle } of this.#waiting) settle(new Failure('dropped'))
    this.#waiting = none
  }

  get #hasRoom (): boolean {
    return this.#sink.buffered <= this.#limit / 2
  }

  get #backlog (): number {
    return this.#sink.buffered + this.#waitingBytes
  }

  #wait (frame: Frame, settle: Waiting['settle']): void {
    const isFirst = this.#waiting.length === 0
    if (isFirst) this.#waiting = []
    this.#waiting.push({ frame, settle })
    this.#waitingBytes += frame.wire.length
    if (isFirst) this.#sink.onDrain(() => this.#drain())
  }

  #drain (): void {
    let written = 0
    for (const { frame, settle } of this.#waiting) {
      if (!this.#hasRoom) break
      this.#sink.send(frame)
      this.#waitingBytes -= frame.wire.length
      settle()
      written++
    }
    this.#waiting = this.#waiting.slice(written)
    if (this.#waiting.length > 0) this.#sink.onDrain(() => this.#drain())
  }
}

/** Most devices never have anything waiting; they share this. */
const none: Waiting[] = []
