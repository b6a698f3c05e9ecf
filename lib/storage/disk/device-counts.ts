import { Failure } from '../../protocol/errors.ts'
import type { MailboxLimits } from '../mailbox.ts'

/** The parts of a letter that are counted. */
export interface CountedLetter {
  readonly id: string
  readonly size: number
  readonly collapse?: string | undefined
}

interface DeviceCount {
  letters: number
  bytes: number
  /** Letter ids by their collapse keys. */
  collapsible: Map<string, string> | undefined
}

/** Number and size of the waiting letters of each device, and their collapse keys. */
export class DeviceCounts {
  readonly #counts = new Map<string, DeviceCount>()
  #size = 0

  /** Number of letters that wait, over all devices. */
  get size (): number {
    return this.#size
  }

  has (deviceId: string): boolean {
    return this.#counts.has(deviceId)
  }

  /** Number of letters that wait for a device. */
  waiting (deviceId: string): number {
    return this.#counts.get(deviceId)?.letters ?? 0
  }

  /** The id of the letter that a new one with this collapse key replaces. */
  collapsible (deviceId: string, collapse: string): string | undefined {
    return this.#counts.get(deviceId)?.collapsible?.get(collapse)
  }

  /** Throws if a letter of this size would exceed the limits, not counting the letter that it replaces. */
  check (deviceId: string, size: number, limits: MailboxLimits, replaced: CountedLetter | undefined): void {
    const { letters, bytes } = this.#counts.get(deviceId) ?? { letters: 0, bytes: 0 }
    const freed = replaced ? { letters: 1, bytes: replaced.size } : { letters: 0, bytes: 0 }
    if (letters - freed.letters >= limits.letters || bytes - freed.bytes + size > limits.bytes) throw new Failure('mailbox-full')
  }

  add (deviceId: string, { id, size, collapse }: CountedLetter): void {
    let count = this.#counts.get(deviceId)
    if (!count) this.#counts.set(deviceId, count = { letters: 0, bytes: 0, collapsible: undefined })
    count.letters++
    this.#size++
    count.bytes += size
    if (collapse !== undefined) (count.collapsible ??= new Map()).set(collapse, id)
  }

  remove (deviceId: string, { id, size, collapse }: CountedLetter): void {
    const count = this.#counts.get(deviceId)
    if (!count) return // a letter whose place was lost was not counted
    count.letters--
    this.#size--
    count.bytes -= size
    if (collapse !== undefined && count.collapsible?.get(collapse) === id) count.collapsible.delete(collapse)
    if (count.letters === 0) this.#counts.delete(deviceId)
  }

  clear (): void {
    this.#counts.clear()
    this.#size = 0
  }
}
