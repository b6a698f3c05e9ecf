import type { FastifyBaseLogger } from 'fastify'

/** Those that are used here. */
type LogLevel = 'error' | 'warn' | 'info' | 'debug'

/** The same log, except that it never throws: an error that it cannot read is replaced by one that says so. */
export function safeLog (log: FastifyBaseLogger): FastifyBaseLogger {
  return new SafeLog(log) as Pick<FastifyBaseLogger, LogLevel> as FastifyBaseLogger
}

class SafeLog implements Record<LogLevel, (fields: object, words?: string) => void> {
  readonly #log: FastifyBaseLogger

  constructor (log: FastifyBaseLogger) {
    this.#log = log
  }

  error (fields: object, words?: string): void {
    this.#write('error', fields, words)
  }

  warn (fields: object, words?: string): void {
    this.#write('warn', fields, words)
  }

  info (fields: object, words?: string): void {
    this.#write('info', fields, words)
  }

  debug (fields: object, words?: string): void {
    this.#write('debug', fields, words)
  }

  #write (level: LogLevel, fields: object, words?: string): void {
    try {
      this.#log[level](fields, words)
    } catch {
      this.#writeWithout(level, fields, words)
    }
  }

  #writeWithout (level: LogLevel, fields: object, words?: string): void {
    try {
      this.#log[level]({ ...fields, err: new Error('What was thrown cannot be read') }, words)
    } catch {} // the log itself fails, and there is nobody else to tell
  }
}

/** Logs that the other nodes are lost and found again. To reach them for the first time, after a start without them, is no reason to warn. */
export function clusterLinkLogger (log: FastifyBaseLogger, node: string): (up: boolean) => void {
  let wasLost = false
  return up => {
    if (!up) log.warn({ node }, 'the other nodes cannot be reached')
    else if (wasLost) log.warn({ node }, 'the other nodes can be reached again')
    else log.info({ node }, 'the other nodes can be reached')
    wasLost = !up
  }
}
