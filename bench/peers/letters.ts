import websocket from '@fastify/websocket'
import { ClassicLevel } from 'classic-level'
import Fastify from 'fastify'
import type { WebSocket } from 'ws'
import { childSettings } from '../child.ts'
import { listenFastify } from './listen.ts'

// A bare route over the same store: a letter is one record. Requests that arrive during a write form the next synced batch.

type Change = { type: 'put', key: string, value: string } | { type: 'del', key: string }

const { folder } = childSettings()
const db = new ClassicLevel<string, string>(folder)
await db.open()
let waiting: Array<{ change: Change, resolve: () => void }> = []
let writing = false

function write (change: Change): Promise<void> {
  return new Promise(resolve => {
    waiting.push({ change, resolve })
    if (!writing) void writeAll()
  })
}

async function writeAll (): Promise<void> {
  writing = true
  while (waiting.length > 0) {
    await undefined
    const together = waiting
    waiting = []
    await db.batch(together.map(({ change }) => change), { sync: true })
    for (const { resolve } of together) resolve()
  }
  writing = false
}

const app = Fastify()
const sockets = new Map<string, WebSocket>()
const acknowledged = new Map<number, () => void>()
let lastId = 0

await app.register(websocket)
app.get<{ Querystring: { deviceId: string } }>('/ws', { websocket: true }, (socket, request) => {
  const { deviceId } = request.query
  sockets.set(deviceId, socket)
  socket.on('message', bytes => acknowledged.get(JSON.parse(bytes.toString()).id)?.())
  socket.on('close', () => sockets.delete(deviceId))
})

app.post<{ Params: { id: string }, Querystring: { confirm?: string } }>('/devices/:id/messages', async (request, reply) => {
  const id = ++lastId
  const key = `${request.params.id}!${String(id).padStart(16, '0')}`
  const data = JSON.stringify(request.body)
  await write({ type: 'put', key, value: data })
  if (request.query.confirm === undefined) return await reply.code(202).send({ id, status: 'queued' })
  await new Promise<void>(resolve => {
    acknowledged.set(id, resolve)
    sockets.get(request.params.id)!.send(`{"type":"letter","id":${id},"data":${data}}`)
  })
  acknowledged.delete(id)
  await write({ type: 'del', key })
  return { id, status: 'delivered' }
})

await listenFastify(app)
