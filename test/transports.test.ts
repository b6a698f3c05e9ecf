import { mkdtempSync, readFileSync } from 'node:fs'
import { connect as connectTcp, type AddressInfo, type Socket } from 'node:net'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { connect as connectTls } from 'node:tls'
import t from 'tap'
import { tcp, type TcpDoor, type TcpOptions } from '../lib/transports/tcp.ts'
import { transportContract, type Way } from './contracts/transport.ts'
import { connect, introduce, listen } from './support.ts'

const certificate = (name: string) => readFileSync(new URL(`certificates/${name}`, import.meta.url))
const ours = { key: certificate('server.key'), cert: certificate('server.pem') }
const ca = certificate('ca.pem')
const folder = mkdtempSync(join(tmpdir(), 'devices-'))
let sockets = 0

const portOf = (door: TcpDoor) => (door.address as AddressInfo).port

/** The way of devices through a door that `tcp()` makes. */
function through (optionsOf: () => TcpOptions, reach: (door: TcpDoor) => Socket, address: string | undefined): Way {
  const doors = new WeakMap<object, TcpDoor>()
  return {
    async serve (t, options) {
      const door = tcp(optionsOf())
      const app = Object.assign(await listen(t, { ...options, doors: [door] }), { address })
      doors.set(app, door)
      return app
    },
    connect: (served, deviceId) => introduce(reach(doors.get(served)!), deviceId)
  }
}

transportContract(t, 'a WebSocket', {
  serve: async (t, options) => Object.assign(await listen(t, options), { address: '127.0.0.1' }),
  connect: (served, deviceId) => connect(served.url, deviceId)
})

transportContract(t, 'TCP', through(() => ({ port: 0 }), door => connectTcp(portOf(door), '127.0.0.1'), '127.0.0.1'))

transportContract(t, 'a Unix socket', through(() => ({ path: join(folder, `${++sockets}.sock`) }), door => connectTcp(door.address as string), undefined))

transportContract(t, 'TLS', through(() => ({ port: 0, tls: ours }), door => connectTls({ port: portOf(door), host: '127.0.0.1', ca }), '127.0.0.1'))
