import t from 'tap'
import { backlog } from './campaigns/backlog.ts'
import { churn } from './campaigns/churn.ts'
import { drain } from './campaigns/drain.ts'
import { duplex } from './campaigns/duplex.ts'
import { events } from './campaigns/events.ts'
import { fuzz } from './campaigns/fuzz.ts'
import { owner } from './campaigns/owner.ts'
import { resets } from './campaigns/resets.ts'
import { slow } from './campaigns/slow.ts'
import { passes } from './passes.ts'

// The short forms. The long ones are commands: see "campaigns" in package.json.

t.test('after churn, everything is back at zero', async t => {
  await passes(t, churn({ cycles: 1_500 }))
})

t.test('a TCP reset at any moment affects no other device', async t => {
  await passes(t, resets({ resets: 500, seed: Date.now() }))
})

t.test('a stream in each direction arrives completely and in order', async t => {
  await passes(t, duplex({ messages: 10_000 }))
})

t.test('of eight connections with one id one survives, whatever the others do late', async t => {
  await passes(t, owner({ rounds: 60, seed: Date.now() }))
})

t.test('a device that stops reading is disconnected, and the others lose no message', async t => {
  await passes(t, slow({ devices: 100, stallTimeout: 500 }))
})

t.test('a closing application disconnects every device in time, also those that do not answer', async t => {
  await passes(t, drain({ devices: 100, drainTimeout: 2_000, closeTimeout: 500 }))
})

t.test('readers of events that are cut and come back miss nothing', async t => {
  await passes(t, events({ cuts: 20, nodes: 1, seed: Date.now() }))
})

t.test('no mutated frame makes a codec throw or blocks the process', async t => {
  await passes(t, fuzz({ frames: 20_000, seed: Date.now() }))
})

t.test('thousands of letters a second expire, and their receipts and files are deleted', async t => {
  await passes(t, backlog({ rate: 2_500, seconds: 4, over: 60_000, behind: 60_000, delay: 10_000 }))
})
