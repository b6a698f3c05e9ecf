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
