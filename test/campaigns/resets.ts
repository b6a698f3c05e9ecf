import { once } from 'node:events'
import { setTimeout as sleep } from 'node:timers/promises'
import devices from '../../lib/index.ts'
import { connect } from '../support.ts'
import { seededRandom, command, lanes, settled, Verdict, type Outcome } from './campaign.ts'
import { Host, quietApp, countByName, type IdleState, type HostedApp } from './host.ts'
import { closeFrame, frameOf, opcodes, RawDevice, upgradeRequest } from './raw.ts'

/** Brings a connection into the state in which it is reset. */
type Moment = (device: RawDevice, deviceId: string, random: () => number) => unknown

const WIDTH = 25
const MAX_AUTHENTICATION_MS = 8
const MAX_RESET_DELAY_MS = 6
const SEED = 20_260_101

const message = frameOf(opcodes.text, '{"jsonrpc":"2.0","id":1,"method":"message","params":{"data":"half of this comes"}}')
const call = (method: string) => frameOf(opcodes.text, `{"jsonrpc":"2.0","id":2,"method":"${method}"}`)

const moments: Record<string, Moment> = {
  'nothing sent' () {},
  'half a request' ({ socket }, deviceId, random) {
    const request = upgradeRequest(deviceId)
    socket.write(request.slice(0, Math.floor(random() * request.length)))
  },
  'while authenticating': ({ socket }, deviceId) => socket.write(upgradeRequest(deviceId)),
  'while being refused': ({ socket }, deviceId) => socket.write(upgradeRequest(deviceId, 'wrong')),
  'frames with the request': ({ socket }, deviceId) => socket.write(Buffer.concat([Buffer.from(upgradeRequest(deviceId)), call('linger'), message.subarray(0, 9)])),
  'just opened': opened,
  async 'half a frame header' (device, deviceId, random) {
    await opened(device, deviceId)
    device.socket.write(message.subarray(0, 1 + Math.floor(random() * 5)))
  },
  async 'half a payload' (device, deviceId, random) {
    await opened(device, deviceId)
    device.socket.write(message.subarray(0, 7 + Math.floor(random() * (message.length - 7))))
  },
  async 'half a message' (device, deviceId) {
    await opened(device, deviceId)
    device.socket.write(frameOf(opcodes.text, '{"jsonrpc":', false))
  },
  async 'calls of both sides in flight' (device, deviceId) {
    await opened(device, deviceId)
    device.socket.write(Buffer.concat([call('linger'), call('callMe')]))
  },
  async 'while much is sent to it' (device, deviceId) {
    await opened(device, deviceId)
    device.socket.pause().write(call('flood'))
  },
  async 'closing' (device, deviceId) {
    await opened(device, deviceId)
    device.socket.write(closeFrame(1000))
  },
  async 'half a closing frame' (device, deviceId, random) {
    await opened(device, deviceId)
    device.socket.write(closeFrame(1000).subarray(0, 1 + Math.floor(random() * 6)))
  },
  async 'being disconnected' (device, deviceId) {
    await opened(device, deviceId)
    device.socket.write(call('disconnectMe'))
  },
  async 'between the closing frames' (device, deviceId) {
    await opened(device, deviceId)
    device.socket.write(call('disconnectMe'))
    await device.closed
  },
  async 'breaking the protocol' (device, deviceId) {
    await opened(device, deviceId)
    device.socket.write(Buffer.from([0xff, 0xff, 0xff]))
  }
}

/** TCP resets in every state of a connection: the process survives, and no other device is affected. */
export async function resets ({ resets, seed }: { resets: number, seed: number }): Promise<Outcome> {
  const verdict = new Verdict()
  const host = await Host.start(import.meta.url)
  const before: IdleState = await host.ask('rest')
  const control = await connect(host.url, 'control', { headers: { authorization: 'Bearer control' } })
  const random = seededRandom(seed)
  const kinds = Object.entries(moments)
  let answered = 0

  await lanes(resets, WIDTH, async number => {
    const [name, moment] = kinds[number % kinds.length]!
    await within(10_000, name, resetAt(host.url, `reset-${number}`, moment, random))
    if (number % 20 !== 0) return
    const { result } = await control.ask('ping')
    if (result) answered++
  })

  verdict.same('answers to the control device', answered, Math.ceil(resets / 20))
  const left = { sessions: 1, calls: 0, handlers: 0, connections: 1 }
  verdict.same('what the server holds', await settled(() => host.ask('held'), left), left)
  await control.close()
  verdict.same('close code of the control device', await control.closed, { code: 1005, reason: '' })
  const { listeners, resources } = before
  const quietly = await settled(async () => {
    const { heap, ...rest }: IdleState = await host.ask('rest')
    return rest
  }, { listeners, resources })
  verdict.same('listeners and resources', quietly, { listeners, resources })
  const { errors, admissions, closeCodes }: { errors: Record<string, number>, admissions: number, closeCodes: Record<string, number> } = await host.ask('report')
  verdict.same('uncaught errors', host.faults, [])
  verdict.same('exit', await host.stop(), { code: 0, signal: null })
  return {
    line: `resets: ${resets} at ${kinds.length} kinds of moment (seed ${seed}); ${admissions - 1} had been admitted, close codes ${JSON.stringify(closeCodes)}; ` +
      `${host.faults.length} uncaught; ${answered} of ${Math.ceil(resets / 20)} calls of the control device were answered; error log ${JSON.stringify(errors)}`,
    wrong: verdict.wrong
  }
}

async function opened (device: RawDevice, deviceId: string): Promise<void> {
  device.socket.write(upgradeRequest(deviceId))
  const status = await device.opened
  if (status !== 101) throw new Error(`${deviceId} was answered ${status}`)
}

async function resetAt (url: string, deviceId: string, moment: Moment, random: () => number): Promise<void> {
  const device = new RawDevice(url)
  await once(device.socket, 'connect')
  await moment(device, deviceId, random)
  if (random() < 0.7) await sleep(random() * MAX_RESET_DELAY_MS)
  device.socket.resetAndDestroy()
  await device.ended
}

async function within (milliseconds: number, name: string, work: Promise<void>): Promise<void> {
  const late = new AbortController()
  const timeout = sleep(milliseconds, undefined, { signal: late.signal }).then(() => { throw new Error(`"${name}" was never reached`) })
  timeout.catch(() => {})
  await Promise.race([work, timeout])
  late.abort()
}

// The server.

async function prepare (): Promise<HostedApp> {
  const errors: string[] = []
  const app = quietApp(errors)
  const held = { calls: 0, handlers: 0 }
  await app.register(devices, {
    async authenticate ({ token }) {
      if (token !== 'control') await sleep(Math.random() * MAX_AUTHENTICATION_MS)
      return token !== 'wrong'
    },
    rate: 1_000_000,
    burst: 1_000_000
  })
  app.devices.handle('linger', async (_params, { signal }) => {
    held.handlers++
    await once(signal, 'abort')
    held.handlers--
  })
  app.devices.handle('callMe', (_params, { device }) => {
    held.calls++
    const left = () => { held.calls-- }
    device.call('never').then(left, left)
  })
  app.devices.handle('flood', (_params, { device }) => {
    for (let count = 0; count < 200; count++) device.send('x'.repeat(4_096))
  })
  app.devices.handle('disconnectMe', (_params, { device }) => app.devices.disconnect(device.id))
  const commands = {
    held: async () => ({ sessions: app.devices.size, ...held, connections: await new Promise(resolve => app.server.getConnections((_error, count) => resolve(count))) }),
    report: () => {
      const { admissions, closeCodes } = app.devices.stats()
      return { errors: countByName(errors), admissions, closeCodes }
    }
  }
  return { app, commands }
}

await command(import.meta.url, { resets: 10_000, seed: SEED }, resets, prepare)
