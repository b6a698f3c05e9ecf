import { execFile } from 'node:child_process'
import { fileURLToPath } from 'node:url'
import { promisify } from 'node:util'
import t from 'tap'
import { damage } from './campaigns/damage.ts'
import { workers } from './campaigns/workers.ts'
import { passes } from './passes.ts'

// The short forms of the campaigns in which something breaks. The long ones are commands: see "campaigns" in package.json.

t.test('whatever bit flips, no wrong byte is handed out, and what is lost is told', async t => {
  await passes(t, damage({ flips: 60, truncations: 12, seed: Date.now() }))
})

t.test('whatever becomes of a worker, its devices keep their order, get every answer, and have nothing done twice', async t => {
  await passes(t, workers({ devices: 60, rounds: 6 }))
})

// as it was built, and without the loaders of the tests: so many processes would take long to begin
t.test('what was acknowledged survives kills at any moment, in order, and is shown once', async t => {
  const script = fileURLToPath(new URL('../dist/test/campaigns/kill.js', import.meta.url))
  const run = promisify(execFile)(process.execPath, [script, '--kills', '30', '--seed', `${Date.now()}`], { env: { ...process.env, NODE_OPTIONS: '' } })
  t.teardown(() => run.child.kill())
  t.comment((await run).stdout)
})
