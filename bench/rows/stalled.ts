import { interleaved, logProgress, medianRow, sideBySide, type Bench, type Row } from '../bench.ts'
import { candidatesFor } from '../candidates.ts'

const DEVICES = 1_000
const STALLED = DEVICES / 100
const SIZE = 128
const INTERVAL_MS = 50

/** The cost that devices which do not read cause for the others. */
export async function stalled (bench: Bench): Promise<Row[]> {
  const { rounds, seconds } = bench
  return await sideBySide(bench, candidatesFor.stalled, DEVICES, async pairs => {
    logProgress('1 % of devices not reading')
    const paced = { burst: 1, bursts: 1, seconds, size: SIZE, intervalMs: INTERVAL_MS }
    const p99 = async (title: string) => medianRow(title, 'ms', await interleaved(rounds, pairs, pair => pair.fanout(paced)), ({ delays }) => delays[Math.floor(delays.length * 0.99)]!)
    await interleaved(1, pairs, pair => pair.fanout(paced)) // warm
    const title = `fan-out to ${DEVICES}, one every ${INTERVAL_MS} ms, p99`
    const alone = await p99(`${title}, all read`)
    for (const pair of pairs) await pair.stall(STALLED)
    return [alone, await p99(`${title}, ${STALLED} do not read`)]
  })
}
