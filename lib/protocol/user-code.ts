/** The words of what was thrown. Functions of an application may throw anything, and some of it throws again when it is read. */
export function describeThrown (thrown: unknown): string {
  try {
    return String((thrown as Partial<Error> | undefined)?.message ?? thrown)
  } catch {
    return 'unreadable'
  }
}

/** A promise of what a function of the application gives, whatever that is or throws. */
export function invoke<T> (work: () => T | PromiseLike<T>): Promise<T> {
  return new Promise(resolve => { resolve(work()) })
}
