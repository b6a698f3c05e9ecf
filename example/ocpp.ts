import { timingSafeEqual } from 'node:crypto'
import { Type } from '@sinclair/typebox'
import Fastify from 'fastify'
import devices, { jsonrpc } from 'fastify-devices'
import { ocpp } from 'fastify-devices/ocpp'

// A small central system for chargers that speak OCPP 1.6, beside devices that speak JSON-RPC.
const { PORT = '3000', HOST = '127.0.0.1', PASSWORD } = process.env

const app = Fastify({ logger: { level: process.env.LOG_LEVEL ?? 'warn' } })

const isPassword = (given = '') => {
  const [mine, theirs] = [Buffer.from(PASSWORD!), Buffer.from(given)]
  return mine.length === theirs.length && timingSafeEqual(mine, theirs)
}

await app.register(devices, {
  codecs: [jsonrpc(), ...ocpp({ versions: ['ocpp1.6'] })],
  // Without a password, only this machine may connect. With one, a charger must send it, and its own id as the user name.
  ...(PASSWORD && { authenticate: ({ deviceId, username, password }) => username === deviceId && isPassword(password) })
})

const now = () => new Date().toISOString()
const statuses = new Map<string, unknown>()
const meters = new Map<string, unknown>()

app.devices.handle('BootNotification', {
  params: Type.Object({ chargePointVendor: Type.String({ maxLength: 20 }), chargePointModel: Type.String({ maxLength: 20 }) })
}, () => ({ status: 'Accepted', currentTime: now(), interval: 300 }))

app.devices.handle('Heartbeat', () => ({ currentTime: now() }))

app.devices.handle('StatusNotification', {
  params: Type.Object({ connectorId: Type.Integer({ minimum: 0 }), errorCode: Type.String(), status: Type.String() })
}, ({ connectorId, status }, { device }) => {
  statuses.set(`${device.id}/${connectorId}`, status)
  return {}
})

app.devices.handle('MeterValues', {
  params: Type.Object({ connectorId: Type.Integer({ minimum: 0 }), meterValue: Type.Array(Type.Unknown(), { minItems: 1 }) })
}, ({ connectorId, meterValue }, { device }) => {
  meters.set(`${device.id}/${connectorId}`, meterValue.at(-1))
  return {}
})

app.devices.handle('Authorize', () => ({ idTagInfo: { status: 'Accepted' } }))
let transactions = 0
app.devices.handle('StartTransaction', () => ({ transactionId: ++transactions, idTagInfo: { status: 'Accepted' } }))
app.devices.handle('StopTransaction', () => ({}))

app.get('/connectors', () => ({ statuses: Object.fromEntries(statuses), meters: Object.fromEntries(meters) }))

const url = await app.listen({ port: Number(PORT), host: HOST })
console.log(`
Listening on ${url}
Connect a charger:  ${url.replace('http', 'ws')}/ocpp/CP001
Start remotely:     curl -X POST ${url}/devices/CP001/calls/RemoteStartTransaction -H 'content-type: application/json' -d '{"idTag":"04E91C"}'
When it is back:    curl -X POST '${url}/devices/CP001/messages?ttl=3600' -H 'content-type: application/json' -d '{"method":"ChangeAvailability","params":{"connectorId":0,"type":"Operative"}}'
See its connectors: curl ${url}/connectors
`)

for (const signal of ['SIGINT', 'SIGTERM'] as const) process.once(signal, () => app.close())
