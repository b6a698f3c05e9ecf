import { setTimeout as sleep } from 'node:timers/promises'
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

/** Many devices of one node, before and after restarts of the server between the nodes. */
export async function owned (bench: Bench): Promise<Row[]> {
  const able = candidatesFor.cluster.filter(({ name, dialect }) => dialect === 'devices' && bench.candidates.includes(name))
  if (able.length === 0 || !canOpenConnections(DEVICES, 'devices of one node')) return []
  logProgress(`${DEVICES} devices of one node`)
  const pairs: Pair[] = []
  try {
    for (const candidate of able) pairs.push(await Pair.open(candidate))
    return await measure(bench, pairs)
  } finally {
    for (const pair of pairs) await pair.close()
  }
}

async function measure ({ rounds }: Bench, pairs: Pair[]): Promise<Row[]> {
  const of = async (work: (cluster: Cluster) => Promise<void>, restart?: { empty: boolean }) => await interleaved(rounds, pairs, async pair => {
    const cluster = pair.server as Cluster
    if (restart) await cluster.between.restart(restart)
    return await usageOf(cluster, () => work(cluster))
  })
  const connected = await interleaved(1, pairs, pair => pair.connect(DEVICES))
  await of(sendToAll) // warm
  const reached = await of(sendToAll)
  const kept = await interleaved(1, pairs, async pair => ({ ...reached.get(pair.candidate.name)![0]!, ...await (pair.server as Cluster).between.owners() }))
  const again = await of(sendToAll, { empty: false })
  const anew = await of(allRecorded, { empty: true })
  const title = `${DEVICES} devices of one of 3 nodes`
  return [
    medianRow(`${title}, to connect`, 'µs each', connected, ({ cpu }) => cpu / DEVICES),
    medianRow(`${title}, to connect: the server between them in addition`, 'µs each', connected, ({ brokerCpu }) => brokerCpu / DEVICES),
    medianRow(`${title}, connects`, 'per second', connected, ({ wall }) => DEVICES / wall * 1_000_000),
    medianRow(`${title}, what the server between them keeps`, 'bytes each', kept, ({ bytes }) => bytes / DEVICES),
    ...[
      { what: 'a message to each from another node', found: reached },
      { what: 'the same, from the moment that the server is back', found: again },
      { what: 'the server is back and has lost its records, until all are written anew', found: anew }
    ].flatMap(({ what, found }) => [
      medianRow(`${title}, ${what}`, 'ms', found, ({ wall }) => wall / 1_000),
      medianRow(`${title}, ${what}`, 'µs each', found, ({ cpu }) => cpu / DEVICES)
    ])
  ]
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

/** Resolves once there is a record of each device. */
async function allRecorded ({ between }: Cluster): Promise<void> {
  const until = performance.now() + TIMEOUT_MS
  while ((await between.owners()).count < DEVICES) {
    if (performance.now() > until) throw new Error(`There is no record of some of ${DEVICES} devices`)
    await sleep(POLL_INTERVAL_MS)
  }
}
