import type { FastifyBaseLogger } from 'fastify'

/** Those that are used here. */
type Level = 'error' | 'warn' | 'info' | 'debug'

/** The words of what was thrown. Functions of an application may throw anything, and some of it throws again when it is read. */
export function wordsOf (thrown: unknown): string {
  try {
    return String((thrown as Partial<Error> | undefined)?.message ?? thrown)
  } catch {
    return 'unreadable'
  }
}

/** The same log, except that it never throws: an error that it cannot read is replaced by one that says so. */
export function safeLog (log: FastifyBaseLogger): FastifyBaseLogger {
  return new SafeLog(log) as Pick<FastifyBaseLogger, Level> as FastifyBaseLogger
}

class SafeLog implements Record<Level, (fields: object, words?: string) => void> {
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

  #write (level: Level, fields: object, words?: string): void {
    try {
      this.#log[level](fields, words)
    } catch {
      this.#writeWithout(level, fields, words)
    }
  }

  #writeWithout (level: Level, fields: object, words?: string): void {
    try {
      this.#log[level]({ ...fields, err: new Error('What was thrown cannot be read') }, words)
    } catch {} // the log itself fails, and there is nobody else to tell
  }
}

/** A promise of what a function of the application gives, whatever that is or throws. */
export function promiseOf<T> (work: () => T | PromiseLike<T>): Promise<T> {
  return new Promise(resolve => { resolve(work()) })
}
