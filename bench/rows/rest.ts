import { cpuPerMessage, interleaved, logProgress, medianRow, sideBySide, type Bench, type Cell, type Row } from '../bench.ts'
import type { Rest } from '../load.ts'
import type { Pair } from '../pair.ts'
import { candidatesFor, type Candidate } from '../candidates.ts'

const DEVICES = 1_000
const SIZE = 128
const LINES = 500
const ECHO_DEVICES = 64
/** Time for the JIT to compile the request path. */
export const WARM_UP_SECONDS = 2

/** Messages to one device, calls, and calls from devices. */
export async function rest (bench: Bench): Promise<Row[]> {
  const { rounds, seconds } = bench
  const rows: Row[] = []
  const add = async (title: string, candidates: Candidate[], measure: (pair: Pair, seconds: number) => ReturnType<Pair['rest']>) => {
    logProgress(title)
    rows.push(...await sideBySide(bench, candidates, DEVICES, async pairs => {
      await interleaved(1, pairs, pair => measure(pair, WARM_UP_SECONDS))
      return [medianRow(title, 'µs/message', await interleaved(rounds, pairs, pair => measure(pair, seconds)), cpuPerMessage)]
    }))
  }
  const asking = (rest: Pick<Rest, 'path' | 'callers'> & Partial<Rest>) => (pair: Pair, seconds: number) => pair.rest({ size: SIZE, seconds, ...rest })

  await add('REST to one device, 64 callers', candidatesFor.target, asking({ path: '/devices/:id/messages', callers: 64 }))
  const [send] = rows.slice(-1)
  await add(`NDJSON, ${LINES} lines a request, 4 callers`, candidatesFor.bulk, asking({ path: '/messages', callers: 4, lines: LINES }))
  if (send!.cells.forty) rows.push(shareOf(send!.cells.forty, rows.at(-1)!))
  await add('call: REST, device, REST, 64 callers', candidatesFor.call, asking({ path: '/devices/:id/calls/work', callers: 64, countAnswers: true }))
  await add(`echo: device, server, device, ${ECHO_DEVICES} devices`, candidatesFor.call, (pair, seconds) => pair.echo({ width: ECHO_DEVICES, seconds, size: SIZE }))
  return rows
}

/** The cost of a line of NDJSON, relative to a single request to the forty lines. */
function shareOf (one: Cell, { title, rounds, cells }: Row): Row {
  const shares = Object.entries(cells).map(([name, cell]) => [name, { ...cell, value: cell.value / one.value }])
  return { title, unit: 'of a REST send of the forty lines', rounds, cells: Object.fromEntries(shares) }
}
