import type { FastifyPluginAsync } from 'fastify'

interface ProbeOptions {
  /** Once it is aborted, the node is about to drain. */
  signal: AbortSignal
}

/**
 * `GET /healthz` says that the process answers, `GET /readyz` whether the node can do its work. They have no guard, because probes have no token: their
 * answers consist of fixed texts.
 */
export const probes: FastifyPluginAsync<ProbeOptions> = async (app, { signal }) => {
  app.addHook('onRequest', async (_request, reply) => { reply.header('cache-control', 'no-store') })

  app.get('/healthz', { logLevel: 'silent' }, async () => ({ status: 'ok' }))

  app.get('/readyz', { logLevel: 'silent' }, async (_request, reply) => {
    const { ok, mailbox, backplane, draining } = await app.devices.health()
    const isLeaving = draining || signal.aborted
    if (ok && !isLeaving) return { status: 'ok' }
    const reasons = [
      ...Object.entries({ mailbox, backplane }).flatMap(([name, { ok, reason }]) => ok ? [] : [`${name}: ${reason}`]),
      ...(isLeaving ? ['draining'] : [])
    ]
    return await reply.code(503).send({ status: 'unavailable', reasons })
  })
}
