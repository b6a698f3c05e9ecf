import t from 'tap'
import { namespacesRefused } from './campaigns/namespaces.ts'
import { partition } from './campaigns/partition.ts'
import { passes } from './passes.ts'
import { withProgram } from './programs.ts'

// The short form, in a file of its own because a Sentinel takes ten seconds to make a replica of a former master. The long one is `npm run campaign:partition -- --engine redis`.

const KINDS = ['node-engine', 'split', 'outage', 'kill-node', 'kill-server', 'failover']

withProgram(t, 'redis-server', 'partitioned nodes and Redis servers with Sentinels keep every letter, one owner for each device, and correct lists', async t => {
  await passes(t, partition({
    engine: 'redis', devices: 40, faults: KINDS.length, seed: Date.now() % 1_000_000, longest: 4_000, patience: 15_000, only: KINDS.join(','), logs: ''
  }, line => t.comment(line)))
}, { skip: namespacesRefused() ?? false })
