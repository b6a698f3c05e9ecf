import { execFile } from 'node:child_process'
import { promisify } from 'node:util'
import t from 'tap'
import { built } from './built.ts'

// The short form of a campaign. The long one is a command: see "campaigns" in package.json.

// as it was built, and without the loaders of the tests: so many processes would take long to begin
t.test('what was acknowledged survives kills at any moment, in order, and is shown once', async t => {
  const script = built('test/campaigns/kill.js')
  const run = promisify(execFile)(process.execPath, [script, '--kills', '30', '--seed', `${Date.now()}`], { env: { ...process.env, NODE_OPTIONS: '' } })
  t.teardown(() => run.child.kill())
  t.comment((await run).stdout)
})
