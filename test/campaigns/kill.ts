import { setTimeout as sleep } from 'node:timers/promises'
import devices from '../../lib/index.ts'
import { gate } from '../fakes.ts'
import { request } from '../support.ts'
import { seededRandom, command, settled, Verdict, type Outcome } from './campaign.ts'
import { openEngine, startEngine, startJoiningEngine, type Engine, type EngineAccess, type EngineChoice } from './engine.ts'
import { reportFault, Host, quietApp, countByName, type HostedApp } from './host.ts'
import { Lane, type LaneResult, type Gateway } from './lane.ts'
import { describeLosses } from './letter-tally.ts'
import { LossWindows } from './loss-windows.ts'
import { freePort } from './port.ts'

interface Size extends EngineChoice, Record<string, number | string> {
  kills: number
  seed: number
  /** What is killed: the `gateway`, or the server of the `engine`. */
  victim: string
}

const LANES = 64
/** Lifetime of a gateway in milliseconds: mostly from its first accepted message, sometimes from when it listens. */
const [MIN_LIFETIME_MS, MAX_LIFETIME_MS] = [20, 150]
const EARLY_KILL_SHARE = 0.2
const UNCAUGHT = /^(uncaughtException|unhandledRejection)/
const SEED = 20_260_101

/** Kills the gateway or its engine repeatedly: every acknowledged message arrives in order, and the application receives it once. */
export async function kill ({ kills, seed, victim, ...choice }: Size): Promise<Outcome> {
  const verdict = new Verdict()
  const random = seededRandom(seed)
  const engine = await startVictimEngine(victim, choice)
  const gateways = new Gateways(engine.access, await freePort())
  const windows = new LossWindows()
  const killed: Victim = victim === 'engine' ? new EngineVictim(engine, gateways, windows) : gateways
  const safeTime = victim === 'engine' ? 2 * engine.lossWindow : 0 // in which letters become safe
  const lanes = Array.from({ length: LANES }, (_, number) => new Lane(number, gateways, seed))
  try {
    const sent = Promise.all(lanes.map(lane => lane.send()))
    for (let count = 0; count < kills; count++) {
      await killed.start()
      if (random() > EARLY_KILL_SHARE) await Promise.race([gateways.accepts(), sent])
      await sleep(safeTime + MIN_LIFETIME_MS + random() * (MAX_LIFETIME_MS - MIN_LIFETIME_MS))
      await killed.kill()
    }
    for (const lane of lanes) lane.finish()
    await killed.start()
    await sent
    await arrival(lanes)
    if (safeTime > 0) await gateways.restart() // the engine may have forgotten that letters were delivered, and delivers them to the next connection
    const last = gateways.last
    const found = sumOf(lanes, windows)
    const { lost, neverAttempted, outOfOrder, twice } = found
    const ids = Object.fromEntries(lanes.map(lane => [lane.deviceId, lane.safeIds(windows)]))
    verdict.same('letters that wait in the end', await settled(() => waiting(last, lanes), 0), 0)
    verdict.same('receipts', await last.ask('receipts', ids), { delivered: found.acknowledged - found.mayBeLost })
    verdict.same('what must not be', { lost, neverAttempted, outOfOrder, twice }, { lost: 0, neverAttempted: 0, outOfOrder: 0, twice: 0 })
    verdict.same('refusals', countByName(lanes.flatMap(({ refusals }) => refusals)), {})
    verdict.holds('no kill came between a message and its answer', found.retried > 0)
    // a gateway that lives knows what it has delivered
    if (victim === 'gateway') verdict.holds('no kill came between a delivery and its acknowledgement', found.dropped > 0)
    verdict.same('exit', await last.stop(), { code: 0, signal: null })
    verdict.same('faults and error logs', gateways.faults.filter(fault => !killed.explains(fault)), [])
    return { line: `kill: ${kills} kills of the ${victim} with ${engine.title} (seed ${seed}); ${describe(found)}`, wrong: verdict.wrong }
  } finally {
    for (const lane of lanes) lane.close()
    await gateways.end()
    await engine.remove()
  }
}

async function startVictimEngine (victim: string, choice: EngineChoice): Promise<Engine> {
  switch (victim) {
    case 'gateway': return await startEngine(choice)
    case 'engine': return await startJoiningEngine(choice)
    default: throw new Error(`There is no victim ${victim}; there are gateway and engine`)
  }
}

/** What is started and killed repeatedly. */
interface Victim {
  start (): Promise<void>
  kill (): Promise<void>
  /** Whether the gateway reports this because of a kill. */
  explains (fault: string): boolean
}

/** Successive gateways on one engine and one port. The next process loads its modules in advance. */
class Gateways implements Gateway, Victim {
  readonly url: string
  readonly #access: EngineAccess
  readonly #port: number
  readonly #hosts: Host[] = [Host.load(import.meta.url)]
  #listens = gate()
  #accepts = gate()

  constructor (access: EngineAccess, port: number) {
    this.#access = access
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

  /** The one that was started last. */
  get last (): Host {
    return this.#hosts.at(-2)!
  }

  /** `accepts` waits for the next message. */
  expect (): void {
    this.#accepts = gate()
  }

  async start (): Promise<void> {
    await this.#hosts.at(-1)!.begin(this.#access, this.#port)
    this.#hosts.push(Host.load(import.meta.url))
    this.expect()
    this.#listens.open()
  }

  async kill (): Promise<void> {
    this.#listens = gate()
    await this.last.kill()
  }

  async restart (): Promise<void> {
    await this.kill()
    await this.start()
  }

  explains (): boolean {
    return false
  }

  async end (): Promise<void> {
    for (const host of this.#hosts.slice(-2)) await host.kill()
  }
}

/** The server of an engine, under one gateway. */
class EngineVictim implements Victim {
  readonly #engine: Engine
  readonly #gateways: Gateways
  readonly #windows: LossWindows
  #hasGateway = false

  constructor (engine: Engine, gateways: Gateways, windows: LossWindows) {
    this.#engine = engine
    this.#gateways = gateways
    this.#windows = windows
  }

  async start (): Promise<void> {
    if (this.#hasGateway) await this.#engine.server!.start()
    else await this.#gateways.start()
    this.#hasGateway = true
    this.#gateways.expect()
  }

  async kill (): Promise<void> {
    const began = performance.now()
    await this.#engine.server!.stop('SIGKILL')
    this.#windows.addKill(began, this.#engine.lossWindow)
  }

  explains (fault: string): boolean {
    return !UNCAUGHT.test(fault)
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

function sumOf (lanes: Lane[], windows?: LossWindows): LaneResult {
  const [first, ...others] = lanes.map(lane => lane.result(windows)) as [LaneResult, ...LaneResult[]]
  for (const other of others) for (const what of Object.keys(first) as Array<keyof LaneResult>) first[what] += other[what]
  return first
}

function describe ({ acknowledged, retried, dropped, lost, neverAttempted, outOfOrder, twice, ...losses }: LaneResult): string {
  return `${acknowledged} acknowledged, ${retried} retried with unknown outcome, ${dropped} redeliveries dropped by the SDK; ` +
    `lost ${lost}, never attempted but seen ${neverAttempted}, out of order ${outOfOrder}, seen twice by the application ${twice}${describeLosses(losses)}`
}

// The gateway.

async function prepare (access: EngineAccess): Promise<HostedApp> {
  const app = quietApp({ push: reportFault })
  const engine = await openEngine(access)
  await app.register(devices, engine)
  const commands = {
    /** Number of letters by status. */
    async receipts (letters: Record<string, string[]>): Promise<Record<string, number>> {
      const statuses: string[] = []
      for (const [deviceId, ids] of Object.entries(letters)) {
        for (const id of ids) statuses.push((await engine.mailbox.receipt(deviceId, id))?.status ?? 'none')
      }
      return countByName(statuses)
    }
  }
  return { app, commands }
}

await command(import.meta.url, { kills: 500, seed: SEED, victim: 'gateway', engine: 'disk', fsync: 'always' }, kill, prepare)
