import { cpuPerMessage, interleaved, note, row, sideBySide, type Bench, type Row } from '../bench.ts'
import { able } from '../candidates.ts'
import type { Fanout } from '../load.ts'
import { saturated } from './fanout.ts'

const MANY = 15_000
const DEVICES = 1_000
const SMALL = 128
const SIZES = [4_096, 65_536]
/** Of what is on its way to one device. */
const MOST_BYTES = 262_144
const DEVICES_A_TOPIC = 10

/** The same with more devices, larger messages, and many small audiences. */
export async function growth (bench: Bench): Promise<Row[]> {
  const { rounds, seconds } = bench
  const found = async (devices: number, title: string, candidates: typeof able.broadcast, fanouts: Array<Partial<Fanout> & { title: string }>, topics?: string[]) => {
    note(title)
    return await sideBySide(bench, candidates, devices, async pairs => {
      const rows: Row[] = []
      for (const { title, ...fanout } of fanouts) {
        const measure = (count: number) => interleaved(count, pairs, pair => pair.fanout({ ...saturated, seconds, size: SMALL, ...fanout }))
        await measure(1) // warm
        rows.push(row(title, 'µs/message', await measure(rounds), cpuPerMessage))
      }
      return rows
    }, topics)
  }

  const topics = Array.from({ length: DEVICES / DEVICES_A_TOPIC }, (_, at) => `t-${String(at).padStart(3, '0')}`)
  return [
    ...await found(MANY, 'many devices', able.many, [{ title: `fan-out, ${SMALL} B to ${MANY}, saturated` }]),
    ...await found(DEVICES, 'large messages', able.many, SIZES.map(size => ({
      title: `fan-out, ${size / 1_024} KiB to ${DEVICES}, saturated`, size, bursts: Math.min(saturated.bursts, MOST_BYTES / size)
    }))),
    ...await found(DEVICES, 'topics', able.topics, [
      { title: `topics, ${SMALL} B to ${DEVICES_A_TOPIC} of ${DEVICES}, saturated`, topics, bursts: 64 }
    ], topics)
  ]
}
