import { setTimeout as sleep } from 'node:timers/promises'
import type { AddressInfo } from 'node:net'
import type { FastifyInstance } from 'fastify'
import devices, { localBackplane, type Backplane } from '../../lib/index.ts'
import { createWorker, type Worker } from '../../lib/workers/worker.ts'
import { severable } from '../severable.ts'
import { connect, type TestDevice } from '../support.ts'
import { command, lanes, Verdict, type Outcome } from './campaign.ts'
import { quietApp } from './host.ts'

/** A worker has started a request of a device. */
export interface WorkStart {
  worker: string
  deviceId: string
  number: number
}

/** A running worker, in this process or another. */
export interface WorkerHandle {
  /** Closes the worker gracefully. */
  close (): Promise<void>
  /** Ends the worker abruptly. */
  kill (): Promise<void>
}

/** Joins gateways and workers, in one process or several. */
export interface Deployment {
  /** The backplane of a gateway. */
  openBackplane (): Promise<Backplane>
  /** Starts a worker; resolves once the gateways have discovered it. */
  startWorker (name: string, begun: (run: WorkStart) => void): Promise<WorkerHandle>
}

interface Size extends Record<string, number> {
  devices: number
  rounds: number
}

/** The result, the error code, or undefined without an answer. */
type Answer = { result: unknown } | { code: number } | undefined

const GATEWAYS = 2
const WIDTH = 20
const WORK_MS = 20
const DROPPED = -32_003
const ANSWER_TIMEOUT_MS = 30_000
/** The requests that a device sends at once in each round. */
const ROUND = ['quick', 'message', 'slow', 'quick', 'message', 'slow']

/** Registers the handlers of this campaign. */
export function addHandlers (worker: Worker, name: string, begun: (run: WorkStart) => void): void {
  const begin = (deviceId: string, asked: unknown) => begun({ worker: name, deviceId, number: (asked as { number: number }).number })
  worker.handle('quick', (params, { device }) => {
    begin(device.id, params)
    return name
  })
  worker.handle('slow', async (params, { device }) => {
    begin(device.id, params)
    await sleep(WORK_MS)
    return name
  })
  worker.on('message', (data, device) => begin(device.id, data))
}

/** Gateways and workers in this process. A killed worker is cut off from the backplane. */
export function inProcess (): Deployment {
  const shared = localBackplane()
  return {
    openBackplane: async () => shared,
    async startWorker (name, begun) {
      const { backplane, cut } = severable(shared)
      const worker = await createWorker({ backplane })
      addHandlers(worker, name, begun)
      return { close: () => worker.close(), kill: cut }
    }
  }
}

/** Three workers; one is killed, one is added, one closes: no request is out of order, lost without an error, or executed twice. */
export async function workers ({ devices: count, rounds }: Size, { openBackplane, startWorker }: Deployment = inProcess()): Promise<Outcome> {
  const verdict = new Verdict()
  const errors: string[] = []
  const gateways = await Promise.all(Array.from({ length: GATEWAYS }, async () => await serve(await openBackplane(), errors)))
  const fleet = new DeviceFleet(gateways)
  const handles = new Map<string, WorkerHandle>()
  const add = async (name: string) => { handles.set(name, await startWorker(name, run => fleet.begun(run))) }
  for (const name of ['a', 'b', 'c']) await add(name)

  const first = await fleet.connect('device', count)
  await fleet.ask(rounds)
  const of = (worker: string) => first.filter(({ workers }) => workers[0] === worker)
  const [ofA, ofB, ofC] = [of('a'), of('b'), of('c')]
  verdict.same('devices of each worker', [ofA.length, ofB.length, ofC.length], [count / 3, count / 3, count / 3])
  verdict.same('devices that more than one worker had', first.filter(({ workers }) => workers.length > 1).length, 0)
  verdict.same('errors while nothing happened', fleet.errors, [])

  await Promise.all([fleet.ask(rounds), fleet.halfway(rounds, 'b').then(() => handles.get('b')!.kill())])
  const dropped = fleet.errors.length
  verdict.same('errors that are not "dropped"', fleet.errors.filter(code => code !== DROPPED), [])
  verdict.holds('the kill met something under way', dropped > 0)
  verdict.same('errors of devices whose worker was not killed', [...ofA, ...ofC].flatMap(({ errors }) => errors), [])
  await fleet.ask(1)
  verdict.same('devices still with the worker that was killed', ofB.filter(({ workers }) => workers.at(-1) === 'b').length, 0)

  const before = first.map(({ workers }) => workers.length)
  await add('d')
  const fresh = await fleet.connect('fresh', count / 10)
  await fleet.ask(rounds)
  verdict.same('devices that changed their worker because one came', first.filter(({ workers }, at) => workers.length > before[at]!).length, 0)
  const taken = fresh.filter(({ workers }) => workers[0] === 'd').length
  verdict.holds(`its share of ${fresh.length} new devices for the worker that came, and not ${taken}`, Math.abs(taken - fresh.length / 3) <= GATEWAYS)

  await Promise.all([fleet.ask(rounds), fleet.halfway(rounds, 'a').then(() => handles.get('a')!.close())])
  await fleet.ask(1)
  verdict.same('errors because a worker left', fleet.errors.length - dropped, 0)
  verdict.same('devices still with the worker that left', fleet.all.filter(({ workers }) => workers.at(-1) === 'a').length, 0)

  verdict.same('what was asked and never answered', fleet.all.flatMap(({ unanswered }) => unanswered), [])
  verdict.same('devices whose order was not kept, or that had something done twice', fleet.all.filter(({ isInOrder }) => !isInOrder).length, 0)
  verdict.same('answered, and never done', fleet.all.flatMap(({ unfounded }) => unfounded), [])
  for (const { device } of fleet.all) await device.close()
  for (const app of gateways) await app.close()
  for (const name of ['c', 'd']) await handles.get(name)!.close()
  verdict.same('errors in the log', errors, [])
  return {
    line: `workers: ${fleet.all.length} devices at ${GATEWAYS} gateways and 3 workers, one killed, one added, one left; ${fleet.asked} calls and messages, ` +
      `${fleet.runs} begun, ${dropped} failed as dropped when the worker was killed, 0 otherwise; the added worker had ${taken} of ${fresh.length} new devices`,
    wrong: verdict.wrong
  }
}

async function serve (backplane: Backplane, errors: string[]): Promise<FastifyInstance> {
  const app = quietApp(errors)
  await app.register(devices, { backplane, rate: 1_000_000_000, burst: 1_000_000_000 })
  await app.listen({ port: 0, host: '127.0.0.1' })
  return app
}

/** All devices, and the requests that workers have started for them. */
class DeviceFleet {
  readonly all: Caller[] = []
  runs = 0
  readonly #gateways: FastifyInstance[]
  readonly #byId = new Map<string, Caller>()
  #onWorkStart: (run: WorkStart) => void = () => {}

  constructor (gateways: FastifyInstance[]) {
    this.#gateways = gateways
  }

  get asked (): number {
    return this.all.reduce((sum, { outcomes }) => sum + outcomes.length, 0)
  }

  get errors (): number[] {
    return this.all.flatMap(({ errors }) => errors)
  }

  async connect (name: string, count: number): Promise<Caller[]> {
    const come = this.all.length
    await lanes(count, WIDTH, async number => {
      const { port } = this.#gateways[number % this.#gateways.length]!.server.address() as AddressInfo
      const id = `${name}-${number}`
      const caller = new Caller(await connect(`http://127.0.0.1:${port}`, id))
      this.#byId.set(id, caller)
      this.all.push(caller)
    })
    return this.all.slice(come)
  }

  begun (run: WorkStart): void {
    const { worker, deviceId, number } = run
    this.runs++
    this.#byId.get(deviceId)!.begun.push({ worker, number })
    this.#onWorkStart(run)
  }

  /** Every device sends its requests; resolves with the last answer. */
  async ask (rounds: number): Promise<void> {
    await Promise.all(this.all.map(async caller => {
      for (let round = 0; round < rounds; round++) await caller.ask()
    }))
  }

  /** Resolves when half of the requests of the rounds have started, and the `busy` worker has started a slow one. */
  async halfway (rounds: number, busy: string): Promise<void> {
    const enough = this.runs + this.all.length * rounds * ROUND.length / 2
    await new Promise<void>(resolve => {
      this.#onWorkStart = ({ worker, number }) => {
        if (this.runs >= enough && worker === busy && ROUND[number % ROUND.length] === 'slow') resolve()
      }
    })
  }
}

/** A device that numbers its requests. */
class Caller {
  readonly device: TestDevice
  readonly outcomes: Answer[] = []
  readonly begun: Array<Omit<WorkStart, 'deviceId'>> = []

  constructor (device: TestDevice) {
    this.device = device
  }

  async ask (): Promise<void> {
    await Promise.all(ROUND.map(async method => {
      const number = this.outcomes.push(undefined) - 1
      const params = method === 'message' ? { data: { number } } : { number }
      const answer = await Promise.race([this.device.ask(method, params), sleep(ANSWER_TIMEOUT_MS, undefined, { ref: false })])
      if (answer) this.outcomes[number] = answer.error ? { code: answer.error.code } : { result: answer.result }
    }))
  }

  get errors (): number[] {
    return this.outcomes.flatMap(outcome => outcome && 'code' in outcome ? [outcome.code] : [])
  }

  get unanswered (): number[] {
    return this.outcomes.flatMap((outcome, number) => outcome ? [] : [number])
  }

  /** The workers of this device, in the order of its requests. */
  get workers (): string[] {
    return [...this.#byWorker.keys()]
  }

  /** The numbers grow within each worker and from one worker to the next. */
  get isInOrder (): boolean {
    const numbers = [...this.#byWorker.values()].flat()
    return numbers.every((number, at) => at === 0 || number > numbers[at - 1]!)
  }

  /** Requests that were answered although no worker, or another one, had started them. */
  get unfounded (): number[] {
    const by = new Map(this.begun.map(({ worker, number }) => [number, worker]))
    return this.outcomes.flatMap((outcome, number) => {
      if (!outcome || 'code' in outcome) return []
      const isMessage = ROUND[number % ROUND.length] === 'message'
      return by.has(number) && (isMessage || by.get(number) === outcome.result) ? [] : [number]
    })
  }

  /** Numbers of the requests that each worker started. Across processes only the numbers show which worker was first. */
  get #byWorker (): Map<string, number[]> {
    const found = new Map<string, number[]>()
    for (const { worker, number } of this.begun) found.set(worker, [...found.get(worker) ?? [], number])
    return new Map([...found].toSorted(([, [one]], [, [other]]) => one! - other!))
  }
}

await command(import.meta.url, { devices: 300, rounds: 20 }, workers)
