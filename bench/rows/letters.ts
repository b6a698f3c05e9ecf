import { cpuPerMessage, interleaved, logProgress, medianRow, sideBySide, type Bench, type Row } from '../bench.ts'
import { candidatesFor } from '../candidates.ts'
import { WARM_UP_SECONDS } from './rest.ts'

const DEVICES = 1_000
const SIZE = 128
const CALLERS = 64

/** Letters on disk, compared with a bare route over the same store. */
export async function letters (bench: Bench): Promise<Row[]> {
  const { rounds, seconds } = bench
  logProgress('letters on disk')
  return await sideBySide(bench, candidatesFor.letters, DEVICES, async pairs => {
    const of = async (path: string) => {
      const asking = { path, callers: CALLERS, size: SIZE, countAnswers: true }
      await interleaved(1, pairs, pair => pair.rest({ ...asking, seconds: WARM_UP_SECONDS }))
      return await interleaved(rounds, pairs, pair => pair.rest({ ...asking, seconds }))
    }
    const perSecond = ({ messages, wall }: { messages: number, wall: number }) => messages / wall * 1_000_000
    // A device that never connects: its letters are only stored.
    const kept = await of('/devices/away-:id/messages?ttl=3600')
    const delivered = await of('/devices/:id/messages?ttl=3600&confirm=true')
    return [
      medianRow('letters kept on disk, 64 callers', 'messages/s', kept, perSecond),
      medianRow('letters kept on disk, 64 callers', 'µs/message', kept, cpuPerMessage),
      medianRow('letters kept, delivered, acknowledged, removed, 64 callers', 'messages/s', delivered, perSecond),
      medianRow('letters kept, delivered, acknowledged, removed, 64 callers', 'µs/message', delivered, cpuPerMessage)
    ]
  })
}
