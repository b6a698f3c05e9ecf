import { connect, type Socket } from 'node:net'
import { setTimeout as sleep } from 'node:timers/promises'
import { connect as connectTls } from 'node:tls'
import { seededRandom, lanes } from './campaign.ts'
import { enterNamespace } from './neighbour.ts'
import { closeFrame, frameOf, opcodes, upgradeRequest } from './raw.ts'

/** A port to attack, and the headers with which only the refusal under test applies. */
export interface Target {
  port: number
  kind: 'http' | 'https' | 'lines'
  headers: string[]
}

export interface AttackSettings {
  host: string
  targets: Target[]
  requests: number
  seed: number
}

/** Number of connections by the way they ended. */
export type Counts = Record<string, number>

/** This module, for `forkNeighbour`. */
export const stranger = import.meta.url

const WIDTH = 200
const MAX_DELAY_MS = 8
/** The share of requests that are truncated, and of connections that end in the tick in which the request was sent. */
const [TRUNCATED_SHARE, IMMEDIATE_SHARE] = [0.15, 0.5]
const VICTIM = 'victim'

/** The requests of an attacker. */
const httpRequests: Array<(headers: string[]) => string> = [
  headers => rest('POST', '/broadcast', headers, '{"from":"stranger"}'),
  headers => rest('POST', `/devices/${VICTIM}/calls/run`, headers, '{"from":"stranger"}'),
  headers => rest('POST', `/devices/${VICTIM}/messages`, headers, '{"from":"stranger"}'),
  headers => rest('POST', `/devices/${VICTIM}/messages?ttl=60`, headers, '{"from":"stranger"}'),
  headers => rest('POST', '/devices/absent/messages?ttl=60', headers, '{"from":"stranger"}'),
  headers => rest('POST', '/messages', [...headers, 'Content-Type: application/x-ndjson'], `{"to":"${VICTIM}","data":1}\n`),
  headers => rest('PUT', `/devices/${VICTIM}/topics/a`, headers),
  headers => rest('DELETE', `/devices/${VICTIM}`, headers),
  headers => rest('GET', '/devices', headers),
  headers => rest('POST', '/broadcast', [...headers, 'Connection: Upgrade, HTTP2-Settings', 'Upgrade: h2c', 'HTTP2-Settings: AAMAAABkAAQAoAAAAAIAAAAA'], '{"from":"stranger"}'),
  headers => upgrade(VICTIM, headers),
  headers => upgrade('absent', headers),
  // with a message that it would send once admitted
  headers => upgrade(VICTIM, headers) + frameOf(opcodes.text, '{"jsonrpc":"2.0","id":1,"method":"publish","params":{"topic":"a"}}').toString('latin1') + closeFrame(1000).toString('latin1')
]

const lines = [
  `{"jsonrpc":"2.0","id":1,"method":"connect","params":{"deviceId":"${VICTIM}"}}\n`,
  '{"jsonrpc":"2.0","method":"connect","params":{"deviceId":"absent"}}\n{"jsonrpc":"2.0","id":2,"method":"publish","params":{"topic":"a"}}\n'
]

/** How an attacker ends its connection. */
const ends: Record<string, (socket: Socket) => void> = {
  close: socket => socket.destroy(),
  'half close': socket => socket.end(),
  reset: socket => socket.resetAndDestroy(),
  silence () {}
}

function rest (method: string, path: string, headers: string[], body = ''): string {
  const type = body === '' || headers.some(header => header.startsWith('Content-Type')) ? [] : ['Content-Type: application/json']
  return [`${method} ${path} HTTP/1.1`, 'Host: localhost', ...headers, ...type, `Content-Length: ${body.length}`, '', body].join('\r\n')
}

function upgrade (deviceId: string, headers: string[]): string {
  return upgradeRequest(deviceId).replace('Host: 127.0.0.1', ['Host: localhost', ...headers].join('\r\n'))
}

async function attack ({ host, targets, requests, seed }: AttackSettings): Promise<Counts> {
  const random = seededRandom(seed)
  const counts: Counts = {}
  const kinds = Object.keys(ends)
  await lanes(requests, WIDTH, async number => {
    const target = targets[number % targets.length]!
    const end = kinds[Math.floor(random() * kinds.length)]!
    const request = pick(target.kind === 'lines' ? lines.map(line => () => line) : httpRequests, random)(target.headers)
    const sent = random() < TRUNCATED_SHARE ? request.slice(0, Math.floor(random() * request.length)) : request
    const wait = random() < IMMEDIATE_SHARE ? undefined : random() * MAX_DELAY_MS
    await send(target, host, sent, { end: ends[end]!, wait })
    counts[end] = (counts[end] ?? 0) + 1
  })
  return counts
}

/** Resolves once the connection is closed, by either side. */
async function send ({ port, kind }: Target, host: string, sent: string, { end, wait }: { end: (socket: Socket) => void, wait: number | undefined }): Promise<void> {
  const socket = connect(port, host).setNoDelay()
  const gone = new Promise(resolve => socket.once('close', resolve))
  socket.on('error', () => {})
  const speaker = kind === 'https' ? connectTls({ socket, rejectUnauthorized: false }).on('error', () => {}) : socket
  await Promise.race([gone, new Promise(resolve => speaker.once(kind === 'https' ? 'secureConnect' : 'connect', resolve))])
  speaker.resume()
  speaker.write(sent, 'latin1')
  if (wait !== undefined) await sleep(wait)
  end(socket)
  await gone
}

function pick<T> (items: T[], random: () => number): T {
  return items[Math.floor(random() * items.length)]!
}

if (process.argv[2] === 'neighbour') {
  await enterNamespace()
  process.on('message', (settings: AttackSettings) => { void attack(settings).then(counts => process.send!(counts)) })
}
