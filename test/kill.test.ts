import t from 'tap'
import { kill } from './campaigns/kill.ts'
import { passes } from './passes.ts'

// The short form of a campaign. The long one is a command: see "campaigns" in package.json.

t.test('acknowledged letters survive kills at any moment, and arrive once and in order', async t => {
  await passes(t, kill({ kills: 30, seed: Date.now(), victim: 'gateway', engine: 'disk', fsync: 'always' }))
})
