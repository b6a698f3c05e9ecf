/** When to look at first, and then. */
const FIRST = 100
const NEXT = 1_000
/** So many looks in a row may stay without an answer before the owner counts as held still. */
const SILENT_LOOKS = 2

/** What a look finds: the owner works on the request, it does not, or it says nothing. */
export type Look = 'there' | 'lost' | 'silent'

/** Looks time and again whether whoever was asked is still there to answer: a node may die, and nobody says so. */
export class Lookout {
  /** Resolves when it is not, or, where silence counts, when it has said nothing for too long. */
  readonly ended: Promise<'lost' | 'silent'>
  readonly #look: () => Promise<Look>
  readonly #mayBeSilent: boolean
  #end!: (look: 'lost' | 'silent') => void
  #timer: NodeJS.Timeout
  #silent = 0
  #isOver = false

  constructor (look: () => Promise<Look>, { mayBeSilent }: { mayBeSilent: boolean }) {
    this.#look = look
    this.#mayBeSilent = mayBeSilent
    this.ended = new Promise(resolve => { this.#end = resolve })
    this.#timer = this.#lookIn(FIRST)
  }

  stop (): void {
    this.#isOver = true
    clearTimeout(this.#timer)
  }

  #lookIn (milliseconds: number): NodeJS.Timeout {
    return setTimeout(() => void this.#next(), milliseconds).unref()
  }

  async #next (): Promise<void> {
    const look = await this.#look()
    if (this.#isOver) return
    this.#silent = look === 'silent' ? this.#silent + 1 : 0
    if (look === 'lost' || (this.#silent === SILENT_LOOKS && !this.#mayBeSilent)) this.#end(look as 'lost' | 'silent')
    else this.#timer = this.#lookIn(look === 'silent' ? 0 : NEXT)
  }
}
