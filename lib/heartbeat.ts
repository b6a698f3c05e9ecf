import type { Goodbye } from './errors.ts'

export interface Rhythm {
  pingInterval: number
  pongTimeout: number
  stallTimeout: number
}

/** What a pulse needs of a connection. */
export interface Line {
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
export class Pulse {
  readonly #rhythm: Rhythm
  #pingAt: number
  #pongBy = Infinity
  #drained = 0
  #queued = 0
  #received = 0
  #movedAt: number

  constructor (rhythm: Rhythm, now: number) {
    this.#rhythm = rhythm
    this.#movedAt = now
    this.#pingAt = now + this.#interval()
  }

  /** A ping is out. */
  get isAwaiting (): boolean {
    return this.#pongBy !== Infinity
  }

  /** Anything heard proves life. */
  heard (): void {
    this.#pongBy = Infinity
  }

  /** `slack` is how much later the next check may come. */
  check (line: Line, now: number, slack: number): Goodbye | undefined {
    const drained = line.sent - line.buffered
    const { queued = 0, received = 0 } = line
    if (line.buffered === 0) this.#movedAt = now
    else if (drained > this.#drained || queued < this.#queued) this.#movedAt = now - slack // or right after the last look
    if (received > this.#received) this.heard() // the piece of a large message, too
    this.#drained = drained
    this.#queued = queued
    this.#received = received
    if (now - this.#movedAt + slack > this.#rhythm.stallTimeout) return 'slow'
    if (now >= this.#pongBy) return 'mute'
    if (now >= this.#pingAt && line.ping) {
      line.ping()
      this.#pingAt = now + this.#interval()
      this.#pongBy = Math.min(this.#pongBy, now + this.#rhythm.pongTimeout)
    }
    return undefined
  }

  #interval (): number {
    return this.#rhythm.pingInterval * (1 - JITTER + Math.random() * 2 * JITTER)
  }
}

export interface Beating {
  check (now: number, slack: number): void
}

/** One timer for all connections. */
export class Heartbeat {
  readonly #timer: NodeJS.Timeout

  constructor (connections: Iterable<Beating>, { pingInterval, pongTimeout, stallTimeout }: Rhythm) {
    const tick = Math.max(10, Math.min(500, pingInterval / 10, pongTimeout / 10, stallTimeout / 10))
    this.#timer = setInterval(() => {
      const now = performance.now() // nobody sets this clock
      for (const connection of connections) connection.check(now, tick)
    }, tick)
    this.#timer.unref()
  }

  stop (): void {
    clearInterval(this.#timer)
  }
}
