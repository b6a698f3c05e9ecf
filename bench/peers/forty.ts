import websocket from '@fastify/websocket'
import Fastify from 'fastify'
import type { WebSocket } from 'ws'
import { listenFastify } from './listen.ts'

// What a developer writes in an afternoon without this package: a Map of sockets and a few routes.

interface Device {
  Params: { id: string, method: string }
  Querystring: { deviceId: string, topic?: string }
}

const app = Fastify()
const sockets = new Map<string, WebSocket>()
const topics = new Map<string, Set<WebSocket>>()
const calls = new Map<number, (result: unknown) => void>()
let lastCall = 0

await app.register(websocket)
app.addContentTypeParser('application/x-ndjson', { parseAs: 'string', bodyLimit: 1e8 }, (_request, body, done) => done(null, body))

app.get<Device>('/ws', { websocket: true }, (socket, request) => {
  const { deviceId } = request.query
  sockets.set(deviceId, socket)
  socket.on('message', bytes => {
    const { type, id, params, result, topic } = JSON.parse(bytes.toString())
    if (type === 'echo') return socket.send(JSON.stringify({ type: 'answer', id, result: params }))
    if (type === 'answer') return calls.get(id)?.(result)
    if (!topics.has(topic)) topics.set(topic, new Set())
    topics.get(topic)!.add(socket)
    socket.send(JSON.stringify({ type: 'subscribed', topic }))
  })
  socket.on('error', () => {})
  socket.on('close', () => {
    if (sockets.get(deviceId) === socket) sockets.delete(deviceId)
    for (const members of topics.values()) members.delete(socket)
  })
})

app.post<Device>('/devices/:id/messages', async (request, reply) => {
  const socket = sockets.get(request.params.id)
  if (!socket) return await reply.code(404).send({ error: 'offline' })
  socket.send(JSON.stringify({ type: 'message', data: request.body }))
  return { status: 'sent' }
})

app.post<Device>('/devices/:id/calls/:method', async (request, reply) => {
  const socket = sockets.get(request.params.id)
  if (!socket) return await reply.code(404).send({ error: 'offline' })
  const id = ++lastCall
  const timer = setTimeout(() => calls.get(id)?.({ error: 'timeout' }), 10_000)
  const result = await new Promise(resolve => {
    calls.set(id, resolve)
    socket.send(JSON.stringify({ type: 'call', id, method: request.params.method, params: request.body }))
  })
  clearTimeout(timer)
  calls.delete(id)
  return result
})

app.post<Device>('/broadcast', async request => {
  const { topic } = request.query
  const to = topic === undefined ? sockets : topics.get(topic) ?? []
  const bytes = Buffer.from(JSON.stringify({ type: 'message', data: request.body }))
  for (const socket of to.values()) socket.send(bytes, { binary: false })
  return { status: 'sent' }
})

app.post<{ Body: string }>('/messages', async (request, reply) => {
  const receipts = request.body.trimEnd().split('\n').map(line => {
    const { to, data } = JSON.parse(line)
    const socket = sockets.get(to)
    socket?.send(JSON.stringify({ type: 'message', data }))
    return JSON.stringify({ to, status: socket ? 'sent' : 'offline' })
  })
  return await reply.type('application/x-ndjson').send(`${receipts.join('\n')}\n`)
})

setInterval(() => { for (const socket of sockets.values()) socket.ping() }, 30_000).unref()

await listenFastify(app)
