import { once } from 'node:events'
import WebSocket from 'ws'
import devices from '../../lib/index.ts'
import { command, Verdict, type Outcome } from './campaign.ts'
import { Host, quietApp, type HostedApp } from './host.ts'

/** Counts of a stream of numbered messages. */
interface ReceivedStream {
  count: number
  /** Messages with an unexpected number. */
  disordered: number
}

/** Messages between two waits for the socket to drain. */
const MESSAGES_PER_WAIT = 256

/** One device with a stream in each direction: no message is lost, and all are in order. */
export async function duplex ({ messages }: { messages: number }): Promise<Outcome> {
  const verdict = new Verdict()
  const host = await Host.start(import.meta.url)
  const device = await StreamDevice.connect(host.url, 'duplex')
  const began = performance.now()
  const [sent] = await Promise.all([host.ask('stream', { to: 'duplex', messages }), device.stream(messages)])
  // Messages keep their order, so the answer to a last call marks the end of each stream.
  await host.ask('barrier', { to: 'duplex' })
  await device.barrier()
  const seconds = (performance.now() - began) / 1_000

  const whole: ReceivedStream = { count: messages, disordered: 0 }
  const up: ReceivedStream = await host.ask('received')
  verdict.same('what the device received', device.received, whole)
  verdict.same('what the server received', up, whole)
  verdict.same('what the server sent', sent, messages)
  verdict.same('answers to notices', device.complaints, 0)
  device.socket.close()
  await once(device.socket, 'close')
  verdict.same('errors', [...host.faults, ...await host.ask('errors')], [])
  verdict.same('exit', await host.stop(), { code: 0, signal: null })
  return {
    line: `duplex: ${messages} each way in ${seconds.toFixed(1)} s (${Math.round(2 * messages / seconds)} a second); down ${device.received.count} with ` +
      `${device.received.disordered} out of order, up ${up.count} with ${up.disordered}`,
    wrong: verdict.wrong
  }
}

/** Counts what it receives, and answers every call. */
class StreamDevice {
  readonly socket: WebSocket
  readonly received: ReceivedStream = { count: 0, disordered: 0 }
  /** Failures that the server answered to notices. */
  complaints = 0
  #answered: () => void = () => {}

  constructor (url: string, deviceId: string) {
    this.socket = new WebSocket(`${url.replace('http', 'ws')}/ws?deviceId=${deviceId}`, { perMessageDeflate: false })
    this.socket.on('message', (frame: Buffer) => this.#receive(JSON.parse(frame.toString())))
  }

  static async connect (url: string, deviceId: string): Promise<StreamDevice> {
    const device = new StreamDevice(url, deviceId)
    await once(device.socket, 'message')
    return device
  }

  /** Sends as fast as the socket accepts. */
  async stream (messages: number): Promise<void> {
    for (let number = 0; number < messages; number++) {
      const frame = `{"jsonrpc":"2.0","method":"message","params":{"data":{"number":${number}}}}`
      if (number % MESSAGES_PER_WAIT === 0) await new Promise<unknown>(resolve => this.socket.send(frame, resolve))
      else this.socket.send(frame)
    }
  }

  async barrier (): Promise<void> {
    const answered = new Promise<void>(resolve => { this.#answered = resolve })
    this.socket.send('{"jsonrpc":"2.0","id":"barrier","method":"ping"}')
    await answered
  }

  #receive ({ id, method, params, error }: { id?: unknown, method?: string, params?: any, error?: object }): void {
    if (method === 'message') countMessage(this.received, params.data.number)
    else if (method === 'reached') this.socket.send(JSON.stringify({ jsonrpc: '2.0', id, result: {} }))
    else if (id === 'barrier') this.#answered()
    else if (error) this.complaints++
  }
}

function countMessage (received: ReceivedStream, number: number): void {
  if (number !== received.count) received.disordered++
  received.count++
}

// The server.

async function prepare (): Promise<HostedApp> {
  const errors: string[] = []
  const received: ReceivedStream = { count: 0, disordered: 0 }
  const app = quietApp(errors)
  await app.register(devices, { rate: 1_000_000_000, burst: 1_000_000_000 })
  app.devices.on('message', data => countMessage(received, (data as { number: number }).number))

  const commands = {
    barrier: ({ to }: { to: string }) => app.devices.call(to, 'reached', {}, { timeout: 60_000 }),
    received: () => received,
    errors: () => errors,
    /** Each send resolves when there is room for the next; there is no other rate limit. */
    async stream ({ to, messages }: { to: string, messages: number }) {
      for (let number = 0; number < messages; number++) await app.devices.send(to, { number })
      return messages
    }
  }
  return { app, commands }
}

await command(import.meta.url, { messages: 100_000 }, duplex, prepare)
