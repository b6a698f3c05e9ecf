import { Failure } from './errors.ts'

/** The message of a thrown value. Never throws: functions of an application may throw anything, even a value that throws when it is read. */
export function describeThrown (thrown: unknown): string {
  try {
    return String((thrown as Partial<Error> | undefined)?.message ?? thrown)
  } catch {
    return 'unreadable'
  }
}

/** Calls a function of the application; whatever it returns or throws becomes a promise. */
export function invoke<T> (work: () => T | PromiseLike<T>): Promise<T> {
  return new Promise(resolve => { resolve(work()) })
}

/**
 * The status of an error that refuses: below 500, or that of a `Failure`. Undefined for anything else, and for an error of which a member throws when it is read,
 * because Fastify could not answer with it.
 */
export function refusalStatusOf (thrown: unknown): number | undefined {
  try {
    if (!(thrown instanceof Error)) return undefined
    const { statusCode = 0 } = { ...thrown, ...inheritedOf(thrown) }
    return Number.isInteger(statusCode) && statusCode >= 400 && statusCode < (thrown instanceof Failure ? 600 : 500) ? statusCode : undefined
  } catch {
    return undefined
  }
}

/** Reads the members that may be inherited, which a spread leaves out. */
function inheritedOf ({ name, message, stack, code, headers, statusCode }: Error & Partial<Failure>): Partial<Failure> {
  return { name, message, stack, code, headers, statusCode } as Partial<Failure>
}
