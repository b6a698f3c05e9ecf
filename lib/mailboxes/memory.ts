import { Failure } from '../errors.ts'
import { sizeOf, type Ending, type Kept, type Mailbox, type Receipt } from '../mailbox.ts'
import type { Detail } from '../errors.ts'

export interface MemoryMailboxOptions {
  /** Bytes of all letters together, what each holds besides its body included. */
  maxBytes?: number
  /** Receipts kept of letters that are done with. */
  maxReceipts?: number
}

interface Waiting extends Kept {
  readonly size: number
  readonly at: number
  strikes: number
}

/** The letters of one device, in order, and the bytes they hold. */
class Box {
  readonly letters = new Map<string, Waiting>()
  bytes = 0
}

/** What a letter holds besides its body, about. */
const OVERHEAD = 256

/** Keeps letters as long as the process lives. */
export function memoryMailbox ({ maxBytes = 256 * 1_048_576, maxReceipts = 10_000 }: MemoryMailboxOptions = {}): Mailbox {
  const boxes = new Map<string, Box>()
  const receipts = new Map<string, Receipt>()
  let bytes = 0
  let position = 0
  let nextExpiry = Infinity

  function take (deviceId: string, letter: Waiting, ending: Ending, device?: Detail): void {
    const box = boxes.get(deviceId)!
    box.letters.delete(letter.id)
    box.bytes -= letter.size
    bytes -= letter.size + OVERHEAD
    if (box.letters.size === 0) boxes.delete(deviceId)

    receipts.set(`${deviceId} ${letter.id}`, { ...receiptOf(letter, ending, Date.now()), ...(device && { device }) })
    if (receipts.size > maxReceipts) receipts.delete(receipts.keys().next().value!)
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

      const box = boxes.get(deviceId) ?? new Box()
      const replaced = letter.collapse === undefined ? undefined : [...box.letters.values()].find(({ collapse }) => collapse === letter.collapse)
      const size = sizeOf(letter.body)
      const freed = replaced ? { letters: 1, bytes: replaced.size, all: replaced.size + OVERHEAD } : { letters: 0, bytes: 0, all: 0 }
      if (box.letters.size - freed.letters >= caps.letters || box.bytes - freed.bytes + size > caps.bytes) throw new Failure('mailbox-full')
      if (bytes - freed.all + size + OVERHEAD > maxBytes) throw new Failure('store-full')

      if (replaced) take(deviceId, replaced, 'replaced')
      const waiting: Waiting = { ...letter, position: ++position, size, at: Date.now(), strikes: 0 }
      boxes.set(deviceId, box)
      box.letters.set(letter.id, waiting)
      box.bytes += size
      bytes += size + OVERHEAD
      nextExpiry = Math.min(nextExpiry, letter.expiresAt)
      return { receipt: receiptOf(waiting, 'queued', waiting.at), fresh: true, ...(replaced && { replaced: replaced.id }) }
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
      if (letter) take(deviceId, letter, ending, device)
      return letter !== undefined
    },

    async receipt (deviceId, letterId) {
      return known(deviceId, letterId)
    },

    async strike (deviceId, letterId) {
      const letter = boxes.get(deviceId)?.letters.get(letterId)
      return letter ? ++letter.strikes : 0
    },

    async sweep (now) {
      const expired: Array<{ deviceId: string, letterId: string }> = []
      if (now < nextExpiry) return expired
      nextExpiry = Infinity
      for (const [deviceId, box] of boxes) {
        for (const letter of box.letters.values()) {
          if (letter.expiresAt > now) {
            nextExpiry = Math.min(nextExpiry, letter.expiresAt)
            continue
          }
          take(deviceId, letter, 'expired')
          expired.push({ deviceId, letterId: letter.id })
        }
      }
      return expired
    }
  }
}

function receiptOf ({ body, position, strikes, ...letter }: Waiting, status: Receipt['status'], at: number): Receipt {
  return { ...letter, status, at }
}
