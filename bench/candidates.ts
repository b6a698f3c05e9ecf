import { mkdtempSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { programAt } from '../test/programs.ts'
import { natsBroker, redisBroker, syncedRedisBroker, type Broker } from './broker.ts'
import { Child } from './child.ts'
import { Cluster } from './cluster.ts'
import type { DialectName } from './dialects.ts'
import { nchanAt, startMosquitto, startNats, startNchan } from './programs.ts'
import type { Server } from './server.ts'

export interface Candidate {
  /** Its column in the table. */
  name: ColumnName
  dialect: DialectName
  /** `base` is the folder of the compiled `bench` to take its modules from. */
  start (base?: URL): Promise<Server>
}

/** The columns of the table; the reference and this package come last, and then both over another engine. In the rows of three nodes they are over NATS. */
export const columns = {
  floor: 'bare `net`, `http`',
  ws: '`ws` loop',
  socketio: 'socket.io',
  nats: 'nats-server',
  mosquitto: 'mosquitto',
  nchan: 'nginx, nchan',
  forty: 'forty lines',
  before: 'ours before',
  ours: '**ours**',
  oursNats: '**ours, NATS**',
  fortyRedis: 'forty lines, Redis',
  redis: '**ours, Redis**',
  redisSync: '**ours, Redis sync**'
}

export type ColumnName = keyof typeof columns

const thisBench = new URL('./', import.meta.url)

/** A module of `peers`. With `keepsLetters` it gets a temporary folder. */
function peer (name: ColumnName, dialect: DialectName, module: string = name, keepsLetters = false): Candidate {
  return {
    name,
    dialect,
    async start (base = thisBench) {
      const folder = keepsLetters ? mkdtempSync(join(tmpdir(), 'bench-')) : undefined
      const child = await Child.start(new URL(`./peers/${module}.js`, base), { folder })
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

/** A third-party program, if it is installed. */
function program (name: ColumnName, path: string | undefined, dialect: DialectName, start: (path: string) => Promise<Server>): Candidate[] {
  return path === undefined ? [] : [{ name, dialect, start: () => start(path) }]
}

const natsServer = programAt('nats-server')
const redisServer = programAt('redis-server')
const mosquittoServer = programAt('mosquitto')
const nginxServer = nchanAt()

const nats = program('nats', natsServer, 'nats', startNats)
const mosquitto = program('mosquitto', mosquittoServer, 'mqtt', startMosquitto)
const nchan = program('nchan', nginxServer, 'nchan', startNchan)
const nchanEach = program('nchan', nginxServer, 'nchanEach', startNchan)

/** Three nodes of a peer, if the server between them is installed. */
function nodes (name: ColumnName, dialect: DialectName, module: string, path: string | undefined, start: (path: string) => Promise<Broker>): Candidate[] {
  if (path === undefined) return []
  return [{ name, dialect, start: async (base = thisBench) => await Cluster.start(await start(path), new URL(`./peers/${module}.js`, base)) }]
}

/** Programs that are not installed. */
export const missing = Object.entries({ 'nats-server': natsServer, 'redis-server': redisServer, mosquitto: mosquittoServer, 'nginx with nchan': nginxServer })
  .flatMap(([name, path]) => path === undefined ? [name] : [])

const floor = peer('floor', 'bare')
const forty = peer('forty', 'forty')
const ours = peer('ours', 'devices')
const socketio = peer('socketio', 'socketio')

/** The candidates of each kind of row. */
export const candidatesFor = {
  broadcast: [floor, peer('ws', 'bare'), socketio, ...nats, ...mosquitto, ...nchan, forty, ours],
  manyDevices: [floor, forty, ours],
  topics: [socketio, ...nats, ...mosquitto, forty, ours],
  target: [floor, socketio, ...nchanEach, forty, ours],
  stalled: [floor, socketio, forty, ours],
  bulk: [forty, ours],
  call: [socketio, forty, ours],
  letters: [
    peer('forty', 'forty', 'letters', true),
    peer('ours', 'devices', 'ours', true),
    ...nodes('oursNats', 'devices', 'joined', natsServer, natsBroker),
    ...nodes('redis', 'devices', 'joined', redisServer, redisBroker),
    ...nodes('redisSync', 'devices', 'joined', redisServer, syncedRedisBroker)
  ],
  cluster: [
    ...nodes('forty', 'forty', 'shouting', natsServer, natsBroker),
    ...nodes('ours', 'devices', 'joined', natsServer, natsBroker),
    ...nodes('fortyRedis', 'forty', 'shouting', redisServer, redisBroker),
    ...nodes('redis', 'devices', 'joined', redisServer, redisBroker)
  ]
}
