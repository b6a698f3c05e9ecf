/** The first letter of a device: no earlier letter exists to compare with. */
export class FirstLetter {
  /** Puts in progress. */
  puts = 0
  /** Number of first letters put so far. */
  version = 0
  #appending: Promise<unknown> | undefined

  /** Appends one letter at a time. Resolves with undefined if another first letter was appended since this version; then read again. */
  async once<T> (version: number, append: () => Promise<T>): Promise<T | undefined> {
    if (this.#appending) return void await this.#appending.catch(() => {})
    if (version !== this.version) return undefined
    const appending = this.#appending = append()
    try {
      return await appending
    } finally {
      this.#appending = undefined
      this.version++
    }
  }
}

/**
 * Serializes the puts of this node into an empty mailbox. NATS could compare them, but before 2.10.19 a refusal makes the replicas of a stream disagree after
 * the next server failure. Puts of several nodes at the same moment may exceed the limits of the mailbox.
 */
export class FirstLetters {
  readonly #byDevice = new Map<string, FirstLetter>()

  acquire (deviceId: string): FirstLetter {
    const first = this.#byDevice.get(deviceId) ?? new FirstLetter()
    this.#byDevice.set(deviceId, first)
    first.puts++
    return first
  }

  release (deviceId: string): void {
    const first = this.#byDevice.get(deviceId)!
    if (--first.puts === 0) this.#byDevice.delete(deviceId)
  }
}
