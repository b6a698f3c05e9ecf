import { cpuPerMessage, interleaved, note, row, sideBySide, type Bench, type Row } from '../bench.ts'
import { able } from '../candidates.ts'
import { WARM } from './rest.ts'

const DEVICES = 1_000
const SIZE = 128
const CALLERS = 64

/** Letters on disk, beside a bare route over the same store. */
export async function letters (bench: Bench): Promise<Row[]> {
  const { rounds, seconds } = bench
  note('letters on disk')
  return await sideBySide(bench, able.letters, DEVICES, async pairs => {
    const of = async (path: string) => {
      const asking = { path, width: CALLERS, size: SIZE, byAnswer: true }
      await interleaved(1, pairs, pair => pair.rest({ ...asking, seconds: WARM }))
      return await interleaved(rounds, pairs, pair => pair.rest({ ...asking, seconds }))
    }
    const perSecond = ({ messages, wall }: { messages: number, wall: number }) => messages / wall * 1_000_000
    // a device that never was here only gets letters kept
    const kept = await of('/devices/away-:id/messages?ttl=3600')
    const delivered = await of('/devices/:id/messages?ttl=3600&confirm=true')
    return [
      row('letters kept on disk, 64 callers', 'messages/s', kept, perSecond),
      row('letters kept on disk, 64 callers', 'µs/message', kept, cpuPerMessage),
      row('letters kept, delivered, acknowledged, removed, 64 callers', 'messages/s', delivered, perSecond),
      row('letters kept, delivered, acknowledged, removed, 64 callers', 'µs/message', delivered, cpuPerMessage)
    ]
  })
}
