import { decodeLetter, parse, type LetterEntry, type StoredLetterRecord } from './letter-format.ts'
import type { StreamStore } from './stream-store.ts'
import { token } from './subjects.ts'

/** Reads the letters of a device in order. */
export class LetterReader {
  readonly #letters: StreamStore
  readonly #entries: StreamStore

  constructor (letters: StreamStore, entries: StreamStore) {
    this.#letters = letters
    this.#entries = entries
  }

  /** The number of letters that wait. */
  async count (deviceId: string): Promise<number> {
    const [count = 0] = Object.values(await this.#letters.subjects(token(deviceId)))
    return count
  }

  /** The letters behind a position. */
  async * after (deviceId: string, position: number): AsyncGenerator<StoredLetterRecord> {
    // limited by the count, because a search without a result costs NATS more than one that finds a letter
    const count = await this.count(deviceId)
    const found = new Set<number>()
    let last = position
    while (found.size < count) {
      const stored = await this.#letters.next(token(deviceId), last + 1)
      const next = stored && decodeLetter(stored)
      const mayHideOthers = next ? next.header.isAfterHidden : position === 0 || found.size === 0
      const hidden = mayHideOthers ? await this.#hidden(deviceId, { after: position, before: stored?.seq, found }) : []
      for (const one of next ? [...hidden, next] : hidden) {
        found.add(one.letter.position)
        yield one
      }
      if (!stored) return
      last = stored.seq
    }
  }

  /** Up to NATS 2.9 a letter may not be found by its subject once its neighbours are erased. Its entry is found. */
  async #hidden (deviceId: string, { after, before = Infinity, found }: { after: number, before: number | undefined, found: Set<number> }): Promise<StoredLetterRecord[]> {
    const subjects = Object.keys(await this.#entries.subjects(`${token(deviceId)}.*`))
    const entries = await Promise.all(subjects.map(subject => this.#entries.last(subject.split('.').slice(-2).join('.'))))
    const positions = entries.filter(entry => entry !== undefined).map(entry => parse<LetterEntry>(entry).position)
    const missing = positions.filter(position => position > after && position < before && !found.has(position))
    const letters = await Promise.all(missing.toSorted((one, other) => one - other).map(position => this.#letters.at(position)))
    return letters.filter(stored => stored !== undefined).map(decodeLetter)
  }
}
