import t from 'tap'
import { kill } from './campaigns/kill.ts'
import { passes } from './passes.ts'
import { withProgram } from './programs.ts'

// The short forms of a campaign. The long ones are commands: see "campaigns" in package.json.

t.test('acknowledged letters survive kills at any moment, and arrive once and in order', async t => {
  await passes(t, kill({ kills: 30, seed: Date.now(), victim: 'gateway', engine: 'disk', fsync: 'always' }))
})

withProgram(t, 'redis-server', 'letters in Redis survive kills of the gateway, and arrive once and in order', async t => {
  await passes(t, kill({ kills: 15, seed: Date.now(), victim: 'gateway', engine: 'redis', fsync: 'always' }))
})

withProgram(t, 'redis-server', 'letters survive kills of Redis, and arrive once and in order', async t => {
  await passes(t, kill({ kills: 15, seed: Date.now(), victim: 'engine', engine: 'redis', fsync: 'always' }))
})
