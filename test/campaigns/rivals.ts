import { once } from 'node:events'
import type { AddressInfo } from 'node:net'
import type { FastifyInstance } from 'fastify'
import WebSocket from 'ws'
import devices from '../../lib/index.ts'
import { connect, request, TestDevice } from '../support.ts'
import { command, lanes, settled, Verdict, type Outcome } from './campaign.ts'
import { openEngine, startJoiningEngine, type EngineAccess, type EngineChoice } from './engine.ts'
import { quietApp } from './host.ts'

type Node = FastifyInstance & { url: string }

interface Size extends EngineChoice, Record<string, number | string> {
  rounds: number
  devices: number
}

const NODES = ['n1', 'n2', 'n3']
const RIVALS = 8
const REPLACED_CODE = 4509
const WIDTH = 32

/** Three nodes: of eight concurrent connections with one id one survives; then devices are called from another node than their own. */
export async function rivals ({ rounds, devices: count, engine: name, fsync }: Size): Promise<Outcome> {
  const verdict = new Verdict()
  const engine = await startJoiningEngine({ engine: name, fsync })
  const nodes = await Promise.all(NODES.map(name => start(name, engine.access)))
  const replaced = { total: 0 }
  for (let round = 0; round < rounds; round++) replaced.total += await contest(nodes, `rival-${round}`, verdict)

  const spread = await Promise.all(Array.from({ length: count }, async (_, at) => (await connect(nodes[at % 3]!.url, `spread-${at}`)).handle('where', () => at)))
  const [calls, offline]: [number[], number[]] = [[], []]
  await lanes(count, WIDTH, async at => {
    const began = performance.now()
    const { body } = await request(nodes[(at + 1) % 3]!, 'POST', `/devices/spread-${at}/calls/where`, {})
    calls.push(performance.now() - began)
    verdict.same(`answer of spread-${at}`, body, at)
  })
  for (let at = 0; at < count; at++) {
    const began = performance.now()
    const { status } = await request(nodes[at % 3]!, 'POST', `/devices/away-${at}/messages`, 1)
    offline.push(performance.now() - began)
    verdict.same(`status for away-${at}`, status, 404)
  }
  for (const device of spread) device.socket.terminate()
  await Promise.all(nodes.map(node => node.close()))
  await engine.remove()
  return {
    line: `rivals: ${rounds} rounds of ${RIVALS} over ${NODES.length} nodes with ${engine.title}, ${replaced.total} replaced; ${count} devices called from another node in ${times(calls)}, ` +
      `${WIDTH} at a time; ${count} that are away known to be so in ${times(offline)}`,
    wrong: verdict.wrong
  }
}

async function start (name: string, access: EngineAccess): Promise<Node> {
  const app = quietApp()
  await app.register(devices, { node: name, ...await openEngine(access) })
  await app.listen({ port: 0, host: '127.0.0.1' })
  return Object.assign(app, { url: `http://127.0.0.1:${(app.server.address() as AddressInfo).port}` })
}

/** Resolves with the number of replaced connections. */
async function contest (nodes: Node[], deviceId: string, verdict: Verdict): Promise<number> {
  const codes: number[] = []
  const all = Array.from({ length: RIVALS }, (_, at) => {
    const device = new TestDevice(new WebSocket(`${nodes[at % 3]!.url.replace('http', 'ws')}/ws?deviceId=${deviceId}`))
    void device.closed.then(({ code }) => codes.push(code))
    return device
  })
  await Promise.all(all.map(({ socket }) => once(socket, 'open')))
  await settled(async () => codes.length, RIVALS - 1)
  verdict.same(`how the rivals of ${deviceId} ended`, codes, Array.from({ length: RIVALS - 1 }, () => REPLACED_CODE))
  const survivors = all.filter(({ socket }) => socket.readyState === WebSocket.OPEN)
  verdict.same(`survivors of ${deviceId}`, survivors.length, 1)
  const [survivor] = survivors
  if (!survivor) return codes.length
  const { params } = await survivor.next(({ method }) => method === 'welcome')
  const seen = async () => await Promise.all(nodes.map(async node => (await request(node, 'GET', `/devices/${deviceId}`)).body.generation))
  // it may have grown since: of connections without an older record the survivor may write its record again
  const agreed = async () => new Set((await seen()).map(generation => generation >= params.generation && generation)).size
  verdict.same(`different generations of ${deviceId} that the nodes see`, await settled(agreed, 1), 1)
  verdict.same(`whether they are at least the one that ${deviceId} was welcomed with`, (await seen()).every(generation => generation >= params.generation), true)
  survivor.socket.terminate()
  return codes.length
}

function times (milliseconds: number[]): string {
  const sorted = milliseconds.toSorted((one, other) => one - other)
  const at = (share: number) => (sorted[Math.floor((sorted.length - 1) * share)] ?? 0).toFixed(1)
  return `${at(0.5)} ms (median), ${at(0.99)} ms (99 of 100)`
}

await command(import.meta.url, { rounds: 500, devices: 1_000, engine: 'nats', fsync: 'always' }, rivals)
