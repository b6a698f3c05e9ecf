import { Failure } from '../protocol/errors.ts'
import type { Frame, Outgoing } from './frame.ts'
import type { Flushable, FlushScheduler } from './flush-scheduler.ts'

/** What an output needs of a connection. */
export interface WriteTarget {
  readonly buffered: number
  send (outgoing: Outgoing): void
  /** Calls back once, when what is buffered has been written. */
  onDrain (listener: () => void): void
}

interface Waiting {
  /** Without one, somebody waits until little is left to be written. */
  frame: Frame | undefined
  settle (failure?: Failure): void
}

/** What is on its way out to one device: never more than the limit, in order, and with a way to wait for room. */
export class WriteQueue implements Flushable {
  readonly #sink: WriteTarget
  readonly #limit: number
  readonly #tide: FlushScheduler
  /** Leaves with the next flush. */
  #held: Outgoing | undefined
  /** What was buffered after the last write: by now it is that, or less. To look costs more than it tells as long as that is little. */
  #buffered = 0
  /** More waited than may when the turn was over. */
  #isLate = false
  #waiting: Waiting[] = none
  #waitingBytes = 0

  constructor (sink: WriteTarget, limit: number, tide: FlushScheduler) {
    this.#sink = sink
    this.#limit = limit
    this.#tide = tide
  }

  /** Leaves at the end of the turn. False: more waits than may. */
  write (frame: Frame): boolean {
    if (this.#waiting.length > 0) this.#wait(frame, () => {})
    else this.#hold(frame)
    if (this.#backlog <= this.#limit) return true
    if (this.#sink.buffered <= this.#limit) this.#isLate = false // it has caught up since
    this.flush() // what the system takes at once does not wait
    // over TLS it takes nothing before the turn is over, and who had no time is not slow
    return this.#backlog <= (this.#isLate ? this.#limit : 2 * this.#limit)
  }

  /** Leaves at the end of the turn, or as soon as there is room, and resolves then; rejects where there will be none for long. */
  offer (frame: Frame): Promise<void> | undefined {
    if (!this.#mayGo(frame)) this.flush()
    if (this.#mayGo(frame)) return void this.#hold(frame)
    if (this.#backlog + frame.size > this.#limit) return Promise.reject(new Failure('congested'))
    return this.#turn(frame)
  }

  /** Resolves once so little waits that any frame may be written; nothing, if that is so. Rejects where it will not be. */
  room (): Promise<void> | undefined {
    if (!this.#mayGo()) this.flush()
    return this.#mayGo() ? undefined : this.#turn()
  }

  /** Frames wait for room. */
  get isBehind (): boolean {
    return this.#waitingBytes > 0
  }

  look (): void {
    this.#look()
    this.#isLate = this.#buffered > this.#limit
  }

  flush (): void {
    const held = this.#held
    this.#held = undefined
    if (held) this.#sink.send(held)
    this.#look()
  }

  /** The connection has ended. */
  end (): void {
    this.flush()
    for (const { settle } of this.#waiting) settle(new Failure('dropped'))
    this.#waiting = none
  }

  /** Half of the limit is left for what cannot wait. A letter may take more than that, and goes where a quarter is taken. */
  #hasRoom (frame: Frame | undefined): boolean {
    const unsent = this.#unsent
    if (!frame) return unsent <= this.#limit / 4
    return unsent === 0 || (unsent <= this.#limit / 2 && unsent + frame.size <= this.#limit)
  }

  #mayGo (frame?: Frame): boolean {
    return this.#waiting.length === 0 && this.#hasRoom(frame)
  }

  get #unsent (): number {
    return this.#buffered + (this.#held?.size ?? 0)
  }

  get #backlog (): number {
    return this.#unsent + this.#waitingBytes
  }

  #look (): void {
    this.#buffered = this.#sink.buffered
  }

  #hold (frame: Frame): void {
    if (this.#held) {
      this.#held = this.#held.followedBy(frame)
    } else {
      this.#held = frame
      this.#tide.join(this)
    }
  }

  #turn (frame?: Frame): Promise<void> {
    return new Promise((resolve, reject) => {
      this.#wait(frame, failure => failure ? reject(failure) : resolve())
    })
  }

  #wait (frame: Frame | undefined, settle: Waiting['settle']): void {
    const isFirst = this.#waiting.length === 0
    if (isFirst) this.#waiting = []
    this.#waiting.push({ frame, settle })
    this.#waitingBytes += frame?.size ?? 0
    if (!isFirst) return
    this.flush()
    this.#sink.onDrain(() => this.#drain())
  }

  #drain (): void {
    let written = 0
    this.#look()
    for (const { frame, settle } of this.#waiting) {
      if (!this.#hasRoom(frame)) break
      if (frame) this.#sink.send(frame)
      this.#look()
      this.#waitingBytes -= frame?.size ?? 0
      settle()
      written++
    }
    this.#waiting = this.#waiting.slice(written)
    if (this.#waiting.length > 0) this.#sink.onDrain(() => this.#drain())
  }
}

/** Most devices never have anything waiting; they share this. */
const none: Waiting[] = []
