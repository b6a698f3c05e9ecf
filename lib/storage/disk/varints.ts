/** Numbers of seven bits a byte, the lowest first. */
export class Varints {
  at: number
  readonly #bytes: Buffer

  constructor (bytes: Buffer, at = 0) {
    this.#bytes = bytes
    this.at = at
  }

  next (): number {
    let [number, factor] = [0, 1]
    for (;; factor *= 128) {
      const byte = this.#bytes[this.at++] ?? 0
      number += (byte & 127) * factor
      if (byte < 128) return number
    }
  }

  /** Over bytes that come behind their length. */
  skip (): void {
    const length = this.next()
    this.at += length
  }
}

export function varintsOf (...numbers: number[]): number[] {
  const bytes: number[] = []
  for (const number of numbers) {
    let rest = number
    for (; rest >= 128; rest = Math.floor(rest / 128)) bytes.push(rest % 128 | 128)
    bytes.push(rest)
  }
  return bytes
}
