import t from 'tap'
import { backlog } from './campaigns/backlog.ts'
import { churn } from './campaigns/churn.ts'
import { cluster } from './campaigns/cluster.ts'
import { drain } from './campaigns/drain.ts'
import { duplex } from './campaigns/duplex.ts'
import { fuzz } from './campaigns/fuzz.ts'
import { intruder } from './campaigns/intruder.ts'
import { namespacesRefused } from './campaigns/namespaces.ts'
import { owner } from './campaigns/owner.ts'
import { resets } from './campaigns/resets.ts'
import { rivals } from './campaigns/rivals.ts'
import { slow } from './campaigns/slow.ts'
import { passes } from './passes.ts'
import { withProgram } from './programs.ts'

// The short forms. The long ones are commands: see "campaigns" in package.json.

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

t.test('no frame, however it was tampered with, throws or holds the process up', async t => {
  await passes(t, fuzz({ frames: 20_000, seed: Date.now() }))
})

t.test('thousands of letters a second expire, are forgotten, and leave no files behind', async t => {
  await passes(t, backlog({ rate: 2_500, seconds: 4, over: 60_000, behind: 60_000, delay: 10_000 }))
})

withProgram(t, 'ip', 'no request of a stranger is carried out, however and whenever its connection ends', async t => {
  const why = namespacesRefused()
  if (why) return t.plan(0, why)
  await passes(t, intruder({ requests: 1_000, seed: Date.now() }))
})

withProgram(t, 'nats-server', 'nodes that die, stand still, lose NATS and leave lose no letter and no device', async t => {
  await passes(t, cluster({ devices: 60, kills: 1, pauses: 1, pause: 5_000, restarts: 3, leaves: 1, within: 20_000, slow: 20_000, refused: 2_000 }))
})

withProgram(t, 'nats-server', 'of eight connections with one id over three nodes one stays, the same for all', async t => {
  await passes(t, rivals({ rounds: 20, devices: 60 }))
})
