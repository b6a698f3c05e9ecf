import type { FastifyBaseLogger, FastifyInstance } from 'fastify'
import type { Backplane } from '../cluster/backplane.ts'
import type { Heartbeat } from '../connection/heartbeat.ts'
import type { Registry } from '../connection/registry.ts'
import type { Delivery } from '../messaging/delivery.ts'
import type { Dispatcher } from '../messaging/dispatcher.ts'
import type { ExpirySweeper } from '../messaging/expiry-sweeper.ts'
import type { Letters } from '../messaging/letters.ts'
import type { Subscriptions } from '../messaging/subscriptions.ts'
import { invoke } from '../protocol/user-code.ts'
import { drain, type DrainLimits } from './drain.ts'
import type { Transport } from './transport.ts'

interface OpenConnections {
  app: FastifyInstance
  limits: DrainLimits
  registry: Registry
  transports: Transport[]
  delivery: Delivery
  letters: Letters
  log: FastifyBaseLogger
}

/** Runs before the server closes: stops deliveries, drains the sessions, and closes the transports by `drainTimeout`. */
export async function closeConnections ({ app, limits, registry, transports, delivery, letters, log }: OpenConnections): Promise<void> {
  delivery.pause()
  letters.stopWaiting()
  const deadline = Date.now() + limits.drainTimeout
  // the server waits for idle connections and for unfinished requests without a limit
  const timer = setTimeout(() => app.server.closeAllConnections?.(), limits.drainTimeout).unref() // HTTP/2 lacks the method
  app.server.once('close', () => clearTimeout(timer))
  await drain(registry, limits)
  await Promise.all(transports.map(transport =>
    invoke(() => transport.close(deadline)).catch(error => log.error({ err: error }, 'transport close failed'))))
}

interface RunningParts {
  heartbeat: Heartbeat
  subscriptions: Subscriptions
  workers: { close (): void }
  dispatcher: Dispatcher
  sweeper: ExpirySweeper
  letters: Letters
  backplane: Backplane
  webhooks: { close (): Promise<void> } | undefined
}

/** Runs after the server has closed: stops the timers, then closes the mailbox, then the backplane, even if the mailbox fails. */
export async function stopNode ({ heartbeat, subscriptions, workers, dispatcher, sweeper, letters, backplane, webhooks }: RunningParts): Promise<void> {
  heartbeat.stop()
  subscriptions.close()
  workers.close()
  dispatcher.close()
  try {
    await webhooks?.close()
    await sweeper.close()
    await letters.close()
  } finally {
    await backplane.close?.()
  }
}
