import { Failure } from './errors.ts'
import type { Frame, Outgoing } from './frame.ts'
import type { Holding, Tide } from './tide.ts'

/** What an output needs of a connection. */
export interface Sink {
  readonly buffered: number
  send (outgoing: Outgoing): void
  /** Calls back once, when what is buffered has been written. */
  onDrain (listener: () => void): void
}

interface Waiting {
  frame: Frame
  settle (failure?: Failure): void
}

/** What is on its way out to one device: never more than the limit, in order, and with a way to wait for room. */
export class Output implements Holding {
  readonly #sink: Sink
  readonly #limit: number
  readonly #tide: Tide
  /** Leaves with the next flush. */
  #held: Outgoing | undefined
  /** What was buffered after the last write: by now it is that, or less. To look costs more than it tells as long as that is little. */
  #buffered = 0
  #waiting: Waiting[] = none
  #waitingBytes = 0

  constructor (sink: Sink, limit: number, tide: Tide) {
    this.#sink = sink
    this.#limit = limit
    this.#tide = tide
  }

  /** Leaves at the end of the turn. False: more waits than may. */
  write (frame: Frame): boolean {
    if (this.#waiting.length > 0) this.#wait(frame, () => {})
    else this.#hold(frame)
    if (this.#backlog <= this.#limit) return true
    this.flush() // what the system takes at once does not wait
    return this.#backlog <= this.#limit
  }

  /** Leaves at the end of the turn, or as soon as there is room, and resolves then; rejects where there will be none for long. */
  offer (frame: Frame): Promise<void> | undefined {
    if (this.#waiting.length > 0 || !this.#hasRoom) this.flush()
    if (this.#waiting.length === 0 && this.#hasRoom) return void this.#hold(frame)
    if (this.#backlog + frame.size > this.#limit) return Promise.reject(new Failure('congested'))
    return new Promise((resolve, reject) => {
      this.#wait(frame, failure => failure ? reject(failure) : resolve())
    })
  }

  look (): void {
    this.#buffered = this.#sink.buffered
  }

  flush (): void {
    const held = this.#held
    this.#held = undefined
    if (held) this.#sink.send(held)
    this.look()
  }

  /** The connection has ended. */
  end (): void {
    this.flush()
    for (const { settle } of this.#waiting) settle(new Failure('dropped'))
    this.#waiting = none
  }

  get #hasRoom (): boolean {
    return this.#unsent <= this.#limit / 2
  }

  get #unsent (): number {
    return this.#buffered + (this.#held?.size ?? 0)
  }

  get #backlog (): number {
    return this.#unsent + this.#waitingBytes
  }

  #hold (frame: Frame): void {
    if (this.#held) {
      this.#held = this.#held.followedBy(frame)
    } else {
      this.#held = frame
      this.#tide.join(this)
    }
  }

  #wait (frame: Frame, settle: Waiting['settle']): void {
    const isFirst = this.#waiting.length === 0
    if (isFirst) this.#waiting = []
    this.#waiting.push({ frame, settle })
    this.#waitingBytes += frame.size
    if (!isFirst) return
    this.flush()
    this.#sink.onDrain(() => this.#drain())
  }

  #drain (): void {
    let written = 0
    this.look()
    for (const { frame, settle } of this.#waiting) {
      if (!this.#hasRoom) break
      this.#sink.send(frame)
      this.look()
      this.#waitingBytes -= frame.size
      settle()
      written++
    }
    this.#waiting = this.#waiting.slice(written)
    if (this.#waiting.length > 0) this.#sink.onDrain(() => this.#drain())
  }
}

/** Most devices never have anything waiting; they share this. */
const none: Waiting[] = []
