import { mkdtemp, readdir, rm, stat } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { monitorEventLoopDelay } from 'node:perf_hooks'
import { Failure } from '../../lib/protocol/errors.ts'
import devices, { type Devices } from '../../lib/index.ts'
import { diskMailbox } from '../../lib/storage/disk/index.ts'
import { command, settled, Verdict, type Outcome } from './campaign.ts'
import { reportFault, Host, quietApp, type HostedApp } from './host.ts'

interface Size extends Record<string, number> {
  /** Letters a second. */
  rate: number
  seconds: number
  /** Limits in milliseconds: excess time for all sends, lateness of expiry, delay of the event loop. */
  over: number
  behind: number
  delay: number
}

/** Counts of the server so far. */
interface Figures {
  sent: number
  refused: number
  expired: number
  /** Letters queued, and receipts of the sample still stored. */
  waiting: number
  receipts: number
  /** Milliseconds since the oldest of them was due: now, and the maximum so far. */
  late: number
  latest: number
}

interface Delay {
  p50: number
  p99: number
  most: number
}

const TTL_MS = 2_000
const KEEP_RECEIPTS_MS = 5_000
const DEVICES = 10_000
const TICK_MS = 10
/** One of this many receipts is polled until it is gone. */
const RECEIPTS_PER_SAMPLE = 50
/** Maximum sends waiting for the disk; beyond it, the sender waits. */
const MAX_SENDS_IN_FLIGHT = 5_000
const GONE_TIMEOUT_MS = 20_000
const NANOSECONDS_PER_MS = 1e6
const MiB = 1_048_576
/** Maximum size of a folder without letters. */
const IDLE_BYTES = MiB

/** Thousands of letters a second that no device fetches: each expires in time, its receipt is deleted in time, and the files shrink afterwards. */
export async function backlog ({ rate, seconds, over, behind, delay: mostDelay }: Size): Promise<Outcome> {
  const verdict = new Verdict()
  const path = await mkdtemp(join(tmpdir(), 'backlog-'))
  const host = await Host.start(import.meta.url, { path })
  let most = 0
  const measuring = setInterval(async () => { most = Math.max(most, await sizeOf(path)) }, 1_000)
  const since = performance.now()
  const atEnd: Figures = await host.ask('send', { rate, count: rate * seconds })
  const took = Math.round(performance.now() - since)
  const { p50, p99, most: longest }: Delay = await host.ask('delay')
  clearInterval(measuring)

  const left = async () => {
    const { waiting, receipts }: Figures = await host.ask('figures')
    return { waiting, receipts }
  }
  verdict.same('what is left', await settled(left, { waiting: 0, receipts: 0 }, GONE_TIMEOUT_MS), { waiting: 0, receipts: 0 })
  const shrunk = await settled(async () => await sizeOf(path) <= IDLE_BYTES, true, GONE_TIMEOUT_MS)
  const last: Figures = await host.ask('figures')
  verdict.same('letters refused', last.refused, 0)
  verdict.same('letters that expired', last.expired, last.sent)
  verdict.same('letters by outcome', await host.ask('outcomes'), { queued: last.sent, expired: last.sent })
  verdict.within('milliseconds to send them', took, seconds * 1_000 + over)
  verdict.within('milliseconds behind at the end', atEnd.late, behind)
  verdict.within('milliseconds behind at most', last.latest, behind)
  verdict.within('milliseconds of delay of the event loop, p99', p99, mostDelay)
  const size = await sizeOf(path)
  verdict.holds(`the files shrank from ${megabytes(most)} to ${megabytes(size)} only`, shrunk)
  verdict.same('exit', await host.stop(), { code: 0, signal: null })
  verdict.same('faults and error logs', host.faults, [])
  await rm(path, { recursive: true })
  return {
    line: `backlog: ${last.sent} letters in ${took} ms, of which each expired after ${TTL_MS} ms and its receipt was forgotten after ${KEEP_RECEIPTS_MS} ms more; ` +
      `${atEnd.late} ms behind at the end, ${last.latest} ms at most; delay of the event loop p50 ${p50} ms, p99 ${p99} ms, at most ${longest} ms; ` +
      `files ${megabytes(most)} at most, ${megabytes(size)} in the end`,
    wrong: verdict.wrong
  }
}

async function sizeOf (path: string): Promise<number> {
  let size = 0
  for (const name of await readdir(path)) size += (await stat(join(path, name)).catch(() => ({ size: 0 }))).size // a file may be deleted meanwhile
  return size
}

function megabytes (size: number): string {
  return `${(size / MiB).toFixed(1)} MiB`
}

// The server sends by itself: a client process would compete with the disk threads for the second core.

class Sender {
  readonly #devices: Devices
  /** Expiry of each queued letter, by id; oldest first. */
  readonly #waiting = new Map<string, number>()
  /** Receipts of the sample, and when they are due for deletion; oldest first. */
  readonly #receipts: Array<{ deviceId: string, id: string, dueAt: number }> = []
  #isChecking = false
  #sent = 0
  #refused = 0
  #expired = 0
  #inFlight = 0
  #maxLateness = 0

  constructor (devices: Devices) {
    this.#devices = devices
    devices.on('expired', ({ deviceId, id }) => {
      this.#expired++
      this.#waiting.delete(id)
      if (this.#expired % RECEIPTS_PER_SAMPLE === 0) this.#receipts.push({ deviceId, id, dueAt: Date.now() + KEEP_RECEIPTS_MS })
    })
    setInterval(() => void this.#checkReceipts(), TICK_MS).unref()
  }

  async send (rate: number, count: number): Promise<Figures> {
    const since = performance.now()
    while (this.#sent < count) {
      const due = Math.min(Math.ceil((performance.now() - since) / 1_000 * rate), count)
      while (this.#sent < due && this.#inFlight < MAX_SENDS_IN_FLIGHT) void this.#put(this.#sent++)
      await new Promise(resolve => setTimeout(resolve, TICK_MS))
    }
    return this.figures
  }

  get figures (): Figures {
    const late = this.#lateness
    return {
      sent: this.#sent, refused: this.#refused, expired: this.#expired, waiting: this.#waiting.size, receipts: this.#receipts.length,
      late, latest: Math.max(this.#maxLateness, late)
    }
  }

  get #lateness (): number {
    const [expiresAt = Infinity] = this.#waiting.values()
    const oldest = Math.min(expiresAt, this.#receipts[0]?.dueAt ?? Infinity)
    return Math.max(Math.round(Date.now() - oldest), 0)
  }

  async #put (number: number): Promise<void> {
    this.#inFlight++
    try {
      const { id } = await this.#devices.send(`device-${number % DEVICES}`, { number, filling: 'x'.repeat(100) }, { ttl: TTL_MS })
      this.#waiting.set(id, Date.now() + TTL_MS)
    } catch {
      this.#refused++
    }
    this.#inFlight--
  }

  /** Removes the receipts that are gone. */
  async #checkReceipts (): Promise<void> {
    if (this.#isChecking) return
    this.#isChecking = true
    for (let oldest = this.#receipts[0]; oldest && oldest.dueAt < Date.now() && await this.#isGone(oldest); oldest = this.#receipts[0]) this.#receipts.shift()
    this.#maxLateness = Math.max(this.#maxLateness, this.#lateness)
    this.#isChecking = false
  }

  async #isGone ({ deviceId, id }: { deviceId: string, id: string }): Promise<boolean> {
    try {
      await this.#devices.receipt(deviceId, id)
      return false
    } catch (error) {
      if (error instanceof Failure && error.reason === 'unknown-message') return true
      throw error
    }
  }
}

async function prepare ({ path }: { path: string }): Promise<HostedApp> {
  const app = quietApp({ push: reportFault })
  await app.register(devices, { mailbox: await diskMailbox({ path, keepReceipts: KEEP_RECEIPTS_MS }) })
  const sender = new Sender(app.devices)
  const delay = monitorEventLoopDelay({ resolution: 1 })
  const milliseconds = (nanoseconds: number) => Math.round(nanoseconds / NANOSECONDS_PER_MS)
  const commands = {
    async send ({ rate, count }: { rate: number, count: number }) {
      delay.enable()
      const figures = await sender.send(rate, count)
      delay.disable()
      return figures
    },
    delay: (): Delay => ({ p50: milliseconds(delay.percentile(50)), p99: milliseconds(delay.percentile(99)), most: milliseconds(delay.max) }),
    figures: () => sender.figures,
    outcomes: () => app.devices.stats().letters
  }
  return { app, commands }
}

await command(import.meta.url, { rate: 10_000, seconds: 60, over: 1_000, behind: 2_000, delay: 50 }, backlog, prepare)
