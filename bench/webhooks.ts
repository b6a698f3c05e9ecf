import { createServer } from 'node:http'
import type { AddressInfo } from 'node:net'
import { setTimeout as sleep } from 'node:timers/promises'
import { parseArgs } from 'node:util'
import Fastify, { type FastifyInstance } from 'fastify'
import { WebSocket } from 'ws'
import { connect } from '../lib/client/index.ts'
import devices, { type Options } from '../lib/index.ts'

const CONCURRENCY = 8
const MESSAGE_INTERVAL_MS = 10
const SECRET = Buffer.alloc(32, 1).toString('base64')

/** Milliseconds of each of many REST sends to one device, while another one sends messages. */
async function measure (options: Options, sends: number): Promise<number[]> {
  const app = Fastify() as FastifyInstance
  await app.register(devices, options)
  app.devices.on('message', () => {})
  await app.listen({ port: 0, host: '127.0.0.1' })
  const url = `http://127.0.0.1:${(app.server.address() as AddressInfo).port}`
  const clients = ['talker', 'listener'].map(deviceId => connect(`${url}/ws`, { deviceId, WebSocket: WebSocket as any }).on('message', () => {}))
  while (app.devices.size < clients.length) await sleep(MESSAGE_INTERVAL_MS)
  const talking = setInterval(() => void clients[0]!.call('message', { data: 'hello' }).catch(() => {}), MESSAGE_INTERVAL_MS)
  const took: number[] = []
  const send = async () => {
    while (took.length < sends) {
      const began = performance.now()
      const response = await fetch(`${url}/devices/listener/messages`, { method: 'POST', body: '{}', headers: { 'content-type': 'application/json' } })
      await response.arrayBuffer()
      took.push(performance.now() - began)
    }
  }
  await Promise.all(Array.from({ length: CONCURRENCY }, send))
  clearInterval(talking)
  for (const client of clients) client.close()
  await app.close()
  return took
}

function quantile (figures: number[], share: number): number {
  return figures.toSorted((a, b) => a - b)[Math.ceil(figures.length * share) - 1]!
}

/** Compares REST sends without a webhook and with one whose endpoint never answers. */
async function compare (sends: number, rounds: number): Promise<void> {
  const hanging = createServer(() => {})
  await new Promise<void>(resolve => hanging.listen(0, '127.0.0.1', resolve))
  const url = `http://127.0.0.1:${(hanging.address() as AddressInfo).port}/`
  const webhooks: Options['webhooks'] = [{ url, secret: SECRET, types: ['connected', 'disconnected', 'message'] }]
  const [without, with_]: [number[], number[]] = [[], []]
  await measure({}, sends)
  for (let round = 0; round < rounds; round++) {
    without.push(...await measure({}, sends))
    with_.push(...await measure({ webhooks }, sends))
  }
  hanging.closeAllConnections()
  hanging.close()
  for (const share of [0.5, 0.99]) {
    const [before, after] = [quantile(without, share), quantile(with_, share)]
    console.log(`REST send p${share * 100}: ${before.toFixed(2)} ms without a webhook, ${after.toFixed(2)} ms with one that hangs, ratio ${(after / before).toFixed(2)}`)
  }
}

const { values } = parseArgs({ options: { sends: { type: 'string', default: '5000' }, rounds: { type: 'string', default: '5' } } })
await compare(Number(values.sends), Number(values.rounds))
