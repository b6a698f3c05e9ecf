import { WebSocketServer } from 'ws'
import { posts } from './posts.ts'
import { stand } from './stand.ts'

// A loop over the clients of `ws`.

const server = posts((_path, body) => {
  const bytes = Buffer.from(body)
  for (const client of sockets.clients) client.send(bytes, { binary: false })
  return { sent: sockets.clients.size }
})
const sockets = new WebSocketServer({ server })

await stand(server)
