import { Server, type Socket } from 'socket.io'
import { postServer } from './post-server.ts'
import { listen } from './listen.ts'

// Socket.IO 4 on a bare HTTP server, over WebSockets only. Rooms serve as topics, acknowledgements as calls.

const devices = new Map<string, Socket>()

const server = postServer(async (path, body) => {
  const data = JSON.parse(body)
  const [what, topic] = path[0]!.split('?topic=')
  if (what === 'broadcast') (topic === undefined ? io : io.to(topic)).emit('message', data)
  else if (path[2] === 'calls') return await devices.get(path[1]!)!.timeout(10_000).emitWithAck('call', data)
  else devices.get(path[1]!)!.emit('message', data)
  return { status: 'sent' }
})

const io = new Server(server, { transports: ['websocket'], serveClient: false })
io.on('connection', async socket => {
  const { deviceId, topic } = socket.handshake.auth
  devices.set(deviceId, socket)
  if (topic !== undefined) await socket.join(topic)
  socket.on('echo', (params, done) => done(params))
  socket.on('disconnect', () => { if (devices.get(deviceId) === socket) devices.delete(deviceId) })
})

await listen(server)
