import { join, resolve } from 'node:path'
import { pathToFileURL } from 'node:url'
import type { Candidate, ColumnName } from './candidates.ts'
import type { Usage } from './meter.ts'
import { Pair } from './pair.ts'

/** The settings of a run. */
export interface Bench {
  /** Duration of a round. */
  seconds: number
  rounds: number
  /** Numbers of devices for the fan-out rows. */
  devices: number[]
  /** The columns to measure. */
  candidates: string[]
  /** The folder of another checkout of this package, already built, to compare with. */
  before?: string | undefined
}

/** The figure of a candidate, and the utilisation of its server and of its load generator, from 0 to 1. */
export interface Cell {
  value: number
  server: number
  load: number
}

export interface Row {
  title: string
  unit: string
  /** The measurements behind the row; rows may share them. */
  rounds: Rounds<Usage>
  cells: Partial<Record<ColumnName, Cell>>
}

/** The measurements of each candidate, one per round. */
export type Rounds<T> = Map<ColumnName, T[]>

/** The candidates of a row that are to be measured. With `before`, the package of that checkout is one more. */
export function measured ({ candidates, before }: Bench, able: Candidate[]): Candidate[] {
  const all = able.flatMap(candidate => {
    if (before === undefined || candidate.name !== 'ours') return [candidate]
    const base = pathToFileURL(join(resolve(before), 'dist/bench/'))
    return [{ ...candidate, name: 'before' as const, start: () => candidate.start(base) }, candidate]
  })
  return all.filter(({ name }) => candidates.includes(name))
}

/** Starts all candidates with their devices at the same time, runs `work`, and stops them. */
export async function sideBySide (
  bench: Bench, able: Candidate[], devices: number, work: (pairs: Pair[]) => Promise<Row[]>, topics?: string[]
): Promise<Row[]> {
  const pairs: Pair[] = []
  try {
    for (const candidate of measured(bench, able)) {
      const pair = await Pair.open(candidate)
      pairs.push(pair)
      await pair.connect(devices, topics)
    }
    return await work(pairs)
  } finally {
    for (const pair of pairs) await pair.close()
  }
}

/** Measures in the order A, B, C, A, B, C, so that a disturbance of the machine affects all candidates. */
export async function interleaved<T, P extends Pick<Pair, 'candidate'>> (rounds: number, pairs: P[], measure: (pair: P) => Promise<T>): Promise<Rounds<T>> {
  const found: Rounds<T> = new Map(pairs.map(({ candidate }) => [candidate.name, []]))
  for (let round = 0; round < rounds; round++) {
    for (const pair of pairs) found.get(pair.candidate.name)!.push(await measure(pair))
  }
  return found
}

/** A row of medians. Candidates without a value are left out. */
export function medianRow<T extends Usage> (title: string, unit: string, rounds: Rounds<T>, valueOf: (measured: T) => number): Row {
  const cells: Row['cells'] = {}
  for (const [name, measured] of rounds) {
    const middle = median(measured, valueOf)
    const { server, load, wall } = middle
    const value = valueOf(middle)
    if (!Number.isNaN(value)) cells[name] = { value, server: server / wall, load: load / wall }
  }
  return { title, unit, rounds, cells }
}

function median<T> (all: T[], valueOf: (one: T) => number): T {
  return all.toSorted((a, b) => valueOf(a) - valueOf(b))[Math.floor(all.length / 2)]!
}

/** The main figure: CPU time of the server per message, in microseconds. */
export function cpuPerMessage ({ cpu, messages }: Usage & { messages: number }): number {
  return cpu / messages
}

export function logProgress (text: string): void {
  process.stderr.write(`${text}\n`)
}
