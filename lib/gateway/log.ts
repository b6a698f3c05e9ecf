import type { FastifyBaseLogger } from 'fastify'

/** The levels that the plugin logs at. */
type LogLevel = 'error' | 'warn' | 'info' | 'debug'

/** The log of the plugin within the application's: each line names the plugin. */
export function pluginLog (log: FastifyBaseLogger, level?: string): FastifyBaseLogger {
  return safeLog(childOf(log, { plugin: 'fastify-devices' }, level))
}

/** A logger of the application may lack `child`, or fail in it. */
function childOf (log: FastifyBaseLogger, fields: Record<string, unknown>, level?: string): FastifyBaseLogger {
  try {
    return log.child(fields, level === undefined ? undefined : { level })
  } catch {
    return log
  }
}

/** The same log, but it never throws: an error that cannot be serialized is replaced by one that says so. */
export function safeLog (log: FastifyBaseLogger): FastifyBaseLogger {
  return new SafeLog(log) as Pick<FastifyBaseLogger, LogLevel | 'child'> as FastifyBaseLogger
}

class SafeLog implements Record<LogLevel, (fields: object, message?: string) => void> {
  readonly #log: FastifyBaseLogger

  constructor (log: FastifyBaseLogger) {
    this.#log = log
  }

  error (fields: object, message?: string): void {
    this.#write('error', fields, message)
  }

  warn (fields: object, message?: string): void {
    this.#write('warn', fields, message)
  }

  info (fields: object, message?: string): void {
    this.#write('info', fields, message)
  }

  debug (fields: object, message?: string): void {
    this.#write('debug', fields, message)
  }

  /** For the application: a logger of its own, with all its levels. */
  child (fields: Record<string, unknown>): FastifyBaseLogger {
    return childOf(this.#log, fields)
  }

  #write (level: LogLevel, fields: object, message?: string): void {
    try {
      this.#log[level](fields, message)
    } catch {
      this.#writeWithoutError(level, fields, message)
    }
  }

  #writeWithoutError (level: LogLevel, fields: object, message?: string): void {
    try {
      this.#log[level]({ ...fields, err: new Error('What was thrown cannot be read') }, message)
    } catch {} // the log itself fails: there is nowhere left to report it
  }
}

/** Logs when the link to the other nodes goes down and comes back. The first connection after a start without a link is not a warning. */
export function clusterLinkLogger (log: FastifyBaseLogger, node: string): (up: boolean) => void {
  let wasDown = false
  return up => {
    if (!up) log.warn({ node }, 'cluster link down')
    else if (wasDown) log.warn({ node }, 'cluster link restored')
    else log.info({ node }, 'cluster link up')
    wasDown = !up
  }
}
