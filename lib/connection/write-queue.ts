import { Failure } from '../protocol/errors.ts'
import type { Frame, Outgoing } from './frame.ts'
import type { Flushable, FlushScheduler } from './flush-scheduler.ts'

/** As much of a socket as writing needs. */
export interface WriteTarget {
  /** Bytes that wait in this process. */
  readonly buffered: number
  send (outgoing: Outgoing): void
  /** Calls back once, when everything buffered has been written. */
  onDrain (listener: () => void): void
}

interface Waiter {
  /** Undefined: the caller of `room`, who writes a frame of its own. */
  frame: Frame | undefined
  settle (failure?: Failure): void
}

/** The output to one device, in order, within a limit, and with a way to wait for room. */
export class WriteQueue implements Flushable {
  readonly #target: WriteTarget
  readonly #limit: number
  readonly #scheduler: FlushScheduler
  /** Is sent by the next flush. */
  #pending: Outgoing | undefined
  /** What was buffered after the last write, and so an upper bound. Reading the socket costs more than it is worth while this is small. */
  #buffered = 0
  /** The limit was exceeded when the last turn of the event loop ended. */
  #wasOverLimit = false
  #waiters: Waiter[] = noWaiters
  #waitingBytes = 0

  constructor (target: WriteTarget, limit: number, scheduler: FlushScheduler) {
    this.#target = target
    this.#limit = limit
    this.#scheduler = scheduler
  }

  /** Writes a frame at the end of the turn. False: the device reads too slowly. */
  write (frame: Frame): boolean {
    if (this.#waiters.length > 0) this.#enqueue(frame, () => {})
    else this.#append(frame)
    if (this.#backlog <= this.#limit) return true
    if (this.#target.buffered <= this.#limit) this.#wasOverLimit = false // it has drained since
    this.flush() // what the operating system takes at once does not count
    // TLS drains after the tick, so allow twice the limit unless the turn before exceeded it as well
    return this.#backlog <= (this.#wasOverLimit ? this.#limit : 2 * this.#limit)
  }

  /** Writes a frame at the end of the turn, or as soon as there is room, and resolves then. Rejects if the limit leaves no place to wait. */
  offer (frame: Frame): Promise<void> | undefined {
    if (!this.#canWrite(frame)) this.flush()
    if (this.#canWrite(frame)) return void this.#append(frame)
    if (this.#backlog + frame.size > this.#limit) return Promise.reject(new Failure('congested'))
    return this.#waitForRoom(frame)
  }

  /** Resolves once there is room for any frame; undefined if there is. Rejects if the connection ends first. */
  room (): Promise<void> | undefined {
    if (!this.#canWrite()) this.flush()
    return this.#canWrite() ? undefined : this.#waitForRoom()
  }

  /** Frames wait for room. */
  get isBehind (): boolean {
    return this.#waitingBytes > 0
  }

  inspect (): void {
    this.#readBuffered()
    this.#wasOverLimit = this.#buffered > this.#limit
  }

  flush (): void {
    const pending = this.#pending
    this.#pending = undefined
    if (pending) this.#target.send(pending)
    this.#readBuffered()
  }

  /** The connection has ended. */
  end (): void {
    this.flush()
    for (const { settle } of this.#waiters) settle(new Failure('dropped'))
    this.#waiters = noWaiters
  }

  /** Sends may fill half; the rest is for calls and broadcasts. A letter may be larger than that half, and waits until a quarter is filled. */
  #hasRoom (frame: Frame | undefined): boolean {
    const unsent = this.#unsent
    if (!frame) return unsent <= this.#limit / 4
    return unsent === 0 || (unsent <= this.#limit / 2 && unsent + frame.size <= this.#limit)
  }

  #canWrite (frame?: Frame): boolean {
    return this.#waiters.length === 0 && this.#hasRoom(frame)
  }

  get #unsent (): number {
    return this.#buffered + (this.#pending?.size ?? 0)
  }

  get #backlog (): number {
    return this.#unsent + this.#waitingBytes
  }

  #readBuffered (): void {
    this.#buffered = this.#target.buffered
  }

  #append (frame: Frame): void {
    if (this.#pending) {
      this.#pending = this.#pending.followedBy(frame)
    } else {
      this.#pending = frame
      this.#scheduler.schedule(this)
    }
  }

  #waitForRoom (frame?: Frame): Promise<void> {
    return new Promise((resolve, reject) => {
      this.#enqueue(frame, failure => failure ? reject(failure) : resolve())
    })
  }

  #enqueue (frame: Frame | undefined, settle: Waiter['settle']): void {
    const isFirst = this.#waiters.length === 0
    if (isFirst) this.#waiters = []
    this.#waiters.push({ frame, settle })
    this.#waitingBytes += frame?.size ?? 0
    if (!isFirst) return
    this.flush()
    this.#target.onDrain(() => this.#drain())
  }

  #drain (): void {
    let served = 0
    this.#readBuffered()
    for (const { frame, settle } of this.#waiters) {
      if (!this.#hasRoom(frame)) break
      if (frame) this.#target.send(frame)
      this.#readBuffered()
      this.#waitingBytes -= frame?.size ?? 0
      settle()
      served++
    }
    this.#waiters = this.#waiters.slice(served)
    if (this.#waiters.length > 0) this.#target.onDrain(() => this.#drain())
  }
}

/** Shared by all connections where nothing waits, which are most. */
const noWaiters: Waiter[] = []
