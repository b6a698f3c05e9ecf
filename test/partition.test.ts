import t from 'tap'
import { namespacesRefused } from './campaigns/namespaces.ts'
import { partition } from './campaigns/partition.ts'
import { passes } from './passes.ts'
import { withProgram } from './programs.ts'

// The short form, in a file of its own because it takes as long as the other campaigns together. The long one is `npm run campaign:partition`.

const KINDS = ['node-engine', 'split', 'outage', 'kill-node', 'pause-node', 'deploy']

withProgram(t, 'nats-server', 'partitioned nodes and NATS servers keep every letter, one owner for each device, and correct lists', async t => {
  await passes(t, partition({
    engine: 'nats', devices: 40, faults: KINDS.length, seed: Date.now() % 1_000_000, longest: 4_000, patience: 15_000, only: KINDS.join(','), logs: ''
  }, line => t.comment(line)))
}, { skip: namespacesRefused() ?? false })
