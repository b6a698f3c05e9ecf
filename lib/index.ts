import type { FastifyPluginAsync } from 'fastify'
import fp from 'fastify-plugin'
import { Admission } from './admission.ts'
import { linkLog } from './backplane.ts'
import { localBackplane } from './backplanes/local.ts'
import { addBuiltins } from './builtins.ts'
import { jsonrpc } from './codecs/jsonrpc.ts'
import { Delivery } from './delivery.ts'
import type { Devices } from './devices.ts'
import { Dials } from './dial.ts'
import { drain } from './drain.ts'
import { Heartbeat } from './heartbeat.ts'
import { memoryMailbox } from './mailboxes/memory.ts'
import { assemble } from './node.ts'
import { settingsOf, type Options } from './options.ts'
import { isThenable } from './peer.ts'
import { hideAccidents } from './routes/accident.ts'
import { acceptBodies } from './routes/body.ts'
import { broadcast } from './routes/broadcast.ts'
import { bulk } from './routes/bulk.ts'
import { calls } from './routes/calls.ts'
import { devices as deviceRoutes } from './routes/devices.ts'
import { guardRest } from './routes/guard.ts'
import { messages } from './routes/messages.ts'
import { topics } from './routes/topics.ts'
import type { Home } from './session.ts'
import { Subscriptions } from './subscriptions.ts'
import { promiseOf, safeLog } from './thrown.ts'
import { Tide } from './tide.ts'
import { overStream, overWebSocket } from './transports/outward.ts'
import './vocabulary.ts'
import { WebSocketDoor } from './transports/websocket.ts'
import { Workers } from './workers.ts'

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
  const workers = new Workers(backplane, log)
  const lines = jsonrpc({ depth: settings.maxDepth, batch: settings.maxBatch, bytes: 'base64' })
  const [web, line] = [{ way: overWebSocket, codec: codecs[0]! }, { way: overStream, codec: lines }]
  const dials = new Dials({ 'ws:': web, 'wss:': web, 'tcp:': line, 'unix:': line })
  const { node, topic, stats, events, registry, letters, outbox, methods, devices } = assemble({ settings, mailbox, backplane, log, elsewhere: workers, dials })
  const tide = new Tide()
  const subscriptions = new Subscriptions(backplane, registry, { maxTopics: settings.maxTopics, topic }, log)
  const delivery = new Delivery(letters, settings, log)
  // once devices must prove who they are, what they may listen to is not for them to say
  const authorizeTopic = settings.authorizeTopic ?? (() => !settings.authenticate)
  await workers.open()
  addBuiltins(methods, { subscriptions, outbox, events, workers, authorizeTopic, topic })

  const home: Home = {
    node,
    limits: settings,
    stats,
    tide,
    log,
    answer (session, { kind, method, params }, inbound) {
      const answer = methods.answer(method, params, session, inbound)
      if (kind !== 'notice' || method !== 'message' || !isThenable(answer)) return answer
      // on its way to a worker, and nobody waits: it is none of the calls that a device may have in flight
      answer.then(undefined, () => {})
    },
    left (session) {
      const wasHere = registry.leave(session)
      delivery.stop(session)
      subscriptions.drop(session)
      if (!wasHere) return
      log.info({ deviceId: session.id, generation: session.generation, code: session.left!.code }, 'device disconnected')
      events.emit('disconnected', session, session.left!)
    },
    ring: session => delivery.ring(session)
  }

  const logLink = linkLog(log, node)
  backplane.onLink?.(up => {
    logLink(up)
    // whoever rang meanwhile was not heard
    if (up) for (const session of registry) session.ring()
  })
  backplane.onTrouble?.(error => log.error({ err: error }, 'the backplane is in trouble'))

  let draining = false
  const isDraining = () => draining
  const maxIdLength = app.initialConfig.routerOptions?.maxParamLength ?? ROUTER_DEFAULT
  const admission = new Admission({
    home, codecs, rules: settings, maxIdLength, isDraining, registry, backplane, subscriptions, letters, events
  })
  const doors = [new WebSocketDoor(settings), dials, ...settings.doors]
  for (const door of doors) await door.open({ app, entrance: admission, limits: settings, codec: lines })

  app.decorate('devices', devices)

  await app.register(async rest => {
    acceptBodies(rest)
    guardRest(rest, { settings, stats, isDraining })
    hideAccidents(rest)
    rest.addHook('onRoute', route => { route.bodyLimit ??= settings.maxMessage })
    for (const route of [deviceRoutes, messages, calls, topics, broadcast, bulk]) route(rest.withTypeProvider(), { devices, outbox, settings })
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
    await Promise.all(doors.map(door => promiseOf(() => door.close(deadline)).catch(error => log.error({ err: error }, 'a door could not be closed'))))
  })

  app.addHook('onClose', async () => {
    heartbeat.stop()
    subscriptions.close()
    workers.close()
    outbox.close()
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

export { localBackplane } from './backplanes/local.ts'
export { jsonrpc, type JsonRpcOptions } from './codecs/jsonrpc.ts'
export { answers, Failure, goodbyes, Refusal, type Detail, type FailureOptions, type Flaw, type Goodbye, type Reason } from './errors.ts'
export { memoryMailbox, type MemoryMailboxOptions } from './mailboxes/memory.ts'
export type { Answer, Backplane, Change, Listener, Owner, Ownership, Page, Presence, Publication, Reach, Request, Unwatch } from './backplane.ts'
export type { Dialled, DialOptions, DialStatus } from './dial.ts'
export type { Door, DoorLimits, Entrance, Ground } from './door.ts'
export type { AuthorizeTopic } from './builtins.ts'
export type { Devices, Portrait } from './devices.ts'
export type { EventMap, EverywhereMap, LetterEvent } from './events.ts'
export type { Authenticate, Introduction } from './introduction.ts'
export type { Caps, Ending, Expired, Kept, Letter, Mailbox, Put, Receipt } from './mailbox.ts'
export type { Call, Codec, Failed, Id, Invalid, Message, Named, Notice, Result } from './message.ts'
export type { Handler, HandlerContext, Schemas } from './methods.ts'
export type { Guard, Options } from './options.ts'
export type { Sent, SendOptions } from './outbox.ts'
export type { Credentials, Description, Device, Leave } from './device.ts'
export type { LettersPage } from './letters.ts'
export type { CallOptions } from './peer.ts'
export type { Counters } from './stats.ts'
export type { Addressed } from './volley.ts'
