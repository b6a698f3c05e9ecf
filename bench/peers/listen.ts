import { once } from 'node:events'
import type { Server } from 'node:http'
import type { AddressInfo } from 'node:net'
import type { FastifyInstance } from 'fastify'
import { serveCommands } from '../child.ts'

/** Listens on a free port, and serves the commands that every candidate has. */
export async function listen (server: Server): Promise<void> {
  server.listen({ port: 0, host: '127.0.0.1', backlog: 4_096 })
  await once(server, 'listening')
  answerCommands(server)
}

export async function listenFastify (app: FastifyInstance): Promise<void> {
  await app.listen({ port: 0, host: '127.0.0.1', backlog: 4_096 })
  answerCommands(app.server)
}

function answerCommands (server: Server): void {
  serveCommands({ port: () => (server.address() as AddressInfo).port, heap: heapAtRest })
}

/** Heap in use after garbage collection. */
async function heapAtRest (): Promise<number> {
  // Twice, with a tick between: objects with a finalizer are freed by the second collection.
  globalThis.gc!()
  await new Promise(resolve => setImmediate(resolve))
  globalThis.gc!()
  return process.memoryUsage().heapUsed
}
