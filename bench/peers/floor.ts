import { createHash } from 'node:crypto'
import type { Duplex } from 'node:stream'
import { toWire } from '../../lib/transports/websocket/frame.ts'
import { postServer } from './post-server.ts'
import { listen } from './listen.ts'

// The least that Node can do: `http` for requests, one prebuilt frame and one write per device. No heartbeat, no backpressure.

const devices = new Map<string, Duplex>()

const server = postServer((path, body) => {
  const wire = toWire(body)
  if (path[0] === 'broadcast') {
    for (const device of devices.values()) device.write(wire)
    return { sent: devices.size }
  }
  devices.get(path[1]!)!.write(wire)
  return { status: 'sent' }
})

server.on('upgrade', (request, socket) => {
  const accept = createHash('sha1').update(`${request.headers['sec-websocket-key']}258EAFA5-E914-47DA-95CA-C5AB0DC85B11`).digest('base64')
  socket.write(`HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: ${accept}\r\n\r\n`)
  const deviceId = request.url!.split('=')[1]!
  devices.set(deviceId, socket)
  socket.on('error', () => {})
  socket.on('close', () => devices.delete(deviceId))
  socket.resume()
})

await listen(server)
