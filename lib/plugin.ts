import type { FastifyPluginAsync } from 'fastify'
import fp from 'fastify-plugin'
import { Admission } from './gateway/admission.ts'
import { localBackplane } from './cluster/local.ts'
import { addBuiltins } from './gateway/builtins.ts'
import { jsonrpc } from './protocol/jsonrpc.ts'
import { Delivery } from './messaging/delivery.ts'
import type { Devices } from './gateway/devices.ts'
import { Dialer } from './gateway/dial.ts'
import { drain } from './gateway/drain.ts'
import { Heartbeat } from './connection/heartbeat.ts'
import { memoryMailbox } from './storage/memory.ts'
import { assemble } from './gateway/assembly.ts'
import { settingsOf, type Options } from './gateway/options.ts'
import { isThenable } from './protocol/peer.ts'
import { hideAccidents } from './rest/internal-errors.ts'
import { acceptBodies } from './rest/body.ts'
import { broadcast } from './rest/broadcast.ts'
import { bulk } from './rest/bulk.ts'
import { calls } from './rest/calls.ts'
import { devices as deviceRoutes } from './rest/devices.ts'
import { guardRest } from './rest/guard.ts'
import { messages } from './rest/messages.ts'
import { topics } from './rest/topics.ts'
import type { Session } from './connection/session.ts'
import type { SessionHost } from './connection/session-host.ts'
import { Subscriptions } from './messaging/subscriptions.ts'
import { invoke } from './protocol/user-code.ts'
import { clusterLinkLogger, safeLog } from './gateway/log.ts'
import { FlushScheduler } from './connection/flush-scheduler.ts'
import { connectTcp, connectWebSocket } from './transports/outbound.ts'
import './protocol/vocabulary.ts'
import { WebSocketTransport } from './transports/websocket/index.ts'
import { WorkerPool } from './workers/pool.ts'

/** Fastify's defaults: the length of a parameter in a path, and the time of a hook that runs before it closes. */
const ROUTER_DEFAULT = 100
const PLUGIN_TIMEOUT = 10_000

/** Fastify takes a rejection with nothing for success. */
const devicesPlugin: FastifyPluginAsync<Options> = async (app, options) => {
  try {
    await register(app, options)
  } catch (error) {
    throw error ?? new Error('fastify-devices: a part of the application failed while it was registered, and did not say why')
  }
}

const register: FastifyPluginAsync<Options> = async (app, options) => {
  if (app.hasDecorator('devices')) throw new Error('fastify-devices is registered in this scope already')
  const settings = settingsOf(options)
  const mailbox = settings.mailbox ?? memoryMailbox()
  const backplane = settings.backplane ?? localBackplane()
  const codecs = settings.codecs ?? [jsonrpc({ depth: settings.maxDepth, batch: settings.maxBatch })]
  const { pluginTimeout = PLUGIN_TIMEOUT } = app.initialConfig
  if (pluginTimeout > 0 && settings.drainTimeout >= pluginTimeout) {
    throw new Error(`fastify-devices: the option "drainTimeout" must be less than Fastify's pluginTimeout of ${pluginTimeout} ms, or closing fails`)
  }

  const log = safeLog(app.log)
  const workers = new WorkerPool(backplane, log)
  const lines = jsonrpc({ depth: settings.maxDepth, batch: settings.maxBatch, bytes: 'base64' })
  const [web, line] = [{ way: connectWebSocket, codec: codecs[0]! }, { way: connectTcp, codec: lines }]
  const dials = new Dialer({ 'ws:': web, 'wss:': web, 'tcp:': line, 'unix:': line })
  const { node, topic, stats, events, registry, letters, dispatcher, methods, devices } = assemble({ settings, mailbox, backplane, log, elsewhere: workers, dials })
  const tide = new FlushScheduler()
  const subscriptions = new Subscriptions(backplane, registry, { maxTopics: settings.maxTopics, topic }, log)
  const delivery = new Delivery(letters, settings, log)
  // once devices must prove who they are, what they may listen to is not for them to say
  const authorizeTopic = settings.authorizeTopic ?? (() => !settings.authenticate)
  await workers.open()
  addBuiltins(methods, { subscriptions, dispatcher, events, workers, authorizeTopic, topic })

  const home: SessionHost<Session> = {
    node,
    limits: settings,
    stats,
    flushScheduler: tide,
    log,
    answer (session, { kind, method, params }, inbound) {
      const answer = methods.answer(method, params, session, inbound)
      if (kind !== 'notice' || method !== 'message' || !isThenable(answer)) return answer
      // on its way to a worker, and nobody waits: it is none of the calls that a device may have in flight
      answer.then(undefined, () => {})
    },
    onClosed (session) {
      const wasHere = registry.leave(session)
      delivery.stop(session)
      subscriptions.drop(session)
      if (!wasHere) return
      log.info({ deviceId: session.id, generation: session.generation, code: session.left!.code }, 'device disconnected')
      events.emit('disconnected', session, session.left!)
    },
    wake: session => delivery.wake(session)
  }

  const logLink = clusterLinkLogger(log, node)
  backplane.onLink?.(up => {
    logLink(up)
    // whoever rang meanwhile was not heard
    if (up) for (const session of registry) session.wake()
  })
  backplane.onTrouble?.(error => log.error({ err: error }, 'the backplane is in trouble'))

  let draining = false
  const isDraining = () => draining
  const maxIdLength = app.initialConfig.routerOptions?.maxParamLength ?? ROUTER_DEFAULT
  const admission = new Admission({
    home, codecs, rules: settings, maxIdLength, isDraining, registry, backplane, subscriptions, letters, events
  })
  const transports = [new WebSocketTransport(settings), dials, ...settings.transports]
  for (const transport of transports) await transport.open({ app, gateway: admission, limits: settings, codec: lines })

  app.decorate('devices', devices)

  await app.register(async rest => {
    acceptBodies(rest)
    guardRest(rest, { settings, stats, isDraining })
    hideAccidents(rest)
    rest.addHook('onRoute', route => { route.bodyLimit ??= settings.maxMessage })
    for (const route of [deviceRoutes, messages, calls, topics, broadcast, bulk]) route(rest.withTypeProvider(), { devices, dispatcher, settings })
  }, { prefix: settings.prefix })

  const heartbeat = new Heartbeat(registry, settings)
  app.addHook('preClose', async () => {
    draining = true
    delivery.pause()
    letters.giveUp()
    const deadline = Date.now() + settings.drainTimeout
    // connections that never ask anything, or never finish asking, would hold the server up for ever
    const cut = setTimeout(() => app.server.closeAllConnections?.(), settings.drainTimeout).unref() // HTTP/2 has none
    app.server.once('close', () => clearTimeout(cut))
    await drain(registry, settings)
    await Promise.all(transports.map(transport => invoke(() => transport.close(deadline)).catch(error => log.error({ err: error }, 'a transport could not be closed'))))
  })

  app.addHook('onClose', async () => {
    heartbeat.stop()
    subscriptions.close()
    workers.close()
    dispatcher.close()
    try {
      await letters.close()
    } finally {
      await backplane.close?.()
    }
  })
}

declare module 'fastify' {
  interface FastifyInstance {
    /** The devices of this application: those here, those elsewhere, and those away. */
    devices: Devices
  }
}

export default fp(devicesPlugin, { name: 'fastify-devices', fastify: '5.x' })
