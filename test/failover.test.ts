import t from 'tap'
import { failover } from './campaigns/failover.ts'
import { passes } from './passes.ts'
import { withProgram } from './programs.ts'

// The short form of a campaign. The long one is a command: see "campaigns:redis" in package.json.

withProgram(t, 'redis-server', 'when the master of Redis is replaced, devices keep their connections and owners, and later letters are kept', async t => {
  await passes(t, failover({ devices: 40, failovers: 2, kills: 1, within: 10_000 }))
})
