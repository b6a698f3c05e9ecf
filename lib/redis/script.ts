import { createHash } from 'node:crypto'

/** A script that Redis runs as one step: nothing else happens in between. */
export class Script {
  readonly source: string
  readonly digest: string

  /**
   * Without memory left, Redis refuses a script before its first step, so that none is left half done. `mayExceedMemory`: it runs all the same, because it
   * frees memory.
   */
  constructor (source: string, { mayExceedMemory = false } = {}) {
    this.source = `#!lua${mayExceedMemory ? ' flags=allow-oom' : ''}\n${source}`
    this.digest = createHash('sha1').update(this.source).digest('hex')
  }
}
