/** Maximum number of keys in a block. A larger one is split. */
const BLOCK_SIZE = 512

/** Unique strings in the order of `<`, in sorted blocks. Adding, deleting and finding the start of a page take a binary search. */
export class SortedIndex {
  /** No block is empty. */
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

  /** The keys behind this one that begin with the prefix. The index must not change during the iteration. */
  * after (key: string, prefix = ''): IterableIterator<string> {
    const start = key < prefix ? prefix : key
    const first = this.#blockOf(start)
    for (let at = first; at < this.#blocks.length; at++) {
      const block = this.#blocks[at]!
      let place = at === first ? placeIn(block, start) : 0
      if (block[place] === key) place++
      for (; place < block.length; place++) {
        if (!block[place]!.startsWith(prefix)) return
        yield block[place]!
      }
    }
  }

  /** The first block whose last key is not before this one. */
  #blockOf (key: string): number {
    return search(this.#blocks.length, at => this.#blocks[at]!.at(-1)! < key)
  }

  /** Joins two small neighbours, so that many deletions do not leave many small blocks. */
  #join (at: number): void {
    const [left, right] = [this.#blocks[at], this.#blocks[at + 1]]
    if (left && right && left.length + right.length <= BLOCK_SIZE / 2) this.#blocks.splice(at, 2, left.concat(right))
  }
}

/** The index of the key, or where it would be inserted. */
function placeIn (block: string[], key: string): number {
  return search(block.length, at => block[at]! < key)
}

/** Binary search: the first index for which the condition does not hold. */
function search (length: number, isBefore: (index: number) => boolean): number {
  let [low, high] = [0, length]
  while (low < high) {
    const middle = (low + high) >>> 1
    if (isBefore(middle)) low = middle + 1
    else high = middle
  }
  return low
}
