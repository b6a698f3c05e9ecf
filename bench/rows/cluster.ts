import { cpuPerMessage, interleaved, note, row, sideBySide, type Bench, type Row } from '../bench.ts'
import { able } from '../candidates.ts'
import type { Rest } from '../load.ts'
import type { Pair } from '../pair.ts'
import { owned } from './owned.ts'

const DEVICES = 1_000
const SIZE = 128
const CALLERS = 64
const WARM = 1
const WHERE = { here: 'the same node', elsewhere: 'another node' }

/** Three nodes: messages and calls to devices of the same node, and of another; and what one node owns. */
export async function cluster (bench: Bench): Promise<Row[]> {
  if (able.cluster.length === 0) {
    note('cluster is skipped: nats-server is not on this machine')
    return []
  }
  return [...await hops(bench), ...await owned(bench)]
}

async function hops (bench: Bench): Promise<Row[]> {
  note('three nodes')
  const { rounds, seconds } = bench
  return await sideBySide(bench, able.cluster, DEVICES, async pairs => {
    const rows: Row[] = []
    const add = async (title: string, asking: Pick<Rest, 'path' | 'elsewhere' | 'byAnswer'>) => {
      const measure = (pair: Pair, seconds: number) => pair.rest({ ...asking, width: CALLERS, size: SIZE, seconds })
      await interleaved(1, pairs, pair => measure(pair, WARM))
      const found = await interleaved(rounds, pairs, pair => measure(pair, seconds))
      const whole = `3 nodes, ${title} ${asking.elsewhere ? WHERE.elsewhere : WHERE.here}, ${CALLERS} callers`
      rows.push(row(whole, 'µs/message', found, cpuPerMessage))
      if (asking.elsewhere) rows.push(row(`${whole}: nats-server besides`, 'µs/message', found, ({ carrying, messages }) => carrying / messages))
    }
    const send = { path: '/devices/:id/messages' }
    const call = { path: '/devices/:id/calls/work', byAnswer: true }
    await add('send to', send)
    await add('send to', { ...send, elsewhere: true })
    await add('call to', call)
    await add('call to', { ...call, elsewhere: true })
    return rows
  })
}
