import type { FastifyPluginAsync } from 'fastify'

/**
 * `GET /healthz` says that the process answers, `GET /readyz` whether the node can do its work. They have no guard, because probes have no token: their
 * answers consist of fixed texts.
 */
export const probes: FastifyPluginAsync = async app => {
  app.addHook('onRequest', async (_request, reply) => { reply.header('cache-control', 'no-store') })

  app.get('/healthz', { logLevel: 'silent' }, async () => ({ status: 'ok' }))

  app.get('/readyz', { logLevel: 'silent' }, async (_request, reply) => {
    const { ok, mailbox, backplane, draining } = await app.devices.health()
    if (ok) return { status: 'ok' }
    const reasons = [
      ...Object.entries({ mailbox, backplane }).flatMap(([name, { ok, reason }]) => ok ? [] : [`${name}: ${reason}`]),
      ...(draining ? ['draining'] : [])
    ]
    return await reply.code(503).send({ status: 'unavailable', reasons })
  })
}
