import t from 'tap'
import { candidatesFor, type Candidate } from '../bench/candidates.ts'
import type { Cluster } from '../bench/cluster.ts'
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

withProgram(t, 'nats-server', 'the cluster of the bench outlives a NATS that loses its records', async t => {
  const cluster = await nodes.find(({ name }) => name === 'ours')!.start() as Cluster
  t.teardown(() => cluster.end())
  await cluster.restart({ empty: true })
  t.ok(cluster.port > 0)
})
