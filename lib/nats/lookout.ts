/** When to look at first, and then. */
const FIRST = 100
const NEXT = 1_000

/** Looks time and again whether whoever was asked is still there to answer: a node may die, and nobody says so. */
export class Lookout {
  /** Resolves when he is not. */
  readonly lost: Promise<'lost'>
  readonly #isThere: () => Promise<boolean>
  #lose!: (word: 'lost') => void
  #timer: NodeJS.Timeout
  #ended = false

  constructor (isThere: () => Promise<boolean>) {
    this.#isThere = isThere
    this.lost = new Promise(resolve => { this.#lose = resolve })
    this.#timer = this.#lookIn(FIRST)
  }

  end (): void {
    this.#ended = true
    clearTimeout(this.#timer)
  }

  #lookIn (milliseconds: number): NodeJS.Timeout {
    return setTimeout(() => void this.#look(), milliseconds).unref()
  }

  async #look (): Promise<void> {
    const isThere = await this.#isThere()
    if (this.#ended) return
    if (isThere) this.#timer = this.#lookIn(NEXT)
    else this.#lose('lost')
  }
}
