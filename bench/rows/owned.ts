import { setTimeout as sleep } from 'node:timers/promises'
import { jetstreamManager } from '@nats-io/jetstream'
import { connect } from '@nats-io/transport-node'
import { lanes } from '../../test/campaigns/campaign.ts'
import { interleaved, logProgress, medianRow, type Bench, type Row } from '../bench.ts'
import { candidatesFor } from '../candidates.ts'
import type { Cluster } from '../cluster.ts'
import { meter, type Usage } from '../meter.ts'
import { Pair } from '../pair.ts'
import { canOpenConnections } from './idle.ts'

const DEVICES = 10_000
const LINES = 500
const CALLERS = 4
const POLL_INTERVAL_MS = 10
const TIMEOUT_MS = 30_000

/** Many devices of one node, before and after restarts of NATS. */
export async function owned ({ candidates, rounds }: Bench): Promise<Row[]> {
  const ours = candidatesFor.cluster.find(({ name }) => name === 'ours')!
  if (!candidates.includes(ours.name) || !canOpenConnections(DEVICES, 'devices of one node')) return []
  logProgress(`${DEVICES} devices of one node`)
  const pair = await Pair.open(ours)
  try {
    const cluster = pair.server as Cluster
    const connected = new Map([[ours.name, [await pair.connect(DEVICES)]]])
    const of = async (work: () => Promise<void>, restart?: { empty: boolean }) => await interleaved(rounds, [pair], async () => {
      if (restart) await cluster.restart(restart)
      return await usageOf(cluster, work)
    })
    await sendToAll(cluster) // warm
    const reached = await of(() => sendToAll(cluster))
    const again = await of(() => sendToAll(cluster), { empty: false })
    const anew = await of(() => allRecorded(cluster), { empty: true })
    const title = `${DEVICES} devices of one of 3 nodes`
    return [
      medianRow(`${title}, to connect`, 'µs each', connected, ({ cpu }) => cpu / DEVICES),
      medianRow(`${title}, to connect: nats-server in addition`, 'µs each', connected, ({ brokerCpu }) => brokerCpu / DEVICES),
      medianRow(`${title}, connects`, 'per second', connected, ({ wall }) => DEVICES / wall * 1_000_000),
      ...[
        { what: 'a message to each from another node', found: reached },
        { what: 'the same, from the moment that NATS is back', found: again },
        { what: 'NATS is back and has lost its records, until all are written anew', found: anew }
      ].flatMap(({ what, found }) => [
        medianRow(`${title}, ${what}`, 'ms', found, ({ wall }) => wall / 1_000),
        medianRow(`${title}, ${what}`, 'µs each', found, ({ cpu }) => cpu / DEVICES)
      ])
    ]
  } finally {
    await pair.close()
  }
}

async function usageOf (cluster: Cluster, work: () => Promise<void>): Promise<Usage> {
  const spent = meter(cluster)
  await work()
  return spent()
}

/** Sends to each device from another node until every device is reached. */
async function sendToAll ({ otherPort }: Cluster): Promise<void> {
  const until = performance.now() + TIMEOUT_MS
  await lanes(DEVICES / LINES, CALLERS, async part => {
    let missing = Array.from({ length: LINES }, (_, at) => `device-${part * LINES + at}`)
    for (; missing.length > 0; missing = await unreached(otherPort, missing)) {
      if (performance.now() > until) throw new Error(`${missing[0]} was not reached`)
    }
  })
}

/** Sends to devices; resolves with those that were not reached. */
async function unreached (port: number, ids: string[]): Promise<string[]> {
  const body = ids.map(to => `${JSON.stringify({ to, data: 1 })}\n`).join('')
  const response = await fetch(`http://127.0.0.1:${port}/messages`, { method: 'POST', body, headers: { 'content-type': 'application/x-ndjson' } })
  const receipts = (await response.text()).trimEnd().split('\n').map(line => JSON.parse(line))
  const missing = ids.filter((_, at) => receipts[at].status !== 'sent')
  if (missing.length > 0) await sleep(POLL_INTERVAL_MS)
  return missing
}

/** Resolves once NATS has a record of each device. */
async function allRecorded ({ servers }: Cluster): Promise<void> {
  const connection = await connect({ servers })
  const manager = await jetstreamManager(connection)
  const until = performance.now() + TIMEOUT_MS
  const count = async () => (await manager.streams.info('KV_devices_devices')).state.messages
  while (await count().catch(() => 0) < DEVICES) {
    if (performance.now() > until) throw new Error(`NATS has no record of some of ${DEVICES} devices`)
    await sleep(POLL_INTERVAL_MS)
  }
  await connection.close()
}
