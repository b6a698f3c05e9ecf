import { readFileSync } from 'node:fs'
import { join } from 'node:path'
import { root } from './root.ts'

/** A certificate or a key of `test/certificates`. */
export function certificate (name: string): Buffer {
  return readFileSync(join(root, 'test/certificates', name))
}
