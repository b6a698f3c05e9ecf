import { mkdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { root } from '../test/root.ts'
import { drawingsOf } from './drawings.ts'

// Draws the tables of docs/performance.md as bar charts. It measures nothing: run it after the tables have been replaced.

const folder = join(root, 'docs/performance')
const drawings = drawingsOf(readFileSync(join(root, 'docs/performance.md'), 'utf8'))

rmSync(folder, { recursive: true, force: true })
mkdirSync(folder)
for (const [file, svg] of drawings) {
  writeFileSync(join(folder, file), svg)
  console.log(`docs/performance/${file}`)
}
