import { clock } from './clock.ts'
import type { CloseReason } from '../protocol/errors.ts'

export interface HeartbeatLimits {
  pingInterval: number
  pongTimeout: number
  stallTimeout: number
}

/** As much of a socket as the heartbeat needs. */
export interface HeartbeatSocket {
  ping? (): void
  /** Bytes written since the start. */
  readonly sent: number
  /** Bytes of those that wait in this process. */
  readonly buffered: number
  /** Bytes that the operating system has not taken yet of the write in progress. */
  readonly queued?: number | undefined
  /** Bytes received since the start. */
  readonly received?: number | undefined
}

const JITTER = 0.1

/** Detects one dead connection: sends pings, misses pongs, and notices output that makes no progress. */
export class Liveness {
  readonly #limits: HeartbeatLimits
  #pingAt: number
  #pongDeadline: number | undefined
  #written = 0
  #queued = 0
  #received = 0
  #progressAt: number

  constructor (limits: HeartbeatLimits, now: number) {
    this.#limits = limits
    this.#progressAt = now
    this.#pingAt = now + this.#interval()
  }

  /** A ping has not been answered yet. */
  get isAwaiting (): boolean {
    return this.#pongDeadline !== undefined
  }

  /** Milliseconds since the ping that has not been answered yet. */
  sincePing (now: number): number {
    return now - (this.#pongDeadline! - this.#limits.pongTimeout)
  }

  /** Any message proves life. */
  heard (): void {
    this.#pongDeadline = undefined
  }

  /** Returns why the connection must end, if it must. `slack` is the time until the next check, so that a limit is not found out too late. */
  check (socket: HeartbeatSocket, now: number, slack: number): CloseReason | undefined {
    if (this.#isStalled(socket, now, slack)) return 'slow'
    if (this.#missesPong(socket, now)) return 'no-pong'
    if (now >= this.#pingAt && socket.ping) {
      socket.ping()
      this.#received = socket.received ?? 0
      this.#pingAt = now + this.#interval()
      this.#pongDeadline ??= now + this.#limits.pongTimeout
    }
    return undefined
  }

  #isStalled (socket: HeartbeatSocket, now: number, slack: number): boolean {
    const { sent, buffered } = socket
    const queued = buffered === 0 ? 0 : socket.queued ?? 0
    if (buffered === 0) this.#progressAt = now
    else if (sent - buffered > this.#written || queued < this.#queued) this.#progressAt = now - slack // it may have been right after the last check
    this.#written = sent - buffered
    this.#queued = queued
    return now - this.#progressAt + slack > this.#limits.stallTimeout
  }

  #missesPong (socket: HeartbeatSocket, now: number): boolean {
    if (this.#pongDeadline === undefined) return false
    if ((socket.received ?? 0) === this.#received) return now >= this.#pongDeadline
    this.heard() // bytes prove life before a large message is complete
    return false
  }

  #interval (): number {
    return Math.round(this.#limits.pingInterval * (1 - JITTER + Math.random() * 2 * JITTER))
  }
}

export interface HeartbeatTarget {
  check (now: number, slack: number): void
}

/** Checks all connections from one timer. */
export class Heartbeat {
  readonly #timer: NodeJS.Timeout

  constructor (connections: Iterable<HeartbeatTarget>, { pingInterval, pongTimeout, stallTimeout }: HeartbeatLimits) {
    const tick = Math.max(10, Math.min(500, pingInterval / 10, pongTimeout / 10, stallTimeout / 10))
    this.#timer = setInterval(() => {
      const now = clock()
      for (const connection of connections) connection.check(now, tick)
    }, tick)
    this.#timer.unref()
  }

  stop (): void {
    clearInterval(this.#timer)
  }
}
