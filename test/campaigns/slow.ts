import { once } from 'node:events'
import type { Socket } from 'node:net'
import { setImmediate as turn, setTimeout as sleep } from 'node:timers/promises'
import WebSocket from 'ws'
import type { FastifyInstance } from 'fastify'
import devices, { type Disconnect } from '../../lib/index.ts'
import { settingsOf } from '../../lib/gateway/options.ts'
import { command, lanes, settled, Verdict, type Outcome } from './campaign.ts'
import { Host, quietApp, type HostedApp } from './host.ts'
import { RawDevice } from './raw.ts'

/** The close code of a slow device, and the milliseconds from the stall to its end. */
interface SessionEnd {
  code: number
  after: number
}

interface BroadcastResult {
  rounds: number
  milliseconds: number
}

const SLOW_CODE = 4008
const WIDTH = 50
const INTERVAL_MS = 20
const MIN_ROUNDS = 50
/** More than the kernel still accepts once its buffers are full, less than `maxBuffered`. */
const STALLED_BYTES = 262_144
/** More than all buffers on the path hold. */
const FLOOD_BYTES = 256 * 1_048_576
const CHUNK = 'x'.repeat(16_384)
/** Tolerance for a busy machine. */
const TOLERANCE_MS = 1_000
/** Time for disconnected devices to read the close frame. */
const CLOSE_TIMEOUT_MS = 5_000

/** Devices that stop reading are disconnected in time, and the others lose no message. */
export async function slow ({ devices: count, stallTimeout }: { devices: number, stallTimeout: number }): Promise<Outcome> {
  const verdict = new Verdict()
  const host = await Host.start(import.meta.url, { stallTimeout })
  const readers = new Readers()
  await lanes(count, WIDTH, number => readers.join(host.url, `reader-${number}`))

  const beside: Promise<BroadcastResult> = host.ask('broadcast')
  const [stall, flood] = await Promise.all([readNothing(host, 'stall'), readNothing(host, 'flood')])
  await host.ask('enough')
  const withSlow = await beside
  const received = await readers.received(withSlow.rounds)
  const alone: BroadcastResult = await host.ask('broadcast', { rounds: withSlow.rounds })
  const receivedAlone = await readers.received(2 * withSlow.rounds) - received

  verdict.same('codes for the one that stalled, here and there', [stall.code, stall.told], [SLOW_CODE, SLOW_CODE])
  verdict.same('codes for the one that was flooded, here and there', [flood.code, flood.told], [SLOW_CODE, SLOW_CODE])
  verdict.within('milliseconds from stall to end', stall.after, stallTimeout + TOLERANCE_MS)
  verdict.same('received beside the slow ones', received, count * withSlow.rounds)
  verdict.same('received without them', receivedAlone, received)
  verdict.same('sessions', await host.ask('sessions'), count)
  verdict.same('readers that were disconnected', readers.lost, 0)
  readers.leave()
  verdict.same('sessions and connections in the end', await settled(() => host.ask('held'), [0, 0]), [0, 0])
  verdict.same('errors', [...host.faults, ...await host.ask('errors')], [])
  verdict.same('exit', await host.stop(), { code: 0, signal: null })
  return {
    line: `slow: beside a stalled device (${stall.code} after ${stall.after} ms of ${stallTimeout}) and a flooded one (${flood.code}) ${count} devices ` +
      `received ${received} of ${count * withSlow.rounds} in ${withSlow.milliseconds} ms; without them ${receivedAlone} in ${alone.milliseconds} ms`,
    wrong: verdict.wrong
  }
}

/** Connects a device that reads nothing until it is disconnected; resolves with the close codes on both ends. */
async function readNothing (host: Host, how: 'stall' | 'flood'): Promise<SessionEnd & { told: number }> {
  const device = await RawDevice.connect(host.url, how)
  device.socket.pause()
  const gone: SessionEnd = await host.ask(how, { to: how, port: device.socket.localPort })
  if (gone.code === SLOW_CODE) device.socket.resume()
  else device.socket.destroy()
  const { code } = await Promise.race([device.closed, device.ended.then(() => ({ code: 1006 }))])
  device.answerClose(code)
  await device.ended
  return { ...gone, told: code }
}

/** The devices that read. */
class Readers {
  readonly #sockets: WebSocket[] = []
  #received = 0
  #leaving = false
  lost = 0

  async join (url: string, deviceId: string): Promise<void> {
    const socket = new WebSocket(`${url.replace('http', 'ws')}/ws?deviceId=${deviceId}`, { perMessageDeflate: false })
    this.#sockets.push(socket)
    await once(socket, 'message')
    socket.on('message', () => { this.#received++ })
    socket.on('close', () => { if (!this.#leaving) this.lost++ })
  }

  /** The number of messages received, once it is that of `rounds` broadcasts. */
  async received (rounds: number): Promise<number> {
    return await settled(async () => this.#received, rounds * this.#sockets.length)
  }

  leave (): void {
    this.#leaving = true
    for (const socket of this.#sockets) socket.close()
  }
}

// The server.

async function prepare ({ stallTimeout }: { stallTimeout: number }): Promise<HostedApp> {
  const errors: string[] = []
  const app = quietApp(errors)
  await app.register(devices, { stallTimeout, closeTimeout: CLOSE_TIMEOUT_MS })
  const sockets = new Map<number, Socket>()
  app.server.on('connection', (socket: Socket) => { sockets.set(socket.remotePort!, socket) })
  const patience = 3 * stallTimeout + 10 * TOLERANCE_MS
  let enough = false

  const commands = {
    sessions: () => app.devices.size,
    held: async () => [app.devices.size, await new Promise(resolve => app.server.getConnections((_error, count) => resolve(count)))],
    errors: () => errors,
    enough: () => { enough = true },
    /** Sends until output stays buffered in this process, then stops. */
    async stall ({ to, port }: { to: string, port: number }): Promise<SessionEnd> {
      const ended = sessionEnd(app, to, patience)
      const socket = sockets.get(port)!
      while (socket.writableLength < STALLED_BYTES) {
        await app.devices.send(to, CHUNK)
        await turn()
      }
      const since = performance.now()
      const { code } = await ended
      return { code, after: Math.round(performance.now() - since) }
    },
    /** Sends without waiting until the device is disconnected. */
    async flood ({ to }: { to: string }): Promise<SessionEnd> {
      const ended = sessionEnd(app, to, patience)
      const since = performance.now()
      for (let sent = 0; app.devices.has(to) && sent < FLOOD_BYTES; sent += CHUNK.length) {
        app.devices.get(to)!.send(CHUNK)
        await turn()
      }
      const { code } = await ended
      return { code, after: Math.round(performance.now() - since) }
    },
    /** Broadcasts at a fixed interval: `rounds` times, or until `enough`. */
    async broadcast ({ rounds }: { rounds?: number } = {}): Promise<BroadcastResult> {
      const since = performance.now()
      const goesOn = (done: number) => rounds === undefined ? done < MIN_ROUNDS || !enough : done < rounds
      let done = 0
      while (goesOn(done)) {
        await app.devices.broadcast({ round: ++done })
        await sleep(INTERVAL_MS)
      }
      return { rounds: done, milliseconds: Math.round(performance.now() - since) }
    }
  }
  return { app, commands }
}

/** The close code of a device; 0 after a timeout. */
async function sessionEnd (app: FastifyInstance, deviceId: string, patience: number): Promise<Pick<Disconnect, 'code'>> {
  const left = new Promise<Disconnect>(resolve => {
    app.devices.on('disconnected', ({ id }, leave) => { if (id === deviceId) resolve(leave) })
  })
  return await Promise.race([left, sleep(patience, { code: 0 }, { ref: false })])
}

await command(import.meta.url, { devices: 1_000, stallTimeout: settingsOf({}).stallTimeout }, slow, prepare)
