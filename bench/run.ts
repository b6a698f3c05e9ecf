import { cpus } from 'node:os'
import { parseArgs } from 'node:util'
import { logProgress, type Bench, type Row } from './bench.ts'
import { columns, missing } from './candidates.ts'
import { cluster } from './rows/cluster.ts'
import { fanout } from './rows/fanout.ts'
import { growth } from './rows/growth.ts'
import { idle } from './rows/idle.ts'
import { letters } from './rows/letters.ts'
import { connects } from './rows/connects.ts'
import { rest } from './rows/rest.ts'
import { stalled } from './rows/stalled.ts'
import { comparison, shares, table } from './table.ts'

// Measures this package and its competitors, and prints two tables in Markdown.
// npm run bench -- --before ../fastify-devices-before --candidates before,ours
// npm run bench -- --only fanout,rest --devices 1000,15000 --candidates ours,forty --rounds 3 --seconds 1

const sections = { fanout, rest, letters, idle, stalled, connects, cluster, growth }

const { values } = parseArgs({
  options: {
    only: { type: 'string', default: Object.keys(sections).join() },
    before: { type: 'string' },
    candidates: { type: 'string', default: Object.keys(columns).join() },
    devices: { type: 'string', default: '1000,5000' },
    rounds: { type: 'string', default: '3' },
    seconds: { type: 'string', default: '0.5' }
  }
})

/** Parses an argument that lists names; an unknown name ends the process. */
function names<Name extends string> (given: string, known: Record<Name, unknown>): Name[] {
  const all = given.split(',') as Name[]
  const unknown = all.find(name => !Object.hasOwn(known, name))
  if (unknown === undefined) return all
  console.error(`There is no "${unknown}": ${Object.keys(known).join(', ')}`)
  process.exit(1)
}

const bench: Bench = {
  seconds: Number(values.seconds),
  rounds: Number(values.rounds),
  devices: values.devices.split(',').map(Number),
  candidates: names(values.candidates, columns),
  before: values.before
}
const only = names(values.only, sections)

const since = performance.now()
const rows: Row[] = []
for (const name of only) {
  try {
    rows.push(...await sections[name](bench))
  } catch (error) { // the other sections still run
    logProgress(`${name} failed: ${(error as Error).message}`)
    process.exitCode = 1
  }
}
logProgress(`${Math.round((performance.now() - since) / 1_000)} s`)

console.log(`Node ${process.version}, ${cpus().length} × ${cpus()[0]!.model.trim()}, medians of ${bench.rounds} rounds of ${bench.seconds} s.`)
console.log(`In parentheses: the ratio to the forty lines.${missing.length > 0 ? ` Not on this machine: ${missing.join(', ')}.` : ''}\n`)
console.log(table(rows))
if (values.before !== undefined) console.log(`\n${comparison(rows)}`)
console.log('\nShare of the time in which the busiest thread ran or waited for a core. Near 100, the server is saturated and the load generator is not the limit.\n')
console.log(shares(rows))
