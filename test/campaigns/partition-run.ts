import { readdirSync } from 'node:fs'
import { monitorEventLoopDelay } from 'node:perf_hooks'
import { setTimeout as sleep } from 'node:timers/promises'
import { seededRandom, type Outcome } from './campaign.ts'
import { describeLosses } from './letter-tally.ts'
import { enterConfinement } from './namespaces.ts'
import { Callers } from './partition-callers.ts'
import { BareDevice, ClientDevice, type Device } from './partition-device.ts'
import { NODES } from './partition-engine.ts'
import { sequence, inflict } from './partition-faults.ts'
import { Judge } from './partition-judge.ts'
import { Site } from './partition-site.ts'

/** The settings of a partition campaign in its namespaces. */
export interface RunSettings {
  engine: string
  devices: number
  seed: number
  /** The kinds of faults to choose from. */
  kinds: string[]
  faults: number
  /** Maximum milliseconds of a fault. */
  longest: number
  /** Milliseconds for which the judge keeps polling after a violation. */
  patience: number
  /** The folder of the logs. */
  logs: string
}

const DEVICES_PER_BARE_DEVICE = 10
/** One of this many devices moves each second. */
const SECONDS_PER_MOVE = 15
const SILENT_SHARE = 0.4
const POLL_INTERVAL_MS = 100
const CONNECT_TIMEOUT_MS = 60_000
const END_TIMEOUT_MS = 5_000

async function run ({ engine, devices: count, seed, kinds: among, faults, longest, patience, logs }: RunSettings, tell: (line: string) => void): Promise<Outcome> {
  const [random, chosen] = [seededRandom(seed), seededRandom(seed + 1)]
  const wrong: string[] = []
  const site = await Site.build(engine, logs)
  const delay = monitorEventLoopDelay()
  delay.enable()
  const gateways = { pick: () => ((name: string) => ({ name, url: site.url(name) }))(NODES[Math.floor(random() * NODES.length)]!) }
  const devices: Device[] = Array.from({ length: count }, (_, at) => at % DEVICES_PER_BARE_DEVICE === 0 ? new BareDevice(`device-${at}`, gateways) : new ClientDevice(`device-${at}`, gateways))
  const callers = new Callers(site, devices, random)
  const judge = new Judge(site, devices, callers, patience)
  const movement = new Movement(devices, random)

  await until(() => devices.every(({ at }) => at !== undefined), CONNECT_TIMEOUT_MS)
  callers.start()
  const settling: number[] = []
  for (const [at, kind] of sequence(faults, among, chosen).entries()) {
    movement.start()
    const what = await inflict(kind, site, longest, chosen)
    await site.restartNodes()
    const healthy = await site.healthy()
    movement.stop()
    const { wrong: found, took } = await judge.afterFault()
    settling.push(took)
    tell(`${String(at + 1).padStart(2)} ${what}; ${healthy}, true after ${seconds(took)}${found.map(one => `\n   wrong: ${one}`).join('')}`)
    if (found.length > 0) wrong.push(`fault ${at + 1}, ${kind}: ${found[0]}${found.length > 1 ? `, and ${found.length - 1} more` : ''}`)
  }

  wrong.push(...await callers.stop(patience))
  wrong.push(...await judge.afterAll())
  for (const device of devices) device.close()
  wrong.push(...await judge.leftOver())
  await site.close()
  wrong.push(...await judge.news())
  await until(() => processes().length === 0, END_TIMEOUT_MS)
  for (const one of processes()) wrong.push(`process ${one} is left`)
  const letters = devices.reduce((sum, device) => sum + callers.posts.get(device)!.acknowledged.size, 0)
  return {
    line: `partition: ${site.engine.title}, ${count} devices that moved ${movement.moves} times, ${faults} faults, seed ${seed}; ${letters} letters acknowledged to their senders, ` +
      `${devices.reduce((sum, { seen }) => sum + seen.letters.length, 0)} seen, ${callers.done.size} calls and messages answered by devices; the list true after ${seconds(Math.max(...settling))} at most; ` +
      `the judge itself held up by ${Math.round(delay.percentile(99) / 1e6)} ms (99 %), ${Math.round(delay.max / 1e6)} ms at most; ${site.engine.figures()}${describeLosses(judge.tally())}; the slowest answers in ms ${JSON.stringify(callers.slowest)}; answers ${JSON.stringify(callers.outcomes)}; logged ${JSON.stringify(site.logged())}`,
    wrong
  }
}

/** Moves random devices from one gateway to another. */
class Movement {
  moves = 0
  readonly #devices: Device[]
  readonly #random: () => number
  #timer: NodeJS.Timeout | undefined

  constructor (devices: Device[], random: () => number) {
    this.#devices = devices
    this.#random = random
  }

  start (): void {
    this.#timer ??= setInterval(() => this.#move(), 1_000 * SECONDS_PER_MOVE / this.#devices.length)
  }

  stop (): void {
    clearInterval(this.#timer)
    this.#timer = undefined
  }

  #move (): void {
    this.moves++
    this.#devices[Math.floor(this.#random() * this.#devices.length)]!.move(this.#random() < SILENT_SHARE)
  }
}

async function until (holds: () => boolean, within: number): Promise<void> {
  for (const late = performance.now() + within; !holds() && performance.now() < late;) await sleep(POLL_INTERVAL_MS)
}

/** Processes in the namespace, except this one. */
function processes (): string[] {
  return readdirSync('/proc').filter(name => /^\d+$/.test(name) && Number(name) !== process.pid)
}

function seconds (milliseconds: number): string {
  return `${(milliseconds / 1_000).toFixed(1)} s`
}

await enterConfinement(run)
