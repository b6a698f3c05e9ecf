const FIRST_PROBE_MS = 100
const PROBE_INTERVAL_MS = 1_000
/** Probes in a row without an answer before the owner counts as suspended. */
const MAX_SILENT_PROBES = 2

/** `there`: the owner works on the request; `lost`: it does not; `silent`: no answer. */
export type ProbeResult = 'there' | 'lost' | 'silent'

/** Probes regularly whether a request is still being worked on, because NATS does not report the death of a subscriber. */
export class LivenessProbe {
  /** Resolves once the request is lost or, unless silence is allowed, the owner has been silent for too long. */
  readonly ended: Promise<'lost' | 'silent'>
  readonly #probe: () => Promise<ProbeResult>
  readonly #mayBeSilent: boolean
  #end!: (result: 'lost' | 'silent') => void
  #timer: NodeJS.Timeout
  #silentProbes = 0
  #isStopped = false

  constructor (probe: () => Promise<ProbeResult>, { mayBeSilent }: { mayBeSilent: boolean }) {
    this.#probe = probe
    this.#mayBeSilent = mayBeSilent
    this.ended = new Promise(resolve => { this.#end = resolve })
    this.#timer = this.#schedule(FIRST_PROBE_MS)
  }

  stop (): void {
    this.#isStopped = true
    clearTimeout(this.#timer)
  }

  #schedule (milliseconds: number): NodeJS.Timeout {
    return setTimeout(() => void this.#next(), milliseconds).unref()
  }

  async #next (): Promise<void> {
    const result = await this.#probe()
    if (this.#isStopped) return
    this.#silentProbes = result === 'silent' ? this.#silentProbes + 1 : 0
    if (result === 'lost' || (this.#silentProbes === MAX_SILENT_PROBES && !this.#mayBeSilent)) this.#end(result as 'lost' | 'silent')
    else this.#timer = this.#schedule(result === 'silent' ? 0 : PROBE_INTERVAL_MS)
  }
}
