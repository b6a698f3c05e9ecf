import { cpuPerMessage, interleaved, logProgress, medianRow, sideBySide, type Bench, type Row } from '../bench.ts'
import { candidatesFor } from '../candidates.ts'
import type { Fanout } from '../load.ts'
import { saturated } from './fanout.ts'

const MANY_DEVICES = 15_000
const DEVICES = 1_000
const SMALL_BYTES = 128
const SIZES = [4_096, 65_536]
/** Maximum bytes in flight to one device. */
const MAX_BYTES_IN_FLIGHT = 262_144
const DEVICES_PER_TOPIC = 10

/** Fan-out to more devices, of larger messages, and to topics with few subscribers. */
export async function growth (bench: Bench): Promise<Row[]> {
  const { rounds, seconds } = bench
  const found = async (devices: number, title: string, candidates: typeof candidatesFor.broadcast, fanouts: Array<Partial<Fanout> & { title: string }>, topics?: string[]) => {
    logProgress(title)
    return await sideBySide(bench, candidates, devices, async pairs => {
      const rows: Row[] = []
      for (const { title, ...fanout } of fanouts) {
        const measure = (count: number) => interleaved(count, pairs, pair => pair.fanout({ ...saturated, seconds, size: SMALL_BYTES, ...fanout }))
        await measure(1) // warm
        rows.push(medianRow(title, 'µs/message', await measure(rounds), cpuPerMessage))
      }
      return rows
    }, topics)
  }

  const topics = Array.from({ length: DEVICES / DEVICES_PER_TOPIC }, (_, at) => `t-${String(at).padStart(3, '0')}`)
  return [
    ...await found(MANY_DEVICES, 'many devices', candidatesFor.manyDevices, [{ title: `fan-out, ${SMALL_BYTES} B to ${MANY_DEVICES}, saturated` }]),
    ...await found(DEVICES, 'large messages', candidatesFor.manyDevices, SIZES.map(size => ({
      title: `fan-out, ${size / 1_024} KiB to ${DEVICES}, saturated`, size, bursts: Math.min(saturated.bursts, MAX_BYTES_IN_FLIGHT / size)
    }))),
    ...await found(DEVICES, 'topics', candidatesFor.topics, [
      { title: `topics, ${SMALL_BYTES} B to ${DEVICES_PER_TOPIC} of ${DEVICES}, saturated`, topics, bursts: 64 }
    ], topics)
  ]
}
