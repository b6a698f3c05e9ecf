import { once } from 'node:events'
import type { Server } from 'node:http'
import type { AddressInfo } from 'node:net'
import type { FastifyInstance } from 'fastify'
import { answer } from '../child.ts'

/** Listens on a free port, and answers what every candidate is asked. */
export async function stand (server: Server): Promise<void> {
  server.listen({ port: 0, host: '127.0.0.1', backlog: 4_096 })
  await once(server, 'listening')
  tell(server)
}

export async function standFastify (app: FastifyInstance): Promise<void> {
  await app.listen({ port: 0, host: '127.0.0.1', backlog: 4_096 })
  tell(app.server)
}

function tell (server: Server): void {
  answer({ port: () => (server.address() as AddressInfo).port, heap })
}

/** What is held at rest. */
async function heap (): Promise<number> {
  // twice, with a turn between: what waits for a finalizer goes with the second
  globalThis.gc!()
  await new Promise(resolve => setImmediate(resolve))
  globalThis.gc!()
  return process.memoryUsage().heapUsed
}
