import { sizeOf, type Kept } from '../mailbox.ts'
import type { Entry } from './records.ts'

/** A letter that waits, and what is known of it. */
export interface Held {
  readonly letter: Kept
  readonly entry: Entry
}

interface Shelf {
  /** All that waits for the device from this position on is here. */
  from: number
  /** By id, in order. */
  readonly letters: Map<string, Held>
}

export interface RecentLimits {
  letters: number
  bytes: number
}

/** The newest letters at hand: a device that is here gets them without a look at the disk. */
export class Recent {
  readonly #limits: RecentLimits
  readonly #shelves = new Map<string, Shelf>()
  /** The device of each, oldest first. */
  readonly #devices = new Map<Held, string>()
  #bytes = 0

  constructor (limits: RecentLimits) {
    this.#limits = limits
  }

  /** `isOnly`: nothing else waits for the device. */
  add (deviceId: string, held: Held, isOnly: boolean): void {
    const { letter } = held
    let shelf = this.#shelves.get(deviceId)
    if (!shelf) this.#shelves.set(deviceId, shelf = { from: isOnly ? 0 : letter.position, letters: new Map() })
    shelf.letters.set(letter.id, held)
    this.#devices.set(held, deviceId)
    this.#bytes += sizeOf(letter.body)
    while (this.#devices.size > this.#limits.letters || this.#bytes > this.#limits.bytes) this.#removeOldest()
  }

  remove (deviceId: string, letterId: string): void {
    const shelf = this.#shelves.get(deviceId)
    const held = shelf?.letters.get(letterId)
    if (!shelf || !held) return
    shelf.letters.delete(letterId)
    if (shelf.letters.size === 0) this.#shelves.delete(deviceId)
    this.#devices.delete(held)
    this.#bytes -= sizeOf(held.letter.body)
  }

  get (deviceId: string, letterId: string): Held | undefined {
    return this.#shelves.get(deviceId)?.letters.get(letterId)
  }

  /** What is here of the device is not all from anywhere on any more. */
  forget (deviceId: string): void {
    for (const id of this.#shelves.get(deviceId)?.letters.keys() ?? []) this.remove(deviceId, id)
  }

  /** All that waits for the device from behind a position; undefined where only the disk knows. */
  behind (deviceId: string, position: number): Kept[] | undefined {
    const shelf = this.#shelves.get(deviceId)
    if (!shelf || position + 1 < shelf.from) return undefined
    return [...shelf.letters.values()].map(({ letter }) => letter).filter(letter => letter.position > position)
  }

  #removeOldest (): void {
    const [{ letter }, deviceId] = this.#devices.entries().next().value!
    this.#shelves.get(deviceId)!.from = letter.position + 1
    this.remove(deviceId, letter.id)
  }
}
