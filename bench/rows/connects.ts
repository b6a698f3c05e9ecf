import { setTimeout as sleep } from 'node:timers/promises'
import { interleaved, logProgress, medianRow, sideBySide, type Bench, type Row } from '../bench.ts'
import { candidatesFor } from '../candidates.ts'
import { saturated } from './fanout.ts'

const DEVICES = 5_000
const CONNECTS = 20
const SIZE = 128
/** Duration of the broadcasts, and the time until they saturate the server. */
const BROADCAST_SECONDS = 2
const BUSY_AFTER_MS = 500

/** The time to connect while broadcasts saturate the server. */
export async function connects (bench: Bench): Promise<Row[]> {
  logProgress('connects')
  return await sideBySide(bench, candidatesFor.manyDevices, DEVICES, async pairs => {
    const rounds = await interleaved(bench.rounds, pairs, async pair => {
      const busy = pair.fanout({ ...saturated, seconds: BROADCAST_SECONDS, size: SIZE })
      await sleep(BUSY_AFTER_MS)
      const [connected] = await Promise.all([pair.connect(CONNECTS), busy])
      return connected
    })
    return [medianRow(`${CONNECTS} connect while ${DEVICES} hear broadcasts, saturated`, 'ms', rounds, ({ wall }) => wall / 1_000)]
  })
}
