import t from 'tap'
import { cluster } from './campaigns/cluster.ts'
import { events } from './campaigns/events.ts'
import { intruder } from './campaigns/intruder.ts'
import { namespacesRefused } from './campaigns/namespaces.ts'
import { rivals } from './campaigns/rivals.ts'
import { passes } from './passes.ts'
import { withProgram } from './programs.ts'

// The short forms of those campaigns that need other programs. The long ones are commands: see "campaigns" in package.json.

withProgram(t, 'ip', 'no unauthorized request is carried out, however and whenever its connection ends', async t => {
  const why = namespacesRefused()
  if (why) return t.plan(0, why)
  await passes(t, intruder({ requests: 1_000, seed: Date.now() }))
})

for (const [engine, program, title] of [['nats', 'nats-server', 'NATS'], ['redis', 'redis-server', 'Redis']] as const) {
  withProgram(t, program, `nodes that die, pause, lose ${title} or close lose no letter and no device`, async t => {
    await passes(t, cluster({ devices: 60, kills: 1, pauses: 1, pause: 5_000, restarts: 3, leaves: 1, within: 20_000, slow: 20_000, refused: 2_000, engine, fsync: 'always' }))
  })

  withProgram(t, program, `of eight connections with one id over three nodes with ${title} one survives, and all nodes agree on it`, async t => {
    await passes(t, rivals({ rounds: 20, devices: 60, engine, fsync: 'always' }))
  })
}

withProgram(t, 'nats-server', 'readers of events that are cut, and nodes that lose NATS, miss no event without a gap', async t => {
  await passes(t, events({ cuts: 20, nodes: 2, seed: Date.now() }))
})
