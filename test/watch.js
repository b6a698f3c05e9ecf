import { spawn } from 'node:child_process'
import { watch } from 'node:fs'
import { filesOf } from './levels.js'

// Builds, and runs the tests of a level, by default the unit tests; whenever a file is saved, those that load a changed file.

const SETTLE_MS = 100
const files = filesOf(process.argv[2] ?? 'unit')
let timer
let running = false
let again = false

function run () {
  again = running
  if (running) return
  running = true
  spawn(`npm run -s build && tap --changed ${files.join(' ')}`, { stdio: 'inherit', shell: true }).once('exit', () => {
    running = false
    if (again) run()
  })
}

for (const folder of ['lib', 'test']) {
  watch(folder, { recursive: true }, () => {
    // an editor saves in several steps
    clearTimeout(timer)
    timer = setTimeout(run, SETTLE_MS)
  })
}
run()
