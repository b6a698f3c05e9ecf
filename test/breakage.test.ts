import t from 'tap'
import { damage } from './campaigns/damage.ts'
import { faults } from './campaigns/faults.ts'
import { workers } from './campaigns/workers.ts'
import { passes } from './passes.ts'

// Short runs of the campaigns in which something breaks. For the long runs see the script "campaigns" in package.json.

t.test('whatever bit flips, no wrong bytes are delivered and the process starts again', async t => {
  await passes(t, damage({ flips: 60, truncations: 12, seed: Date.now() }))
})

t.test('whatever write fails, the mailbox is in the state that its answers promised', async t => {
  await passes(t, faults({ runs: 6, seed: Date.now() }))
})

t.test('whatever becomes of a worker, its devices keep their order, get every answer, and no call runs twice', async t => {
  await passes(t, workers({ devices: 60, rounds: 6 }))
})
