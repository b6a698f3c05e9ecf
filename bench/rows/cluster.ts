import { cpuPerMessage, interleaved, logProgress, medianRow, sideBySide, type Bench, type Row } from '../bench.ts'
import { candidatesFor } from '../candidates.ts'
import type { Rest } from '../load.ts'
import type { Pair } from '../pair.ts'
import { owned } from './owned.ts'

const DEVICES = 1_000
const SIZE = 128
const CALLERS = 64
const WARM_UP_SECONDS = 1

/** Three nodes: messages and calls to devices of the same node and of another, and the cost of owning devices. */
export async function cluster (bench: Bench): Promise<Row[]> {
  if (candidatesFor.cluster.length === 0) {
    logProgress('cluster is skipped: neither nats-server nor redis-server is on this machine')
    return []
  }
  return [...await hops(bench), ...await owned(bench)]
}

async function hops (bench: Bench): Promise<Row[]> {
  logProgress('three nodes')
  const { rounds, seconds } = bench
  return await sideBySide(bench, candidatesFor.cluster, DEVICES, async pairs => {
    const rows: Row[] = []
    const add = async (title: string, asking: Pick<Rest, 'path' | 'otherNode' | 'countAnswers'>) => {
      const measure = (pair: Pair, seconds: number) => pair.rest({ ...asking, callers: CALLERS, size: SIZE, seconds })
      await interleaved(1, pairs, pair => measure(pair, WARM_UP_SECONDS))
      const found = await interleaved(rounds, pairs, pair => measure(pair, seconds))
      const whole = `3 nodes, ${title}, ${CALLERS} callers`
      rows.push(medianRow(whole, 'µs/message', found, cpuPerMessage))
      if (asking.otherNode) rows.push(medianRow(`${whole}: the server between them in addition`, 'µs/message', found, ({ brokerCpu, messages }) => brokerCpu / messages))
    }
    const send = { path: '/devices/:id/messages' }
    const call = { path: '/devices/:id/calls/work', countAnswers: true }
    await add('send to the same node', send)
    await add('send to another node', { ...send, otherNode: true })
    await add('call to the same node', call)
    await add('call to another node', { ...call, otherNode: true })
    return rows
  })
}
