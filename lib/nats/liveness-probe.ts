/** When to look at first, and then. */
const FIRST_PROBE_MS = 100
const PROBE_INTERVAL_MS = 1_000
/** So many looks in a row may stay without an answer before the owner counts as held still. */
const MAX_SILENT_PROBES = 2

/** What a look finds: the owner works on the request, it does not, or it says nothing. */
export type ProbeResult = 'there' | 'lost' | 'silent'

/** Looks time and again whether whoever was asked is still there to answer: a node may die, and nobody says so. */
export class LivenessProbe {
  /** Resolves when it is not, or, where silence counts, when it has said nothing for too long. */
  readonly ended: Promise<'lost' | 'silent'>
  readonly #look: () => Promise<ProbeResult>
  readonly #mayBeSilent: boolean
  #end!: (look: 'lost' | 'silent') => void
  #timer: NodeJS.Timeout
  #silent = 0
  #isOver = false

  constructor (look: () => Promise<ProbeResult>, { mayBeSilent }: { mayBeSilent: boolean }) {
    this.#look = look
    this.#mayBeSilent = mayBeSilent
    this.ended = new Promise(resolve => { this.#end = resolve })
    this.#timer = this.#lookIn(FIRST_PROBE_MS)
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
    if (look === 'lost' || (this.#silent === MAX_SILENT_PROBES && !this.#mayBeSilent)) this.#end(look as 'lost' | 'silent')
    else this.#timer = this.#lookIn(look === 'silent' ? 0 : PROBE_INTERVAL_MS)
  }
}
