import { setTimeout as sleep } from 'node:timers/promises'
import { interleaved, note, row, sideBySide, type Bench, type Row } from '../bench.ts'
import { able } from '../candidates.ts'
import { saturated } from './fanout.ts'

const DEVICES = 5_000
const NEWCOMERS = 20
const SIZE = 128
/** Of broadcasts that the server is kept busy with, and until it is. */
const SECONDS = 2
const BUSY_AFTER = 500

/** Whether devices can come while the others are told much. */
export async function newcomers (bench: Bench): Promise<Row[]> {
  note('newcomers')
  return await sideBySide(bench, able.many, DEVICES, async pairs => {
    const rounds = await interleaved(bench.rounds, pairs, async pair => {
      const busy = pair.fanout({ ...saturated, seconds: SECONDS, size: SIZE })
      await sleep(BUSY_AFTER)
      const [connected] = await Promise.all([pair.connect(NEWCOMERS), busy])
      return connected
    })
    return [row(`${NEWCOMERS} connect while ${DEVICES} hear broadcasts, saturated`, 'ms', rounds, ({ wall }) => wall / 1_000)]
  })
}
