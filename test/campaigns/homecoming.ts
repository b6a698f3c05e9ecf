import { mkdtemp, rm } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { monitorEventLoopDelay } from 'node:perf_hooks'
import { diskMailbox } from '../../lib/storage/disk/index.ts'
import devices from '../../lib/index.ts'
import { command, lanes, settled, Verdict, type Outcome } from './campaign.ts'
import { Host, quietApp, type HostedApp } from './host.ts'
import { RawDevice } from './raw.ts'

interface Size extends Record<string, number> {
  devices: number
  letters: number
}

interface Delay {
  p50: number
  p99: number
  most: number
}

const WIDTH = 256
/** The accept backlog of the system. */
const ACCEPT_BACKLOG = 511
const TIMEOUT_MS = 5 * 60_000
const NANOSECONDS_PER_MS = 1e6
const RESOLUTION_MS = 1
const TTL_MS = 86_400_000

/** Devices with queued letters reconnect at the same time: every letter arrives once and in order, and the event loop stays responsive. */
export async function homecoming ({ devices: count, letters }: Size): Promise<Outcome> {
  const verdict = new Verdict()
  const path = await mkdtemp(join(tmpdir(), 'homecoming-'))
  const host = await Host.start(import.meta.url, { path })
  await host.ask('put', { count, letters })
  await host.ask('watch')
  const since = performance.now()

  let [received, wrong] = [0, 0]
  const home: RawDevice[] = []
  await lanes(count, ACCEPT_BACKLOG, async number => {
    const device = home[number] = new RawDevice(host.url)
    let next = 0
    device.onMessage = ({ id, method, params }) => {
      if (method !== 'message') return
      if (params.data !== next++) wrong++
      received++
      device.send({ jsonrpc: '2.0', id, result: {} })
    }
    await device.join(`d${number}`)
  })
  await settled(() => host.ask('waiting'), 0, TIMEOUT_MS)
  const took = Math.round(performance.now() - since)
  const { p50, p99, most }: Delay = await host.ask('delay')

  verdict.same('letters received', received, count * letters)
  verdict.same('letters out of order', wrong, 0)
  verdict.same('letters by outcome', await host.ask('outcomes'), { queued: count * letters, delivered: count * letters })
  verdict.same('devices', await host.ask('sessions'), count)
  await lanes(count, WIDTH, async number => { home[number]!.socket.destroy() })
  verdict.same('exit', await host.stop(), { code: 0, signal: null })
  verdict.same('errors', host.faults, [])
  await rm(path, { recursive: true })
  return {
    line: `homecoming: ${count} devices with ${letters} letters each, all delivered in ${took} ms; delay of the event loop p50 ${p50} ms, p99 ${p99} ms, at most ${most} ms`,
    wrong: verdict.wrong
  }
}

// The server.

async function prepare ({ path }: { path: string }): Promise<HostedApp> {
  const app = quietApp()
  await app.register(devices, { mailbox: await diskMailbox({ path }) })
  const delay = monitorEventLoopDelay({ resolution: RESOLUTION_MS })
  const milliseconds = (nanoseconds: number) => Math.round(nanoseconds / NANOSECONDS_PER_MS)
  const commands = {
    async put ({ count, letters }: { count: number, letters: number }) {
      for (let data = 0; data < letters; data++) await lanes(count, WIDTH, async number => { await app.devices.send(`d${number}`, data, { ttl: TTL_MS }) })
    },
    watch: () => delay.enable(),
    delay: (): Delay => ({ p50: milliseconds(delay.percentile(50)), p99: milliseconds(delay.percentile(99)), most: milliseconds(delay.max) }),
    waiting: () => {
      const { queued = 0, delivered = 0 } = app.devices.stats().letters
      return queued - delivered
    },
    outcomes: () => app.devices.stats().letters,
    sessions: () => app.devices.size
  }
  return { app, commands }
}

await command(import.meta.url, { devices: 10_000, letters: 10 }, homecoming, prepare)
