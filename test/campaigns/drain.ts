import { setTimeout as sleep } from 'node:timers/promises'
import devices from '../../lib/index.ts'
import { settingsOf } from '../../lib/gateway/options.ts'
import { connect, refusal, request, until, type TestDevice } from '../support.ts'
import { command, lanes, Verdict, type Outcome } from './campaign.ts'
import { Host, quietApp, type HostedApp } from './host.ts'
import { RawDevice, type CloseNotice } from './raw.ts'

interface Size extends Record<string, number> {
  devices: number
  drainTimeout: number
  closeTimeout: number
}

/** How long `app.close()` took, and whether it failed. */
interface CloseResult {
  milliseconds: number
  error: string | null
}

const LEAVING_CODE = 1012
const RETRY_SPREAD_MS = 10_000
const WIDTH = 50
/** Devices of each kind: some answer a call once the drain has begun, some never answer it, some wait for an answer of the server, some never answer the close frame. */
const DEVICES_PER_KIND = 10
/** The time that the answers of the server take from the start of the drain. */
const WORK_MS = 100
/** After this multiple of `drainTimeout`, the process exits. */
const TIMEOUT_FACTOR = 2
const NOT_CLOSED = 'it did not close'
/** `app.close()` may take this multiple of `drainTimeout`. */
const TOLERANCE_FACTOR = 1.1

/** `app.close()`: every device gets a close frame with a reconnect delay of its own, calls finish or fail with their code, and the process ends. */
export async function drain ({ devices: count, drainTimeout, closeTimeout }: Size): Promise<Outcome> {
  const verdict = new Verdict()
  const host = await Host.start(import.meta.url, { drainTimeout, closeTimeout })
  const fleet = new DeviceFleet(host)
  await fleet.connect(count - DEVICES_PER_KIND)
  await fleet.connectMute(DEVICES_PER_KIND)
  const { answered, dropped, asked } = await fleet.startCalls()

  const unanswered = { status: 0 }
  const late = fleet.drained.then(() => refusal(host.url, '/ws?deviceId=late')).catch(() => unanswered)
  const draining: Promise<CloseResult> = host.ask('drain')
  const notices = await fleet.closeNotices()
  const { milliseconds, error } = await draining
  const began = performance.now()
  const exit = await host.ended
  const lingered = Math.round(performance.now() - began)

  const retries = new Set(notices.map(({ reason }) => reason))
  verdict.same('devices that got a close frame', notices.length, count)
  verdict.same('close frames without a reconnect delay', notices.filter(({ code, reason }) => code !== LEAVING_CODE || !isRetry(reason)), [])
  verdict.holds('the reconnect delays are spread', retries.size > count * 0.9)
  verdict.same('calls that a device answered in time', await answered, Array.from({ length: DEVICES_PER_KIND }, () => '200 "done"'))
  verdict.same('calls that no device answered', await dropped, Array.from({ length: 1.5 * DEVICES_PER_KIND }, () => '502 "DEVICE_DROPPED"'))
  verdict.same('answers to devices', await asked, Array.from({ length: DEVICES_PER_KIND }, () => 'done'))
  verdict.same('status for a device that connects during the drain', (await late).status, 503)
  verdict.same('error of close', error, null)
  verdict.within('milliseconds to close', milliseconds, drainTimeout * TOLERANCE_FACTOR)
  verdict.same('uncaught errors', host.faults, [])
  verdict.same('exit', exit, { code: 0, signal: null })
  return {
    line: `drain: ${count} devices, ${DEVICES_PER_KIND} of them mute, ${3.5 * DEVICES_PER_KIND} calls in flight; closed in ${milliseconds} ms of ${drainTimeout}, ` +
      `the process ended ${lingered} ms later with ${exit.code}; ${notices.length} told ${LEAVING_CODE}, ${retries.size} different times to come back; ` +
      `calls: ${(await answered).length} answered, ${(await dropped).length} dropped, ${(await asked).length} of devices answered`,
    wrong: verdict.wrong
  }
}

function isRetry (reason: string): boolean {
  const [, milliseconds] = reason.match(/^retry=(\d+)$/) ?? []
  return milliseconds !== undefined && Number(milliseconds) < RETRY_SPREAD_MS
}

/** All devices of the host, and their calls. */
class DeviceFleet {
  /** Resolves once the first device is closed. */
  readonly drained: Promise<unknown>
  readonly #host: Host
  readonly #devices: TestDevice[] = []
  readonly #mute: RawDevice[] = []
  #called = 0
  #drained!: () => void

  constructor (host: Host) {
    this.#host = host
    this.drained = new Promise<void>(resolve => { this.#drained = resolve })
  }

  async connect (count: number): Promise<void> {
    await lanes(count, WIDTH, async number => {
      const device = await connect(this.#host.url, `device-${number}`)
      this.#devices[number] = device
      void device.closed.then(this.#drained)
    })
  }

  async connectMute (count: number): Promise<void> {
    for (let number = 0; number < count; number++) {
      const device = await RawDevice.connect(this.#host.url, `mute-${number}`)
      device.onMessage = ({ method }) => { if (method === 'work') this.#called++ }
      this.#mute.push(device)
    }
  }

  /** Starts calls in both directions; resolves once all have arrived. */
  async startCalls (): Promise<Record<'answered' | 'dropped' | 'asked', Promise<string[]>>> {
    for (const [number, device] of this.#devices.slice(0, 2 * DEVICES_PER_KIND).entries()) {
      void this.#answerCall(device, number < DEVICES_PER_KIND)
    }
    const called = (name: string, from: number, to: number) => Array.from({ length: to - from }, (_, at) => this.#call(`${name}-${from + at}`))
    const answered = Promise.all(called('device', 0, DEVICES_PER_KIND))
    const dropped = Promise.all([...called('device', DEVICES_PER_KIND, 2 * DEVICES_PER_KIND), ...called('mute', 0, DEVICES_PER_KIND / 2)])
    const asked = Promise.all(this.#devices.slice(2 * DEVICES_PER_KIND, 3 * DEVICES_PER_KIND).map(device => ask(device)))
    await until(async () => this.#called === 2.5 * DEVICES_PER_KIND && await this.#host.ask('working') === DEVICES_PER_KIND)
    return { answered, dropped, asked }
  }

  /** The close notice of each device. */
  async closeNotices (): Promise<CloseNotice[]> {
    const untold = { code: 1006, reason: '' }
    const mute = this.#mute.map(({ closed, ended }) => Promise.race([closed, ended.then(() => untold)]))
    return await Promise.all([...this.#devices.map(({ closed }) => closed), ...mute])
  }

  async #answerCall (device: TestDevice, willAnswer: boolean): Promise<void> {
    const { id } = await device.next(({ method }) => method === 'work')
    this.#called++
    if (!willAnswer) return
    await this.drained
    device.send({ jsonrpc: '2.0', id: id!, result: 'done' })
  }

  async #call (deviceId: string): Promise<string> {
    try {
      const { status, body } = await request(this.#host, 'POST', `/devices/${deviceId}/calls/work?timeout=120`)
      return `${status} ${JSON.stringify(body.code ?? body)}`
    } catch (error) {
      return (error as Error).message
    }
  }
}

/** The result, or the close code if the connection ended first. */
async function ask (device: TestDevice): Promise<string> {
  const answer = device.ask('work').then(({ result }) => result as string)
  return await Promise.race([answer, device.closed.then(({ code }) => `closed with ${code}`)])
}

// The server.

async function prepare (limits: { drainTimeout: number, closeTimeout: number }): Promise<HostedApp> {
  const app = quietApp()
  await app.register(devices, { ...limits, retrySpread: RETRY_SPREAD_MS })
  let working = 0
  let leave: () => void
  const leaving = new Promise<void>(resolve => { leave = resolve })
  app.devices.handle('work', async () => {
    working++
    await leaving
    await sleep(WORK_MS)
    return 'done'
  })
  const commands = {
    working: () => working,
    async drain (): Promise<CloseResult> {
      const began = performance.now()
      leave()
      const closed = app.close().then(() => null, (reason: Error) => reason.message)
      const error = await Promise.race([closed, sleep(TIMEOUT_FACTOR * limits.drainTimeout, NOT_CLOSED, { ref: false })])
      if (error === NOT_CLOSED) setImmediate(() => process.exit(3))
      return { milliseconds: Math.round(performance.now() - began), error }
    }
  }
  return { app, commands }
}

const { drainTimeout, closeTimeout } = settingsOf({})
await command(import.meta.url, { devices: 1_000, drainTimeout, closeTimeout }, drain, prepare)
