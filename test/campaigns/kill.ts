import { mkdtemp, rm } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import devices from '../../lib/index.ts'
import { diskMailbox } from '../../lib/storage/disk/index.ts'
import { gate } from '../fakes.ts'
import { request } from '../support.ts'
import { seededRandom, command, settled, Verdict, type Outcome } from './campaign.ts'
import { reportFault, Host, quietApp, countByName, type HostedApp } from './host.ts'
import { Lane, type LaneResult, type Gateway } from './lane.ts'
import { freePort } from './port.ts'

const LANES = 64
/** Lifetime of a gateway in milliseconds: mostly from its first accepted message, sometimes from when it listens. */
const [MIN_LIFETIME_MS, MAX_LIFETIME_MS] = [20, 150]
const EARLY_KILL_SHARE = 0.2
const SEED = 20_260_101

/** Kills the gateway repeatedly: every acknowledged message arrives in order, and the application receives it once. */
export async function kill ({ kills, seed }: { kills: number, seed: number }): Promise<Outcome> {
  const verdict = new Verdict()
  const random = seededRandom(seed)
  const path = await mkdtemp(join(tmpdir(), 'kill-'))
  const gateways = new Gateways(path, await freePort())
  const lanes = Array.from({ length: LANES }, (_, number) => new Lane(number, gateways, seed))
  try {
    const sent = Promise.all(lanes.map(lane => lane.send()))
    for (let count = 0; count < kills; count++) {
      await gateways.start()
      if (random() > EARLY_KILL_SHARE) await Promise.race([gateways.accepts(), sent])
      await sleep(MIN_LIFETIME_MS + random() * (MAX_LIFETIME_MS - MIN_LIFETIME_MS))
      await gateways.kill()
    }
    for (const lane of lanes) lane.finish()
    const last = await gateways.start()
    await sent
    await arrival(lanes)
    const found = sumOf(lanes)
    const { acknowledged, retried, dropped, ...wrong } = found
    const ids = Object.fromEntries(lanes.map(({ deviceId, acknowledged }) => [deviceId, acknowledged]))
    verdict.same('letters that wait in the end', await settled(() => waiting(last, lanes), 0), 0)
    verdict.same('receipts', await last.ask('receipts', ids), { delivered: acknowledged })
    verdict.same('what must not be', wrong, { lost: 0, neverAttempted: 0, outOfOrder: 0, twice: 0 })
    verdict.same('refusals', countByName(lanes.flatMap(({ refusals }) => refusals)), {})
    verdict.holds('no kill came between a message and its answer', retried > 0)
    verdict.holds('no kill came between a delivery and its acknowledgement', dropped > 0)
    verdict.same('exit', await last.stop(), { code: 0, signal: null })
    verdict.same('faults and error logs', gateways.faults, [])
    return { line: `kill: ${kills} kills (seed ${seed}); ${describe(found)}`, wrong: verdict.wrong }
  } finally {
    for (const lane of lanes) lane.close()
    await gateways.end()
    await rm(path, { recursive: true, force: true })
  }
}

/** Successive gateways on one folder and one port. The next process loads its modules in advance. */
class Gateways implements Gateway {
  readonly url: string
  readonly #path: string
  readonly #port: number
  readonly #hosts: Host[] = [Host.load(import.meta.url)]
  #listens = gate()
  #accepts = gate()

  constructor (path: string, port: number) {
    this.#path = path
    this.#port = port
    this.url = `http://127.0.0.1:${port}`
  }

  get faults (): string[] {
    return this.#hosts.flatMap(({ faults }) => faults)
  }

  listens (): Promise<void> {
    return this.#listens.opened
  }

  /** Resolves once the listening gateway has accepted a message. */
  accepts (): Promise<void> {
    return this.#accepts.opened
  }

  accepted (): void {
    this.#accepts.open()
  }

  async start (): Promise<Host> {
    const host = this.#hosts.at(-1)!
    await host.begin({ path: this.#path }, this.#port)
    this.#hosts.push(Host.load(import.meta.url))
    this.#accepts = gate()
    this.#listens.open()
    return host
  }

  async kill (): Promise<void> {
    this.#listens = gate()
    await this.#hosts.at(-2)!.kill()
  }

  async end (): Promise<void> {
    for (const host of this.#hosts.slice(-2)) await host.kill()
  }
}

/** Resolves once all acknowledged messages have arrived, or no more arrive. */
async function arrival (lanes: Lane[]): Promise<void> {
  const arrived = () => lanes.reduce((sum, { arrived }) => sum + arrived, 0)
  const { acknowledged } = sumOf(lanes)
  for (let before = -1; before < arrived() && arrived() < acknowledged;) {
    before = arrived()
    await settled(async () => arrived() >= acknowledged, true)
  }
}

async function waiting (host: Host, lanes: Lane[]): Promise<number> {
  const details = await Promise.all(lanes.map(({ deviceId }) => request(host, 'GET', `/devices/${deviceId}`)))
  return details.reduce((sum, { body }) => sum + body.waiting, 0)
}

function sumOf (lanes: Lane[]): LaneResult {
  const [first, ...others] = lanes.map(lane => lane.result()) as [LaneResult, ...LaneResult[]]
  for (const other of others) for (const what of Object.keys(first) as Array<keyof LaneResult>) first[what] += other[what]
  return first
}

function describe ({ acknowledged, retried, dropped, lost, neverAttempted, outOfOrder, twice }: LaneResult): string {
  return `${acknowledged} acknowledged, ${retried} retried with unknown outcome, ${dropped} redeliveries dropped by the SDK; ` +
    `lost ${lost}, never attempted but seen ${neverAttempted}, out of order ${outOfOrder}, seen twice by the application ${twice}`
}

// The gateway.

async function prepare ({ path }: { path: string }): Promise<HostedApp> {
  const app = quietApp({ push: reportFault })
  const mailbox = await diskMailbox({ path })
  await app.register(devices, { mailbox })
  const commands = {
    /** Number of letters by status. */
    async receipts (letters: Record<string, string[]>): Promise<Record<string, number>> {
      const statuses: string[] = []
      for (const [deviceId, ids] of Object.entries(letters)) {
        for (const id of ids) statuses.push((await mailbox.receipt(deviceId, id))?.status ?? 'none')
      }
      return countByName(statuses)
    }
  }
  return { app, commands }
}

await command(import.meta.url, { kills: 500, seed: SEED }, kill, prepare)
