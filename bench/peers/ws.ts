import { WebSocketServer } from 'ws'
import { postServer } from './post-server.ts'
import { listen } from './listen.ts'

// A loop over the clients of `ws`.

const server = postServer((_path, body) => {
  const bytes = Buffer.from(body)
  for (const client of sockets.clients) client.send(bytes, { binary: false })
  return { sent: sockets.clients.size }
})
const sockets = new WebSocketServer({ server })

await listen(server)
