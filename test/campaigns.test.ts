import { execFile } from 'node:child_process'
import { fileURLToPath } from 'node:url'
import { promisify } from 'node:util'
import t, { type Test } from 'tap'
import { churn } from './campaigns/churn.ts'
import { cutsInChromium, cutsInNode } from './campaigns/cuts.ts'
import { damage } from './campaigns/damage.ts'
import { drain } from './campaigns/drain.ts'
import { duplex } from './campaigns/duplex.ts'
import { fuzz } from './campaigns/fuzz.ts'
import type { Outcome } from './campaigns/campaign.ts'
import { owner } from './campaigns/owner.ts'
import { resets } from './campaigns/resets.ts'
import { slow } from './campaigns/slow.ts'
import { withProgram } from './programs.ts'
import { workers } from './campaigns/workers.ts'

// The short forms. The long ones are commands: see "campaigns" in package.json.

async function passes (t: Test, campaign: Promise<Outcome>): Promise<void> {
  const { line, wrong } = await campaign
  t.comment(line)
  t.strictSame(wrong, [])
}

t.test('after churn, everything is back at zero', async t => {
  await passes(t, churn({ cycles: 1_500 }))
})

t.test('a TCP reset at any moment harms nobody else', async t => {
  await passes(t, resets({ resets: 500, seed: Date.now() }))
})

t.test('a stream each way arrives whole and in order', async t => {
  await passes(t, duplex({ messages: 10_000 }))
})

t.test('of eight connections with one id one stays, whatever the others do late', async t => {
  await passes(t, owner({ rounds: 60, seed: Date.now() }))
})

t.test('a device that stops reading is shown out and costs the others nothing', async t => {
  await passes(t, slow({ devices: 100, stallTimeout: 500 }))
})

t.test('a closing application sends everyone off, mute devices or not', async t => {
  await passes(t, drain({ devices: 100, drainTimeout: 2_000, closeTimeout: 500 }))
})

t.test('whatever bit flips, no wrong byte is handed out, and what is lost is told', async t => {
  await passes(t, damage({ flips: 60, truncations: 12, seed: Date.now() }))
})

t.test('whatever cuts the line of a client, nothing is lost, doubled or left over', async t => {
  await passes(t, cutsInNode({ cuts: 20, seed: Date.now() }))
})

withProgram(t, 'chromium', 'the same in a browser', async (t, path) => {
  await passes(t, cutsInChromium({ cuts: 10, seed: Date.now() }, path))
})

t.test('no frame, however it was tampered with, throws or holds the process up', async t => {
  await passes(t, fuzz({ frames: 20_000, seed: Date.now() }))
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
