/** Keys in a block. One more splits it in two. */
const BLOCK_SIZE = 512

/** Unique strings in the order of `<`, kept in sorted blocks. To add, to delete and to find where a page begins takes a binary search. */
export class SortedIndex {
  /** None of them is empty. */
  readonly #blocks: string[][] = []

  add (key: string): void {
    const at = Math.min(this.#blockOf(key), this.#blocks.length - 1)
    const block = this.#blocks[at]
    if (!block) return void this.#blocks.push([key])
    const place = placeIn(block, key)
    if (block[place] === key) return
    block.splice(place, 0, key)
    if (block.length > BLOCK_SIZE) this.#blocks.splice(at + 1, 0, block.splice(BLOCK_SIZE / 2))
  }

  delete (key: string): void {
    const at = this.#blockOf(key)
    const block = this.#blocks[at]
    if (!block) return
    const place = placeIn(block, key)
    if (block[place] !== key) return
    block.splice(place, 1)
    if (block.length === 0) this.#blocks.splice(at, 1)
    else for (const left of [at, at - 1]) this.#join(left)
  }

  /** The keys behind this one. Nothing may be added or deleted meanwhile. */
  * after (key: string): IterableIterator<string> {
    const first = this.#blockOf(key)
    for (let at = first; at < this.#blocks.length; at++) {
      const block = this.#blocks[at]!
      let place = at === first ? placeIn(block, key) : 0
      if (block[place] === key) place++
      for (; place < block.length; place++) yield block[place]!
    }
  }

  /** The first block that ends with this key or behind it. */
  #blockOf (key: string): number {
    return search(this.#blocks.length, at => this.#blocks[at]!.at(-1)! < key)
  }

  /** Two small neighbours become one, so that many deletions do not leave many small blocks. */
  #join (at: number): void {
    const [left, right] = [this.#blocks[at], this.#blocks[at + 1]]
    if (left && right && left.length + right.length <= BLOCK_SIZE / 2) this.#blocks.splice(at, 2, left.concat(right))
  }
}

/** Where the key is, or would be. */
function placeIn (block: string[], key: string): number {
  return search(block.length, at => block[at]! < key)
}

/** The first index for which the condition no longer holds. */
function search (length: number, isBefore: (index: number) => boolean): number {
  let [low, high] = [0, length]
  while (low < high) {
    const middle = (low + high) >>> 1
    if (isBefore(middle)) low = middle + 1
    else high = middle
  }
  return low
}
