import websocket from '@fastify/websocket'
import Fastify from 'fastify'
import type { WebSocket } from 'ws'
import { childSettings } from '../child.ts'
import { listenFastify } from './listen.ts'
import { openChannel } from './node-channel.ts'

// What a developer writes for several nodes without this package: a Map of sockets; a message for any other device is broadcast to all
// nodes. No node reports a missing device, so a send to an offline device succeeds.

interface Device {
  Params: { id: string, method: string }
  Querystring: { deviceId: string }
}

const TIMEOUT = 10_000

const app = Fastify()
const sockets = new Map<string, WebSocket>()
const calls = new Map<number, (result: unknown) => void>()
let lastCall = 0

const channel = await openChannel(childSettings(), (message, answer) => void receive(message, answer))

async function receive (message: string, answer: (message: string) => void): Promise<void> {
  const { id, method, data } = JSON.parse(message) as { id: string, method?: string, data: unknown }
  const socket = sockets.get(id)
  if (!socket) return
  if (method === undefined) send(socket, data)
  else answer(JSON.stringify(await call(socket, method, data)))
}

function send (socket: WebSocket, data: unknown): void {
  socket.send(JSON.stringify({ type: 'message', data }))
}

async function call (socket: WebSocket, method: string, params: unknown): Promise<unknown> {
  const id = ++lastCall
  const timer = setTimeout(() => calls.get(id)?.({ error: 'timeout' }), TIMEOUT)
  const result = await new Promise(resolve => {
    calls.set(id, resolve)
    socket.send(JSON.stringify({ type: 'call', id, method, params }))
  })
  clearTimeout(timer)
  calls.delete(id)
  return result
}

await app.register(websocket)

app.get<Device>('/ws', { websocket: true }, (socket, request) => {
  const { deviceId } = request.query
  sockets.set(deviceId, socket)
  socket.on('message', bytes => {
    const { id, result } = JSON.parse(bytes.toString())
    calls.get(id)?.(result)
  })
  socket.on('error', () => {})
  socket.on('close', () => {
    if (sockets.get(deviceId) === socket) sockets.delete(deviceId)
  })
})

app.post<Device>('/devices/:id/messages', async request => {
  const { id } = request.params
  const socket = sockets.get(id)
  if (socket) send(socket, request.body)
  else channel.publish(JSON.stringify({ id, data: request.body }))
  return { status: 'sent' }
})

app.post<Device>('/devices/:id/calls/:method', async request => {
  const { id, method } = request.params
  const socket = sockets.get(id)
  if (socket) return await call(socket, method, request.body)
  return JSON.parse(await channel.ask(JSON.stringify({ id, method, data: request.body })))
})

await listenFastify(app)
