import t from 'tap'
import { damage } from './campaigns/damage.ts'
import { faults } from './campaigns/faults.ts'
import { workers } from './campaigns/workers.ts'
import { passes } from './passes.ts'

// The short forms of the campaigns in which something breaks. The long ones are commands: see "campaigns" in package.json.

t.test('whatever bit flips, no wrong byte is handed out, and what is lost is told', async t => {
  await passes(t, damage({ flips: 60, truncations: 12, seed: Date.now() }))
})

t.test('whatever fails to be written, the mailbox is as it was answered', async t => {
  await passes(t, faults({ runs: 6, seed: Date.now() }))
})

t.test('whatever becomes of a worker, its devices keep their order, get every answer, and have nothing done twice', async t => {
  await passes(t, workers({ devices: 60, rounds: 6 }))
})
