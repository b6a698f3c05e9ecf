import { randomInt } from 'node:crypto'
import { createServer } from 'node:net'

const [LOWEST, HIGHEST] = [10_000, 30_000]

/**
 * A free port below the ephemeral range, so that the system assigns it to no other socket while nothing listens on it. A client that connects
 * meanwhile is refused, and cannot connect to itself.
 */
export async function freePort (): Promise<number> {
  for (;;) {
    const port = randomInt(LOWEST, HIGHEST)
    const server = createServer()
    const isFree = await new Promise<boolean>(resolve => {
      server.once('error', () => resolve(false)).listen(port, '127.0.0.1', () => server.close(() => resolve(true)))
    })
    if (isFree) return port
  }
}
