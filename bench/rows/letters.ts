import { cpuPerMessage, interleaved, logProgress, medianRow, sideBySide, type Bench, type Row } from '../bench.ts'
import { candidatesFor } from '../candidates.ts'
import { WARM_UP_SECONDS } from './rest.ts'

const DEVICES = 1_000
const SIZE = 128
const CALLERS = 64

/** What a letter costs in each engine, compared with a bare route that keeps it on disk. */
export async function letters (bench: Bench): Promise<Row[]> {
  const { rounds, seconds } = bench
  logProgress('letters in each engine')
  return await sideBySide(bench, candidatesFor.letters, DEVICES, async pairs => {
    const rowsOf = async (title: string, path: string) => {
      const asking = { path, callers: CALLERS, size: SIZE, countAnswers: true }
      await interleaved(1, pairs, pair => pair.rest({ ...asking, seconds: WARM_UP_SECONDS }))
      const found = await interleaved(rounds, pairs, pair => pair.rest({ ...asking, seconds }))
      const whole = `letters ${title}, ${CALLERS} callers`
      const between = medianRow(`${whole}: the server between nodes in addition`, 'µs/message', found, ({ brokerCpu, messages }) => brokerCpu > 0 ? brokerCpu / messages : NaN)
      return [
        medianRow(whole, 'messages/s', found, ({ messages, wall }) => messages / wall * 1_000_000),
        medianRow(whole, 'µs/message', found, cpuPerMessage),
        ...Object.keys(between.cells).length > 0 ? [between] : []
      ]
    }
    return [
      // a device that never connects: its letters are only stored
      ...await rowsOf('kept', '/devices/away-:id/messages?ttl=3600'),
      ...await rowsOf('kept, delivered, acknowledged, removed', '/devices/:id/messages?ttl=3600&confirm=true')
    ]
  })
}
