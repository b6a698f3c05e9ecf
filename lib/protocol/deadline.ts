/**
 * Settles as `work` does, or rejects with the reason of the controller once that aborts. After `milliseconds` the controller aborts with what
 * `late` returns, so whoever does the work can stop.
 */
export async function withDeadline<T> (work: T | Promise<T>, milliseconds: number, late: () => Error, controller = new AbortController()): Promise<T> {
  const { signal } = controller
  const timer = setTimeout(() => controller.abort(late()), milliseconds)
  const aborted = new Promise<never>((_resolve, reject) => {
    if (signal.aborted) reject(signal.reason as Error) // by the work itself
    signal.addEventListener('abort', () => reject(signal.reason as Error), { once: true })
  })
  try {
    return await Promise.race([work, aborted])
  } finally {
    clearTimeout(timer)
  }
}
