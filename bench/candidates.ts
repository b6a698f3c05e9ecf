import { spawn } from 'node:child_process'
import { once } from 'node:events'
import { mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import { programAt } from '../test/programs.ts'
import { Child } from './child.ts'
import { Cluster } from './cluster.ts'
import type { DialectName } from './dialects.ts'
import type { Metered } from './meter.ts'

/** A running server. */
export interface Server extends Metered {
  readonly port: number
  /** Of another of its nodes than the one where devices connect. */
  readonly otherPort?: number
  /** Bytes held at rest; none where nobody can tell. */
  heap? (): Promise<number>
  end (): Promise<void>
}

export interface Candidate {
  /** Its column in the table. */
  name: ColumnName
  dialect: DialectName
  start (): Promise<Server>
}

/** The columns of the table; what others are compared to, and ours, come last. */
export const columns = {
  floor: 'bare `net`, `http`',
  ws: '`ws` loop',
  socketio: 'socket.io',
  nats: 'nats-server',
  forty: 'forty lines',
  ours: '**ours**'
}

export type ColumnName = keyof typeof columns

/** A peer of ours; one that keeps letters gets a folder for as long as it runs. */
function peer (name: ColumnName, dialect: DialectName, module: string = name, keepsLetters = false): Candidate {
  return {
    name,
    dialect,
    async start () {
      const folder = keepsLetters ? mkdtempSync(join(tmpdir(), 'bench-')) : undefined
      const child = await Child.start(new URL(`./peers/${module}.js`, import.meta.url), { folder })
      return {
        pids: [child.pid],
        port: await child.ask('port'),
        heap: () => child.ask('heap'),
        async end () {
          await child.end()
          if (folder !== undefined) rmSync(folder, { recursive: true })
        }
      }
    }
  }
}

const NATS = 'nats-server'
const natsServer = programAt(NATS)

async function startNats (): Promise<Server> {
  const folder = mkdtempSync(join(tmpdir(), 'bench-'))
  const config = join(folder, 'nats.conf')
  writeFileSync(config, 'host: "127.0.0.1"\nport: -1\nping_interval: "1h"\nwebsocket { host: "127.0.0.1", port: -1, no_tls: true }\n')
  const program = spawn(natsServer!, ['-c', config, '--ports_file_dir', folder], { stdio: 'ignore' })
  const ended = once(program, 'exit')
  return {
    pids: [program.pid!],
    port: await portIn(folder),
    async end () {
      program.kill()
      await ended
      rmSync(folder, { recursive: true })
    }
  }
}

/** Where the server says that it listens for WebSockets. */
async function portIn (folder: string): Promise<number> {
  for (;;) {
    const file = readdirSync(folder).find(name => name.endsWith('.ports'))
    const text = file && readFileSync(join(folder, file), 'utf8')
    if (text) return Number(new URL(JSON.parse(text).websocket[0]).port)
    await sleep(10)
  }
}

const nats: Candidate[] = natsServer ? [{ name: 'nats', dialect: 'nats', start: startNats }] : []

/** Three nodes of a peer, where there is something to join them. */
const nodes: Candidate[] = natsServer
  ? [
      { name: 'forty', dialect: 'forty', start: () => Cluster.start(natsServer, 'shouting') },
      { name: 'ours', dialect: 'devices', start: () => Cluster.start(natsServer, 'joined') }
    ]
  : []

/** What this run cannot compare with, and why. */
export const missing = [
  ...nats.length === 0 ? [`${NATS} is not on this machine`] : [],
  'mosquitto and nginx with nchan are not written yet'
]

const floor = peer('floor', 'bare')
const forty = peer('forty', 'forty')
const ours = peer('ours', 'devices')
const socketio = peer('socketio', 'socketio')

/** Who can do what. */
export const able = {
  broadcast: [floor, peer('ws', 'bare'), socketio, ...nats, forty, ours],
  many: [floor, forty, ours],
  topics: [socketio, ...nats, forty, ours],
  target: [floor, socketio, forty, ours],
  targetMany: [forty, ours],
  call: [socketio, forty, ours],
  letters: [peer('forty', 'forty', 'letters', true), peer('ours', 'devices', 'ours', true)],
  cluster: nodes
}
