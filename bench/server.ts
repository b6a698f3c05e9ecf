import type { Metered } from './meter.ts'

/** A running server. */
export interface Server extends Metered {
  readonly port: number
  /** The port of a node that has no devices. */
  readonly otherPort?: number
  /** Heap in use after garbage collection, in bytes. */
  heap? (): Promise<number>
  end (): Promise<void>
}
