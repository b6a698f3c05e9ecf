import { Failure, type Detail } from '../protocol/errors.ts'
import { sizeOf, type Ending, type ExpiredLetter, type StoredLetter, type Mailbox, type Receipt } from './mailbox.ts'
import { checkOptionNames } from './option-names.ts'

export interface MemoryMailboxOptions {
  /**
   * Bytes that all waiting letters may take together, 256 for each letter besides its body included.
   * @default 268_435_456
   */
  maxBytes?: number
  /**
   * How many receipts of letters that no longer wait are kept; the oldest is dropped first.
   * @default 10_000
   */
  maxReceipts?: number
}

interface Waiting extends StoredLetter {
  readonly deviceId: string
  readonly size: number
  readonly at: number
  strikes: number
}

/** The letters of one device, in order, and the bytes they hold. */
class DeviceMailbox {
  readonly letters = new Map<string, Waiting>()
  bytes = 0
}

/** What a letter holds besides its body, about. */
const OVERHEAD = 256
const SWEPT_AT_ONCE = 1_000

/** Keeps letters as long as the process lives. */
export function memoryMailbox (options: MemoryMailboxOptions = {}): Mailbox {
  checkOptionNames('memoryMailbox()', options, { maxBytes: true, maxReceipts: true })
  const { maxBytes = 268_435_456, maxReceipts = 10_000 } = options
  const boxes = new Map<string, DeviceMailbox>()
  const receipts = new Map<string, Receipt>()
  let bytes = 0
  /** Letters by the second in which they expire. */
  const due = new Map<number, Set<Waiting>>()
  let earliest = Infinity
  let position = 0

  function take (letter: Waiting, ending: Ending, device?: Detail): void {
    const { deviceId } = letter
    const box = boxes.get(deviceId)!
    box.letters.delete(letter.id)
    box.bytes -= letter.size
    bytes -= letter.size + OVERHEAD
    if (box.letters.size === 0) boxes.delete(deviceId)
    const second = secondOf(letter.expiresAt)
    const others = due.get(second)!
    others.delete(letter)
    if (others.size === 0) due.delete(second)

    receipts.set(`${deviceId} ${letter.id}`, { ...receiptOf(letter, ending, Date.now()), ...(device && { device }) })
    if (receipts.size > maxReceipts) receipts.delete(receipts.keys().next().value!)
  }

  function keepFor (letter: Waiting): void {
    const second = secondOf(letter.expiresAt)
    earliest = Math.min(earliest, second)
    due.set(second, (due.get(second) ?? new Set()).add(letter))
  }

  function known (deviceId: string, letterId: string): Receipt | undefined {
    const waiting = boxes.get(deviceId)?.letters.get(letterId)
    return waiting ? receiptOf(waiting, 'queued', waiting.at) : receipts.get(`${deviceId} ${letterId}`)
  }

  return {
    shared: false,

    async put (deviceId, letter, caps) {
      const first = known(deviceId, letter.id)
      if (first) return { receipt: first, fresh: false }

      const box = boxes.get(deviceId) ?? new DeviceMailbox()
      const replaced = letter.collapse === undefined ? undefined : [...box.letters.values()].find(({ collapse }) => collapse === letter.collapse)
      const size = sizeOf(letter.body)
      const freed = replaced ? { letters: 1, bytes: replaced.size, all: replaced.size + OVERHEAD } : { letters: 0, bytes: 0, all: 0 }
      if (box.letters.size - freed.letters >= caps.letters || box.bytes - freed.bytes + size > caps.bytes) throw new Failure('mailbox-full')
      if (bytes - freed.all + size + OVERHEAD > maxBytes) throw new Failure('store-full')

      if (replaced) take(replaced, 'replaced')
      const waiting: Waiting = { ...letter, deviceId, position: ++position, size, at: Date.now(), strikes: 0 }
      boxes.set(deviceId, box)
      box.letters.set(letter.id, waiting)
      box.bytes += size
      bytes += size + OVERHEAD
      keepFor(waiting)
      return { receipt: receiptOf(waiting, 'queued', waiting.at), fresh: true, ...(replaced && { replaced: receiptOf(replaced, 'replaced', waiting.at) }) }
    },

    async * letters (deviceId, after = 0) {
      for (const letter of boxes.get(deviceId)?.letters.values() ?? []) {
        if (letter.position > after) yield letter
      }
    },

    async waiting (deviceId) {
      return boxes.get(deviceId)?.letters.size ?? 0
    },

    async settle (deviceId, letterId, ending, device) {
      const letter = boxes.get(deviceId)?.letters.get(letterId)
      if (letter) take(letter, ending, device)
      return letter !== undefined
    },

    async receipt (deviceId, letterId) {
      return known(deviceId, letterId)
    },

    async addAttempt (deviceId, letterId) {
      const letter = boxes.get(deviceId)?.letters.get(letterId)
      return letter ? ++letter.strikes : 0
    },

    async sweep (now) {
      const expired: ExpiredLetter[] = []
      if (secondOf(now) < earliest) return expired
      earliest = Infinity
      for (const [second, letters] of due) {
        earliest = Math.min(earliest, second)
        if (second > secondOf(now)) continue
        for (const letter of letters) {
          if (expired.length === SWEPT_AT_ONCE) return expired
          if (letter.expiresAt > now) continue
          take(letter, 'expired')
          expired.push({ deviceId: letter.deviceId, receipt: receiptOf(letter, 'expired', now) })
        }
      }
      return expired
    }
  }
}

function secondOf (time: number): number {
  return Math.floor(time / 1_000)
}

function receiptOf ({ body, deviceId, position, strikes, ...letter }: Waiting, status: Receipt['status'], at: number): Receipt {
  return { ...letter, status, at }
}
