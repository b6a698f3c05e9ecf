import { Failure, type Detail } from '../protocol/errors.ts'
import { sizeOf, type Ending, type ExpiredLetter, type StoredLetter, type Mailbox, type Receipt } from './mailbox.ts'
import { checkOptionNames } from '../protocol/option-names.ts'

export interface MemoryMailboxOptions {
  /**
   * Maximum size of all waiting letters together, in bytes; each letter counts 256 bytes in addition to its body.
   * @default 268_435_456
   */
  maxBytes?: number
  /**
   * Maximum number of receipts of ended letters that are kept; the oldest is dropped first.
   * @default 10_000
   */
  maxReceipts?: number
}

interface WaitingLetter extends StoredLetter {
  readonly deviceId: string
  readonly size: number
  readonly at: number
  attempts: number
}

/** The waiting letters of one device, in order, and their size. */
class DeviceMailbox {
  readonly letters = new Map<string, WaitingLetter>()
  bytes = 0
}

/** Approximate memory of a letter besides its body. */
const LETTER_OVERHEAD_BYTES = 256
const MAX_SWEPT_LETTERS = 1_000

/** Keeps letters in memory, until the process ends. */
export function memoryMailbox (options: MemoryMailboxOptions = {}): Mailbox {
  checkOptionNames('memoryMailbox()', options, { maxBytes: true, maxReceipts: true })
  const { maxBytes = 268_435_456, maxReceipts = 10_000 } = options
  const mailboxes = new Map<string, DeviceMailbox>()
  const receipts = new Map<string, Receipt>()
  let bytes = 0
  let count = 0
  /** Waiting letters by the second in which they expire. */
  const dueBySecond = new Map<number, Set<WaitingLetter>>()
  let earliest = Infinity
  let position = 0

  function end (letter: WaitingLetter, ending: Ending, device?: Detail): void {
    const { deviceId } = letter
    const mailbox = mailboxes.get(deviceId)!
    mailbox.letters.delete(letter.id)
    mailbox.bytes -= letter.size
    bytes -= letter.size + LETTER_OVERHEAD_BYTES
    count--
    if (mailbox.letters.size === 0) mailboxes.delete(deviceId)
    const second = secondOf(letter.expiresAt)
    const sameSecond = dueBySecond.get(second)!
    sameSecond.delete(letter)
    if (sameSecond.size === 0) dueBySecond.delete(second)

    receipts.set(`${deviceId} ${letter.id}`, { ...receiptOf(letter, ending, Date.now()), ...(device && { device }) })
    if (receipts.size > maxReceipts) receipts.delete(receipts.keys().next().value!)
  }

  function schedule (letter: WaitingLetter): void {
    const second = secondOf(letter.expiresAt)
    earliest = Math.min(earliest, second)
    dueBySecond.set(second, (dueBySecond.get(second) ?? new Set()).add(letter))
  }

  function receiptFor (deviceId: string, letterId: string): Receipt | undefined {
    const waiting = mailboxes.get(deviceId)?.letters.get(letterId)
    return waiting ? receiptOf(waiting, 'queued', waiting.at) : receipts.get(`${deviceId} ${letterId}`)
  }

  return {
    shared: false,

    async put (deviceId, letter, limits) {
      const first = receiptFor(deviceId, letter.id)
      if (first) return { receipt: first, fresh: false }

      const mailbox = mailboxes.get(deviceId) ?? new DeviceMailbox()
      const replaced = letter.collapse === undefined ? undefined : [...mailbox.letters.values()].find(({ collapse }) => collapse === letter.collapse)
      const size = sizeOf(letter.body)
      const freed = replaced ? { letters: 1, bytes: replaced.size, all: replaced.size + LETTER_OVERHEAD_BYTES } : { letters: 0, bytes: 0, all: 0 }
      if (mailbox.letters.size - freed.letters >= limits.letters || mailbox.bytes - freed.bytes + size > limits.bytes) throw new Failure('mailbox-full')
      if (bytes - freed.all + size + LETTER_OVERHEAD_BYTES > maxBytes) throw new Failure('store-full')

      if (replaced) end(replaced, 'replaced')
      const waiting: WaitingLetter = { ...letter, deviceId, position: ++position, size, at: Date.now(), attempts: 0 }
      mailboxes.set(deviceId, mailbox)
      mailbox.letters.set(letter.id, waiting)
      mailbox.bytes += size
      bytes += size + LETTER_OVERHEAD_BYTES
      count++
      schedule(waiting)
      return { receipt: receiptOf(waiting, 'queued', waiting.at), fresh: true, ...(replaced && { replaced: receiptOf(replaced, 'replaced', waiting.at) }) }
    },

    async * letters (deviceId, after = 0) {
      for (const letter of mailboxes.get(deviceId)?.letters.values() ?? []) {
        if (letter.position > after) yield letter
      }
    },

    async waiting (deviceId) {
      return mailboxes.get(deviceId)?.letters.size ?? 0
    },

    async size () {
      return count
    },

    async settle (deviceId, letterId, ending, device) {
      const letter = mailboxes.get(deviceId)?.letters.get(letterId)
      if (letter) end(letter, ending, device)
      return letter !== undefined
    },

    async receipt (deviceId, letterId) {
      return receiptFor(deviceId, letterId)
    },

    async addAttempt (deviceId, letterId) {
      const letter = mailboxes.get(deviceId)?.letters.get(letterId)
      return letter ? ++letter.attempts : 0
    },

    async sweep (now) {
      const expired: ExpiredLetter[] = []
      if (secondOf(now) < earliest) return expired
      earliest = Infinity
      for (const [second, letters] of dueBySecond) {
        earliest = Math.min(earliest, second)
        if (second > secondOf(now)) continue
        for (const letter of letters) {
          if (expired.length === MAX_SWEPT_LETTERS) return expired
          if (letter.expiresAt > now) continue
          end(letter, 'expired')
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

function receiptOf ({ body, deviceId, position, attempts, context, ...letter }: WaitingLetter, status: Receipt['status'], at: number): Receipt {
  return { ...letter, status, at }
}
