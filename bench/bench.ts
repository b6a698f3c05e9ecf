import type { Candidate, ColumnName } from './candidates.ts'
import type { Usage } from './meter.ts'
import { Pair } from './pair.ts'

/** How the rows are measured. */
export interface Bench {
  /** Of each round. */
  seconds: number
  rounds: number
  /** Devices of the fan-out. */
  devices: number[]
  /** Only these columns. */
  candidates: string[]
}

/** A figure of a candidate, and how busy it and its load side were: shares of the time. */
export interface Cell {
  value: number
  server: number
  load: number
}

export interface Row {
  title: string
  unit: string
  /** What it was drawn from; other rows may be as well. */
  rounds: Rounds<Usage>
  cells: Partial<Record<ColumnName, Cell>>
}

/** What each candidate brought, round by round. */
export type Rounds<T> = Map<ColumnName, T[]>

/** Has all candidates stand side by side, each with its devices, while they are measured. */
export async function sideBySide (
  { candidates }: Bench, able: Candidate[], devices: number, work: (pairs: Pair[]) => Promise<Row[]>, topics?: string[]
): Promise<Row[]> {
  const pairs: Pair[] = []
  try {
    for (const candidate of able.filter(({ name }) => candidates.includes(name))) {
      const pair = await Pair.open(candidate)
      pairs.push(pair)
      await pair.connect(devices, topics)
    }
    return await work(pairs)
  } finally {
    for (const pair of pairs) await pair.close()
  }
}

/** A, B, C, A, B, C: what disturbs the machine for a while disturbs them all. */
export async function interleaved<T, P extends Pick<Pair, 'candidate'>> (rounds: number, pairs: P[], measure: (pair: P) => Promise<T>): Promise<Rounds<T>> {
  const found: Rounds<T> = new Map(pairs.map(({ candidate }) => [candidate.name, []]))
  for (let round = 0; round < rounds; round++) {
    for (const pair of pairs) found.get(pair.candidate.name)!.push(await measure(pair))
  }
  return found
}

/** A row of medians; a candidate of which this is not known is left out. */
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

/** The one in the middle. */
function median<T> (all: T[], valueOf: (one: T) => number): T {
  return all.toSorted((a, b) => valueOf(a) - valueOf(b))[Math.floor(all.length / 2)]!
}

/** The main measure: microseconds of CPU time of the server for each message. */
export function cpuPerMessage ({ cpu, messages }: Usage & { messages: number }): number {
  return cpu / messages
}

export function logProgress (text: string): void {
  process.stderr.write(`${text}\n`)
}
