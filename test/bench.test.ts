import t from 'tap'
import { candidatesFor, type Candidate } from '../bench/candidates.ts'
import type { Cluster } from '../bench/cluster.ts'
import { table } from '../bench/table.ts'
import { withProgram } from './programs.ts'

const { cluster: nodes, ...singles } = candidatesFor

t.test('every server of the bench starts, and tells its port and its heap', async t => {
  const candidates = new Map<string, Candidate>()
  for (const [kind, able] of Object.entries(singles)) for (const candidate of able) candidates.set(kind === 'letters' ? `${candidate.name}, letters` : candidate.name, candidate)
  for (const [name, candidate] of candidates) {
    const server = await candidate.start()
    try {
      t.ok(server.port > 0, name)
      t.ok(server.pids.every(pid => pid > 0), name)
      if (server.heap) t.ok(await server.heap() > 1_000_000, name)
    } finally {
      await server.end()
    }
  }
})

for (const [program, name] of [['nats-server', 'ours'], ['redis-server', 'redis']] as const) {
  withProgram(t, program, `the cluster of the bench outlives a ${program} that loses its records`, async t => {
    const cluster = await nodes.find(candidate => candidate.name === name)!.start() as Cluster
    t.teardown(() => cluster.end())
    await cluster.between.restart({ empty: true })
    t.equal((await cluster.between.owners()).count, 0)
    t.ok(cluster.port > 0)
  })
}

t.test('a figure over Redis is compared to the forty lines over Redis, and in a row without those to the forty lines', async t => {
  const cell = (value: number) => ({ value, server: 1, load: 1 })
  const row = { title: 'send', unit: 'µs/message', rounds: new Map() }
  const both = { forty: cell(10), ours: cell(15), fortyRedis: cell(20), redis: cell(40) }
  t.match(table([{ ...row, cells: both }]), '| send: µs/message | 10 (1.00) | 15 (1.50) | 20 (1.00) | 40 (2.00) |')
  t.match(table([{ ...row, cells: { forty: cell(10), redis: cell(40), redisSync: cell(80) } }]), '| send: µs/message | 10 (1.00) | 40 (4.00) | 80 (8.00) |')
})
