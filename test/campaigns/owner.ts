import { once } from 'node:events'
import type { AddressInfo } from 'node:net'
import { setImmediate as turn } from 'node:timers/promises'
import type { FastifyInstance } from 'fastify'
import devices, { localBackplane, type Backplane, type Owner } from '../../lib/index.ts'
import { until } from '../support.ts'
import { seededRandom, command, Verdict, type Outcome } from './campaign.ts'
import { quietApp } from './host.ts'
import { RawDevice, upgradeRequest, type CloseNotice } from './raw.ts'

type CloseBehavior = 'answers at once' | 'answers late' | 'resets late' | 'sends, then answers late'

const RIVALS = 8
const REPLACED_CODE = 4509
const SEED = 8
const MAX_TURNS = 10
/** The behavior of the first connections when they are replaced; the others answer at once. */
const lateBehaviors: CloseBehavior[] = ['answers late', 'resets late', 'sends, then answers late']

interface ContestCounts {
  rounds: number
  replaced: number
  late: number
}

/** Eight concurrent connections with one id: exactly one survives, and late actions of the others do not affect it. */
export async function owner ({ rounds, seed }: { rounds: number, seed: number }): Promise<Outcome> {
  const verdict = new Verdict()
  const errors: string[] = []
  const app = quietApp(errors)
  // a long timeout, so that only the rivals themselves end an old connection
  await app.register(devices, { closeTimeout: 60_000, backplane: withRandomDelays(seededRandom(seed)) })
  const events = { connected: 0, disconnected: 0, strayed: 0 }
  app.devices.on('connected', () => { events.connected++ })
  app.devices.on('disconnected', () => { events.disconnected++ })
  app.devices.on('message', () => { events.strayed++ })
  await app.listen({ port: 0, host: '127.0.0.1' })

  const random = seededRandom(seed)
  const tally: ContestCounts = { rounds: 0, replaced: 0, late: 0 }
  for (let round = 0; round < rounds; round++) await contest(app, `owner-${round}`, random, tally, verdict)
  await until(() => app.devices.size === 0 && events.connected === events.disconnected)
  verdict.same('events that do not balance', events.connected - events.disconnected, 0)
  verdict.same('messages of old connections that were heard', events.strayed, 0)
  verdict.same('connections replaced', tally.replaced, rounds * (RIVALS - 1))
  verdict.same('errors', errors, [])
  await app.close()
  return {
    line: `owner: ${tally.rounds} rounds of ${RIVALS} (seed ${seed}); ${tally.replaced} got ${REPLACED_CODE}, ${tally.late} of them closed only after the survivor was found; ` +
      `${events.connected} connected, ${events.disconnected} disconnected; close codes ${JSON.stringify(app.devices.stats().closeCodes)}`,
    wrong: verdict.wrong
  }
}

async function contest (app: FastifyInstance, deviceId: string, random: () => number, tally: ContestCounts, verdict: Verdict): Promise<void> {
  const url = `http://127.0.0.1:${(app.server.address() as AddressInfo).port}`
  const rivals = Array.from({ length: RIVALS }, (_, number) => new Rival(url, number))
  await Promise.all(rivals.map(({ device }) => once(device.socket, 'connect')))
  for (const { device } of shuffled(rivals, random)) device.socket.write(upgradeRequest(deviceId))
  await Promise.all(rivals.map(({ device }) => device.opened))

  const gone = () => rivals.filter(({ closeNotice }) => closeNotice)
  await until(() => gone().length >= RIVALS - 1 && rivals.every(({ generation, closeNotice }) => generation > 0 || closeNotice))
  const survivors = rivals.filter(({ closeNotice }) => !closeNotice)
  verdict.same(`survivors of ${deviceId}`, survivors.length, 1)
  const [survivor] = survivors
  if (!survivor) return

  await verifyOwner(app, deviceId, survivor, `${deviceId} at first`, verdict)
  const late = gone().filter(({ behavior }) => behavior !== 'answers at once')
  for (const rival of late) {
    rival.actLate()
    await rival.device.ended
    await verifyOwner(app, deviceId, survivor, `${deviceId} after an older connection ${rival.behavior}`, verdict)
  }
  await Promise.all(gone().map(({ device }) => device.ended))
  await verifyOwner(app, deviceId, survivor, `${deviceId} in the end`, verdict)
  for (const { closeNotice } of gone()) verdict.same(`code for the replaced of ${deviceId}`, closeNotice!.code, REPLACED_CODE)

  tally.rounds++
  tally.replaced += gone().filter(({ closeNotice }) => closeNotice!.code === REPLACED_CODE).length
  tally.late += late.length
  survivor.device.answerClose(1000)
  await survivor.device.ended
}

/** Verifies that the session of the server is that of the survivor, and that the survivor answers. */
async function verifyOwner (app: FastifyInstance, deviceId: string, survivor: Rival, when: string, verdict: Verdict): Promise<void> {
  verdict.same(`generation of ${when}`, app.devices.get(deviceId)?.generation, survivor.generation)
  const answer = await app.devices.call(deviceId, 'who').catch((error: Error) => error.message)
  verdict.same(`who answers of ${when}`, answer, survivor.number)
}

/** Delays ownership of the newer connection and `yield` of the older one at random, so that either may come first. */
function withRandomDelays (random: () => number): Backplane {
  const backplane = localBackplane()
  const dawdle = async () => {
    const turns = random() < 0.5 ? 0 : random() * MAX_TURNS
    for (let passed = 0; passed < turns; passed++) await turn()
  }
  const slow = (owner: Owner): Owner => ({
    presence: owner.presence,
    answer: (request, signal) => owner.answer(request, signal),
    listensTo: topic => owner.listensTo(topic),
    yield: () => void dawdle().then(() => owner.yield())
  })
  return {
    ...backplane,
    async own (deviceId, owner) {
      const ownership = await backplane.own(deviceId, slow(owner))
      await dawdle()
      return ownership
    }
  }
}

/** One of the connections with the same id. */
class Rival {
  readonly number: number
  readonly device: RawDevice
  readonly behavior: CloseBehavior
  generation = 0
  closeNotice: CloseNotice | undefined

  constructor (url: string, number: number) {
    this.number = number
    this.device = new RawDevice(url)
    this.behavior = lateBehaviors[number] ?? 'answers at once'
    this.device.onMessage = message => this.#receive(message)
    void this.device.closed.then(notice => this.#onClose(notice))
  }

  /** Does what it delayed. */
  actLate (): void {
    const { socket } = this.device
    if (this.behavior === 'resets late') return void socket.resetAndDestroy()
    if (this.behavior === 'sends, then answers late') {
      this.device.send({ jsonrpc: '2.0', method: 'message', params: { data: 'too late' } })
      this.device.send({ jsonrpc: '2.0', id: 1, result: 'too late' })
    }
    this.device.answerClose(REPLACED_CODE)
  }

  #receive ({ id, method, params }: { id?: number, method?: string, params?: any }): void {
    if (method === 'welcome') this.generation = params.generation
    if (method === 'who') this.device.send({ jsonrpc: '2.0', id, result: this.number })
  }

  #onClose (notice: CloseNotice): void {
    this.closeNotice = notice
    if (this.behavior === 'answers at once') this.device.answerClose(notice.code)
  }
}

function shuffled<T> (things: T[], random: () => number): T[] {
  const drawn = things.map(thing => ({ thing, at: random() }))
  return drawn.toSorted((one, other) => one.at - other.at).map(({ thing }) => thing)
}

await command(import.meta.url, { rounds: 500, seed: SEED }, owner)
