import type { Waiting } from './schema.ts'

interface DeviceLetters {
  /** All waiting letters from this position on are cached. */
  from: number
  /** By id, in order. */
  readonly letters: Map<string, Waiting>
}

export interface LetterCacheLimits {
  letters: number
  bytes: number
}

/** Caches the newest letters, so that a connected device gets them without a disk read. */
export class LetterCache {
  readonly #limits: LetterCacheLimits
  readonly #byDevice = new Map<string, DeviceLetters>()
  /** The device of each letter, oldest letter first. */
  readonly #devices = new Map<Waiting, string>()
  #bytes = 0

  constructor (limits: LetterCacheLimits) {
    this.#limits = limits
  }

  /** `isOnly`: no other letter waits for the device. */
  add (deviceId: string, letter: Waiting, isOnly: boolean): void {
    let cached = this.#byDevice.get(deviceId)
    if (!cached) this.#byDevice.set(deviceId, cached = { from: isOnly ? 0 : letter.position, letters: new Map() })
    cached.letters.set(letter.id, letter)
    this.#devices.set(letter, deviceId)
    this.#bytes += letter.size
    while (this.#devices.size > this.#limits.letters || this.#bytes > this.#limits.bytes) this.#removeOldest()
  }

  remove (deviceId: string, letterId: string): void {
    const cached = this.#byDevice.get(deviceId)
    const letter = cached?.letters.get(letterId)
    if (!cached || !letter) return
    cached.letters.delete(letterId)
    if (cached.letters.size === 0) this.#byDevice.delete(deviceId)
    this.#devices.delete(letter)
    this.#bytes -= letter.size
  }

  get (deviceId: string, letterId: string): Waiting | undefined {
    return this.#byDevice.get(deviceId)?.letters.get(letterId)
  }

  /** Drops the letters of a device, because they are no longer all that waits from some position on. */
  forget (deviceId: string): void {
    for (const id of this.#byDevice.get(deviceId)?.letters.keys() ?? []) this.remove(deviceId, id)
  }

  /** All letters that wait behind a position; undefined if some of them may be on disk only. */
  behind (deviceId: string, position: number): Waiting[] | undefined {
    const cached = this.#byDevice.get(deviceId)
    if (!cached || position + 1 < cached.from) return undefined
    return [...cached.letters.values()].filter(letter => letter.position > position)
  }

  #removeOldest (): void {
    const [letter, deviceId] = this.#devices.entries().next().value!
    this.#byDevice.get(deviceId)!.from = letter.position + 1
    this.remove(deviceId, letter.id)
  }
}
