import { clock } from './clock.ts'
import type { CloseReason } from '../protocol/errors.ts'

export interface HeartbeatLimits {
  pingInterval: number
  pongTimeout: number
  stallTimeout: number
}

/** What a pulse needs of a connection. */
export interface HeartbeatSocket {
  ping? (): void
  /** Bytes handed over since the start, and those of them that still wait here. */
  readonly sent: number
  readonly buffered: number
  /** What the system has not taken yet of what it was given; bytes that came in. */
  readonly queued?: number | undefined
  readonly received?: number | undefined
}

const JITTER = 0.1

/** Whether one connection lives: pings that are due, pongs that are missing, output that does not move. */
export class Liveness {
  readonly #rhythm: HeartbeatLimits
  #pingAt: number
  #pongBy: number | undefined
  #drained = 0
  #queued = 0
  #received = 0
  #movedAt: number

  constructor (rhythm: HeartbeatLimits, now: number) {
    this.#rhythm = rhythm
    this.#movedAt = now
    this.#pingAt = now + this.#interval()
  }

  /** A ping is out. */
  get isAwaiting (): boolean {
    return this.#pongBy !== undefined
  }

  /** Anything heard proves life. */
  heard (): void {
    this.#pongBy = undefined
  }

  /** `slack` is how much later the next check may come. */
  check (line: HeartbeatSocket, now: number, slack: number): CloseReason | undefined {
    if (this.#isStalled(line, now, slack)) return 'slow'
    if (this.#isMute(line, now)) return 'mute'
    if (now >= this.#pingAt && line.ping) {
      line.ping()
      this.#received = line.received ?? 0
      this.#pingAt = now + this.#interval()
      this.#pongBy ??= now + this.#rhythm.pongTimeout
    }
    return undefined
  }

  #isStalled (line: HeartbeatSocket, now: number, slack: number): boolean {
    const { sent, buffered } = line
    const queued = buffered === 0 ? 0 : line.queued ?? 0
    if (buffered === 0) this.#movedAt = now
    else if (sent - buffered > this.#drained || queued < this.#queued) this.#movedAt = now - slack // or right after the last look
    this.#drained = sent - buffered
    this.#queued = queued
    return now - this.#movedAt + slack > this.#rhythm.stallTimeout
  }

  #isMute (line: HeartbeatSocket, now: number): boolean {
    if (this.#pongBy === undefined) return false
    if ((line.received ?? 0) === this.#received) return now >= this.#pongBy
    this.heard() // the piece of a large message, too
    return false
  }

  #interval (): number {
    return Math.round(this.#rhythm.pingInterval * (1 - JITTER + Math.random() * 2 * JITTER))
  }
}

export interface HeartbeatTarget {
  check (now: number, slack: number): void
}

/** One timer for all connections. */
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
