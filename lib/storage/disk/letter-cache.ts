import type { Waiting } from './schema.ts'

interface DeviceLetters {
  /** All that waits for the device from this position on is here. */
  from: number
  /** By id, in order. */
  readonly letters: Map<string, Waiting>
}

export interface LetterCacheLimits {
  letters: number
  bytes: number
}

/** The newest letters at hand: a device that is here gets them without a look at the disk. */
export class LetterCache {
  readonly #limits: LetterCacheLimits
  readonly #shelves = new Map<string, DeviceLetters>()
  /** The device of each, oldest first. */
  readonly #devices = new Map<Waiting, string>()
  #bytes = 0

  constructor (limits: LetterCacheLimits) {
    this.#limits = limits
  }

  /** `isOnly`: nothing else waits for the device. */
  add (deviceId: string, letter: Waiting, isOnly: boolean): void {
    let shelf = this.#shelves.get(deviceId)
    if (!shelf) this.#shelves.set(deviceId, shelf = { from: isOnly ? 0 : letter.position, letters: new Map() })
    shelf.letters.set(letter.id, letter)
    this.#devices.set(letter, deviceId)
    this.#bytes += letter.size
    while (this.#devices.size > this.#limits.letters || this.#bytes > this.#limits.bytes) this.#removeOldest()
  }

  remove (deviceId: string, letterId: string): void {
    const shelf = this.#shelves.get(deviceId)
    const letter = shelf?.letters.get(letterId)
    if (!shelf || !letter) return
    shelf.letters.delete(letterId)
    if (shelf.letters.size === 0) this.#shelves.delete(deviceId)
    this.#devices.delete(letter)
    this.#bytes -= letter.size
  }

  get (deviceId: string, letterId: string): Waiting | undefined {
    return this.#shelves.get(deviceId)?.letters.get(letterId)
  }

  /** What is here of the device is not all from anywhere on any more. */
  forget (deviceId: string): void {
    for (const id of this.#shelves.get(deviceId)?.letters.keys() ?? []) this.remove(deviceId, id)
  }

  /** All that waits for the device from behind a position; undefined where only the disk knows. */
  behind (deviceId: string, position: number): Waiting[] | undefined {
    const shelf = this.#shelves.get(deviceId)
    if (!shelf || position + 1 < shelf.from) return undefined
    return [...shelf.letters.values()].filter(letter => letter.position > position)
  }

  #removeOldest (): void {
    const [letter, deviceId] = this.#devices.entries().next().value!
    this.#shelves.get(deviceId)!.from = letter.position + 1
    this.remove(deviceId, letter.id)
  }
}
