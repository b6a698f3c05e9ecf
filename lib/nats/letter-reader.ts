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

  /** The letters behind a position. Each is read when it is asked for, because letters are settled meanwhile. */
  async * after (deviceId: string, position: number): AsyncGenerator<StoredLetterRecord> {
    // limited by the count, because a search without a result costs NATS more than one that finds a letter
    const count = await this.count(deviceId)
    const found = new Set<number>()
    let last = position
    let hasSearched = false
    while (found.size < count) {
      const stored = await this.#letters.next(token(deviceId), last + 1)
      const next = stored && decodeLetter(stored)
      const mayHideOthers = next ? next.header.isAfterHidden : position === 0 || found.size === 0
      if (mayHideOthers && !hasSearched) {
        hasSearched = true
        for (const hidden of await this.#positions(deviceId)) {
          const letter = hidden > position && hidden < (stored?.seq ?? Infinity) && !found.has(hidden) && await this.#letters.at(hidden)
          if (!letter) continue
          found.add(hidden)
          yield decodeLetter(letter)
        }
        continue
      }
      if (!next) return
      last = next.letter.position
      found.add(last)
      yield next
    }
  }

  /**
   * The positions of all letters of a device, by their entries. Up to NATS 2.9 a letter may not be found by its subject once its neighbours are erased;
   * its entry is.
   */
  async #positions (deviceId: string): Promise<number[]> {
    const subjects = Object.keys(await this.#entries.subjects(`${token(deviceId)}.*`))
    const entries = await Promise.all(subjects.map(subject => this.#entries.last(subject.split('.').slice(-2).join('.'))))
    return entries.filter(entry => entry !== undefined).map(entry => parse<LetterEntry>(entry).position).toSorted((one, other) => one - other)
  }
}
