/** The first letter of a device, for which there is no earlier one to compare with. */
export class FirstLetter {
  /** Puts under way. */
  puts = 0
  /** Counts the first letters that were put. */
  version = 0
  #appending: Promise<unknown> | undefined

  /** One at a time. Undefined: another first letter was put since this version, or is being put; look again. */
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
 * Two puts of one node into an empty mailbox, one after the other: NATS could compare them, but before 2.10.19 a refusal makes the replicas
 * of a stream disagree after the next failure of a server. Puts of several nodes at the same moment may exceed the limits of the mailbox.
 */
export class FirstLetters {
  readonly #devices = new Map<string, FirstLetter>()

  /** To be given back with `done`. */
  of (deviceId: string): FirstLetter {
    const first = this.#devices.get(deviceId) ?? new FirstLetter()
    this.#devices.set(deviceId, first)
    first.puts++
    return first
  }

  done (deviceId: string): void {
    const first = this.#devices.get(deviceId)!
    if (--first.puts === 0) this.#devices.delete(deviceId)
  }
}
