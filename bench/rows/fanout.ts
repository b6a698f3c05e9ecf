import { cpuPerMessage, interleaved, logProgress, medianRow, sideBySide, type Bench, type Row } from '../bench.ts'
import { candidatesFor } from '../candidates.ts'

const SIZE = 128

/** 16 broadcasts in flight. */
export const saturated = { burst: 1, bursts: 16 }
const bursts = { burst: 16, bursts: 2 }
const oneAtATime = { burst: 1, bursts: 1 }
/** More rounds and more time in all: the candidates differ by less than a machine varies from one second to the next. */
const SINGLE_FACTORS = { rounds: 3, time: 2 }

/** One message to all devices. */
export async function fanout (bench: Bench): Promise<Row[]> {
  const rows: Row[] = []
  for (const devices of bench.devices) {
    logProgress(`fan-out to ${devices}`)
    rows.push(...await sideBySide(bench, candidatesFor.broadcast, devices, async pairs => {
      const measure = async (shape: typeof saturated, rounds = bench.rounds, seconds = bench.seconds) => {
        return await interleaved(rounds, pairs, pair => pair.fanout({ ...shape, seconds, size: SIZE }))
      }
      const title = `fan-out, ${SIZE} B to ${devices}`
      await measure(saturated, 1) // warm
      const single = await measure(oneAtATime, SINGLE_FACTORS.rounds * bench.rounds, SINGLE_FACTORS.time * bench.seconds / SINGLE_FACTORS.rounds)
      return [
        medianRow(`${title}, saturated`, 'µs/message', await measure(saturated), cpuPerMessage),
        medianRow(`${title}, saturated, bursts of 16`, 'µs/message', await measure(bursts), cpuPerMessage),
        medianRow(`${title}, one at a time`, 'µs/message', single, cpuPerMessage),
        medianRow(`${title}, one at a time: the last device after`, 'ms', single, ({ delays }) => delays[Math.floor(delays.length / 2)]!)
      ]
    }))
  }
  return rows
}
