import { execFile } from 'node:child_process'
import { promisify } from 'node:util'
import t from 'tap'
import { built } from './built.ts'

// The short form of a campaign. The long one is a command: see "campaigns" in package.json.

// Runs the build without the TypeScript loader of the tests, which would delay the start of each process.
t.test('acknowledged letters survive kills at any moment, and arrive once and in order', async t => {
  const script = built('test/campaigns/kill.js')
  const run = promisify(execFile)(process.execPath, [script, '--kills', '30', '--seed', `${Date.now()}`], { env: { ...process.env, NODE_OPTIONS: '' } })
  t.teardown(() => run.child.kill())
  t.comment((await run).stdout)
})
