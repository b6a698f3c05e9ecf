import { Failure } from '../../protocol/errors.ts'
import type { MailboxLimits } from '../mailbox.ts'

/** As much of a letter as its box counts. */
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

/** How much waits for each device, and what may be replaced. */
export class DeviceCounts {
  readonly #boxes = new Map<string, DeviceCount>()

  has (deviceId: string): boolean {
    return this.#boxes.has(deviceId)
  }

  /** How many letters wait for a device. */
  waiting (deviceId: string): number {
    return this.#boxes.get(deviceId)?.letters ?? 0
  }

  /** The id of the letter that a new one with this collapse key replaces. */
  collapsible (deviceId: string, collapse: string): string | undefined {
    return this.#boxes.get(deviceId)?.collapsible?.get(collapse)
  }

  /** Throws where a letter of this size has no room, once the one that it replaces is gone. */
  check (deviceId: string, size: number, caps: MailboxLimits, replaced: CountedLetter | undefined): void {
    const { letters, bytes } = this.#boxes.get(deviceId) ?? { letters: 0, bytes: 0 }
    const freed = replaced ? { letters: 1, bytes: replaced.size } : { letters: 0, bytes: 0 }
    if (letters - freed.letters >= caps.letters || bytes - freed.bytes + size > caps.bytes) throw new Failure('mailbox-full')
  }

  add (deviceId: string, { id, size, collapse }: CountedLetter): void {
    let box = this.#boxes.get(deviceId)
    if (!box) this.#boxes.set(deviceId, box = { letters: 0, bytes: 0, collapsible: undefined })
    box.letters++
    box.bytes += size
    if (collapse !== undefined) (box.collapsible ??= new Map()).set(collapse, id)
  }

  remove (deviceId: string, { id, size, collapse }: CountedLetter): void {
    const box = this.#boxes.get(deviceId)
    if (!box) return // its place was lost, so it was never counted
    box.letters--
    box.bytes -= size
    if (collapse !== undefined && box.collapsible?.get(collapse) === id) box.collapsible.delete(collapse)
    if (box.letters === 0) this.#boxes.delete(deviceId)
  }

  clear (): void {
    this.#boxes.clear()
  }
}
