import type { Metered } from './meter.ts'

/** A running server. */
export interface Server extends Metered {
  readonly port: number
  /** Of another of its nodes than the one where devices connect. */
  readonly otherPort?: number
  /** Bytes held at rest; none where nobody can tell. */
  heap? (): Promise<number>
  end (): Promise<void>
}
