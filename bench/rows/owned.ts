import { setTimeout as sleep } from 'node:timers/promises'
import { jetstreamManager } from '@nats-io/jetstream'
import { connect } from '@nats-io/transport-node'
import { lanes } from '../../test/campaigns/campaign.ts'
import { interleaved, note, row, type Bench, type Row } from '../bench.ts'
import { able } from '../candidates.ts'
import type { Cluster } from '../cluster.ts'
import { meter, type Spent } from '../meter.ts'
import { Pair } from '../pair.ts'
import { hasRoomFor } from './idle.ts'

const DEVICES = 10_000
const LINES = 500
const CALLERS = 4
const LOOK_AGAIN = 10
const PATIENCE = 30_000

/** Many devices of one node, and a NATS that goes and comes again. */
export async function owned ({ candidates, rounds }: Bench): Promise<Row[]> {
  const ours = able.cluster.find(({ name }) => name === 'ours')!
  if (!candidates.includes(ours.name) || !hasRoomFor(DEVICES, 'devices of one node')) return []
  note(`${DEVICES} devices of one node`)
  const pair = await Pair.open(ours)
  try {
    const cluster = pair.server as Cluster
    const connected = new Map([[ours.name, [await pair.connect(DEVICES)]]])
    const of = async (work: () => Promise<void>, restart?: { empty: boolean }) => await interleaved(rounds, [pair], async () => {
      if (restart) await cluster.restart(restart)
      return await cost(cluster, work)
    })
    await reachAll(cluster) // warm
    const reached = await of(() => reachAll(cluster))
    const again = await of(() => reachAll(cluster), { empty: false })
    const anew = await of(() => recorded(cluster), { empty: true })
    const title = `${DEVICES} devices of one of 3 nodes`
    return [
      row(`${title}, to connect`, 'µs each', connected, ({ cpu }) => cpu / DEVICES),
      row(`${title}, to connect: nats-server besides`, 'µs each', connected, ({ carrying }) => carrying / DEVICES),
      row(`${title}, connects`, 'per second', connected, ({ wall }) => DEVICES / wall * 1_000_000),
      ...[
        { what: 'a message to each from another node', found: reached },
        { what: 'the same, from the moment that NATS is back', found: again },
        { what: 'NATS is back and has lost its records, until all are written anew', found: anew }
      ].flatMap(({ what, found }) => [
        row(`${title}, ${what}`, 'ms', found, ({ wall }) => wall / 1_000),
        row(`${title}, ${what}`, 'µs each', found, ({ cpu }) => cpu / DEVICES)
      ])
    ]
  } finally {
    await pair.close()
  }
}

async function cost (cluster: Cluster, work: () => Promise<void>): Promise<Spent> {
  const spent = meter(cluster)
  await work()
  return spent()
}

/** Has another node send to each device, until each was reached. */
async function reachAll ({ otherPort }: Cluster): Promise<void> {
  const until = performance.now() + PATIENCE
  await lanes(DEVICES / LINES, CALLERS, async part => {
    let missing = Array.from({ length: LINES }, (_, at) => `device-${part * LINES + at}`)
    for (; missing.length > 0; missing = await unreached(otherPort, missing)) {
      if (performance.now() > until) throw new Error(`${missing[0]} was not reached`)
    }
  })
}

/** Those of the devices to which a message could not be handed. */
async function unreached (port: number, ids: string[]): Promise<string[]> {
  const body = ids.map(to => `${JSON.stringify({ to, data: 1 })}\n`).join('')
  const response = await fetch(`http://127.0.0.1:${port}/messages`, { method: 'POST', body, headers: { 'content-type': 'application/x-ndjson' } })
  const receipts = (await response.text()).trimEnd().split('\n').map(line => JSON.parse(line))
  const missing = ids.filter((_, at) => receipts[at].status !== 'sent')
  if (missing.length > 0) await sleep(LOOK_AGAIN)
  return missing
}

/** Resolves once NATS has a record of each device. */
async function recorded ({ servers }: Cluster): Promise<void> {
  const connection = await connect({ servers })
  const manager = await jetstreamManager(connection)
  const until = performance.now() + PATIENCE
  const count = async () => (await manager.streams.info('KV_devices_devices')).state.messages
  while (await count().catch(() => 0) < DEVICES) {
    if (performance.now() > until) throw new Error(`NATS has no record of some of ${DEVICES} devices`)
    await sleep(LOOK_AGAIN)
  }
  await connection.close()
}
