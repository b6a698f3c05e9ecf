import { readFileSync } from 'node:fs'
import { interleaved, logProgress, measured, medianRow, type Bench, type Row } from '../bench.ts'
import { candidatesFor, type Candidate } from '../candidates.ts'
import { residentBytes, type Usage } from '../meter.ts'
import { Pair } from '../pair.ts'

interface IdleUsage extends Usage {
  heap: number
  resident: number
}

const COUNTS = [5_000, 15_000]
/** From this number on, fewer candidates are measured, to save time. */
const MANY_CONNECTIONS = 15_000
/** Files that a process has open in addition to its connections. */
const OTHER_FILES = 200

/** The cost of an idle connection. */
export async function idle (bench: Bench): Promise<Row[]> {
  const rows: Row[] = []
  for (const count of COUNTS) {
    if (!canOpenConnections(count, 'idle connections')) continue
    logProgress(`${count} idle connections`)
    const candidates = measured(bench, count < MANY_CONNECTIONS ? candidatesFor.broadcast : candidatesFor.manyDevices)
    const rounds = await interleaved(bench.rounds, candidates.map(candidate => ({ candidate })), ({ candidate }) => measure(candidate, count))
    const title = `${count} idle connections`
    rows.push(
      medianRow(`${title}, heap`, 'bytes each', rounds, ({ heap }) => heap / count),
      medianRow(`${title}, resident`, 'bytes each', rounds, ({ resident }) => resident / count),
      medianRow(`${title}, to connect`, 'µs each', rounds, ({ cpu }) => cpu / count),
      medianRow(`${title}, connects`, 'per second', rounds, ({ wall }) => count / wall * 1_000_000)
    )
  }
  return rows
}

/** Measures in a new process, so that earlier connections leave no trace in the heap. */
async function measure (candidate: Candidate, count: number): Promise<IdleUsage> {
  const pair = await Pair.open(candidate)
  try {
    const { server } = pair
    const look = async () => ({ heap: await server.heap?.() ?? NaN, resident: residentBytes(server.pids[0]!) })
    const before = await look()
    const spent = await pair.connect(count)
    const after = await look()
    return { ...spent, heap: after.heap - before.heap, resident: after.resident - before.resident }
  } finally {
    await pair.close()
  }
}

/** Whether the file limit permits this number of connections; logs if not. */
export function canOpenConnections (count: number, what: string): boolean {
  const [, limit] = readFileSync('/proc/self/limits', 'latin1').match(/Max open files\s+(\d+)/)!
  const fits = count + OTHER_FILES <= Number(limit)
  if (!fits) logProgress(`${count} ${what} are skipped: a process may have ${limit} files open`)
  return fits
}
