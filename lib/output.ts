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
  #due: 'soon' | 'together' | undefined
  #waiting: Waiting[] = none
  #waitingBytes = 0

  constructor (sink: Sink, limit: number, tide: Tide) {
    this.#sink = sink
    this.#limit = limit
    this.#tide = tide
  }

  /** Leaves at the end of the tick. False: more waits than may. */
  write (frame: Frame): boolean {
    if (this.#waiting.length > 0) this.#wait(frame, () => {})
    else this.#hold(frame)
    return this.#backlog <= this.#limit
  }

  /** Leaves at once, or with what else goes to many. False: more waits than may. */
  cast (frame: Frame, atOnce: boolean): boolean {
    if (this.#waiting.length > 0 || this.#due === 'soon') return this.write(frame)
    if (atOnce) {
      this.#sink.send(frame)
      return this.#sink.buffered <= this.#limit
    }
    this.#held = this.#held ? this.#held.followedBy(frame) : frame
    if (!this.#due) {
      this.#due = 'together'
      this.#tide.together(this)
    }
    return this.#backlog <= this.#limit
  }

  /** Leaves as soon as there is room, and resolves then; rejects where there will be none for long. */
  offer (frame: Frame): Promise<void> {
    if (this.#waiting.length === 0 && this.#hasRoom) {
      this.#hold(frame)
      return Promise.resolve()
    }
    if (this.#backlog + frame.size > this.#limit) return Promise.reject(new Failure('congested'))
    return new Promise((resolve, reject) => {
      this.#wait(frame, failure => failure ? reject(failure) : resolve())
    })
  }

  flush (): void {
    const held = this.#held
    this.#held = undefined
    this.#due = undefined
    if (held) this.#sink.send(held)
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
    return this.#sink.buffered + (this.#held?.size ?? 0)
  }

  get #backlog (): number {
    return this.#unsent + this.#waitingBytes
  }

  #hold (frame: Frame): void {
    this.#held = this.#held ? this.#held.followedBy(frame) : frame
    if (this.#due === 'soon') return
    this.#due = 'soon'
    this.#tide.soon(this)
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
    for (const { frame, settle } of this.#waiting) {
      if (!this.#hasRoom) break
      this.#sink.send(frame)
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
