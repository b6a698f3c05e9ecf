/** Resolves as the promise does, but does not wait for it any more once a signal arrives. */
export async function interruptible<Result> (signal: AbortSignal, promise: Promise<Result>): Promise<Result> {
  let interrupt!: () => void
  const interruption = new Promise<never>((_resolve, reject) => { interrupt = () => reject(signal.reason) })
  if (signal.aborted) interrupt()
  signal.addEventListener('abort', interrupt)
  try {
    return await Promise.race([promise, interruption])
  } finally {
    signal.removeEventListener('abort', interrupt)
  }
}
