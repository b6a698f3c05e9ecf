import { randomInt } from 'node:crypto'
import { createServer } from 'node:net'

const [LOWEST, HIGHEST] = [10_000, 30_000]

/**
 * A free port that stays free while nobody listens on it: below those that the system gives to whoever asks for any. So nobody else
 * answers there meanwhile, and whoever calls does not reach himself.
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
