import type { FastifyBaseLogger, FastifyInstance, FastifyPluginAsync } from 'fastify'
import fp from 'fastify-plugin'
import { isListed, type Backplane } from './cluster/backplane.ts'
import { localBackplane } from './cluster/local.ts'
import { FlushScheduler } from './connection/flush-scheduler.ts'
import { Heartbeat } from './connection/heartbeat.ts'
import type { Session } from './connection/session.ts'
import { Admission } from './gateway/admission.ts'
import { assemble } from './gateway/assembly.ts'
import { addBuiltins } from './gateway/builtins.ts'
import type { Devices, Protect } from './gateway/devices.ts'
import { Dialer } from './gateway/dial.ts'
import { clusterLinkLogger, pluginLog } from './gateway/log.ts'
import { registerOptions, settingsOf, type Options, type Settings } from './gateway/options.ts'
import { sessionHost } from './gateway/session-host.ts'
import { closeConnections, stopNode } from './gateway/shutdown.ts'
import type { WebhookOptions } from './gateway/webhook-options.ts'
import { Delivery } from './messaging/delivery.ts'
import { ExpirySweeper } from './messaging/expiry-sweeper.ts'
import { Subscriptions } from './messaging/subscriptions.ts'
import { EventFeed } from './observe/event-feed.ts'
import { logDeadLetter, WEBHOOK_PREFIX } from './observe/webhook-letter.ts'
import type { Webhooks } from './observe/webhooks/index.ts'
import { jsonrpc } from './protocol/jsonrpc.ts'
import type { Codec } from './protocol/message.ts'
import './protocol/node-reasons.ts'
import { addRestRoutes } from './rest/index.ts'
import { protectScope } from './rest/protect.ts'
import { memoryMailbox } from './storage/memory.ts'
import { connectTcp, connectWebSocket } from './transports/outbound.ts'
import { WebSocketTransport } from './transports/websocket/index.ts'
import { WorkerPool } from './workers/pool.ts'

/** Fastify's defaults: the longest path parameter, and the time a `preClose` hook may take. */
const DEFAULT_MAX_PARAM_LENGTH = 100
const DEFAULT_PLUGIN_TIMEOUT_MS = 10_000

/** Fastify takes a rejection without a reason for success, so give it one. */
const devicesPlugin: FastifyPluginAsync<Options> = async (app, options) => {
  try {
    await register(app, options)
  } catch (error) {
    throw error ?? new Error('fastify-devices: registration failed without a reason: a function of the application threw or rejected with nothing')
  }
}

const register: FastifyPluginAsync<Options> = async (app, options) => {
  if (app.hasDecorator('devices')) throw new Error('fastify-devices is registered in this scope already')
  const settings = settingsOf(options)
  checkDrainTimeout(app, settings)
  const { mailbox = memoryMailbox(), backplane = localBackplane() } = settings
  const codecs = settings.codecs ?? [jsonrpc({ depth: settings.maxDepth, batch: settings.maxBatch })]
  const lineCodec = jsonrpc({ depth: settings.maxDepth, batch: settings.maxBatch, bytes: 'base64' })
  const log = pluginLog(app.log, settings.logLevel)
  const workers = new WorkerPool(backplane, log)
  const dialer = dialerFor(codecs[0]!, lineCodec)
  let draining = false
  const isDraining = () => draining
  const protect: Protect = (scope, action) => protectScope(scope, action, { settings, stats, isDraining })
  const { topic, ...node } = assemble({ settings, mailbox, backplane, log, elsewhere: workers, dials: dialer, protect, scope: app.prefix, webhooks: async () => await webhooks?.report() ?? [] })
  const { registry, letters, dispatcher, devices, stats } = node
  const feed = new EventFeed({ ...node, backplane, log })
  const webhooks = settings.webhooks && await webhooksFor(settings.webhooks, { ...node, mailbox, backplane, log })
  const subscriptions = new Subscriptions(backplane, registry, { maxTopics: settings.maxTopics, topic }, log)
  const delivery = new Delivery(letters, settings, log, node.checks)
  await workers.open()
  addBuiltins(node.methods, { ...node, subscriptions, workers, authorizeTopic: authorizeTopicOf(settings), topic })
  const host = sessionHost({ ...node, settings, flushScheduler: new FlushScheduler(), log, delivery, subscriptions })
  watchLink(backplane, { registry, log, node: node.node })

  const maxIdLength = settings.rest ? app.initialConfig.routerOptions?.maxParamLength ?? DEFAULT_MAX_PARAM_LENGTH : Infinity
  const gateway = new Admission({ ...node, host, codecs, rules: settings, maxIdLength, isDraining, backplane, subscriptions })
  const transports = [new WebSocketTransport(settings), dialer, ...settings.transports]
  for (const transport of transports) await transport.open({ app, gateway, limits: settings, codec: lineCodec, log })
  app.decorate('devices', devices)
  if (settings.rest) await app.register(async scope => addRestRoutes(scope, { devices, dispatcher, feed, settings, stats, isDraining }), registerOptions(settings))

  const heartbeat = new Heartbeat(registry, settings)
  const sweeper = new ExpirySweeper({ mailbox, node: node.node, log, onExpired: expired => {
    if (isListed(expired.deviceId)) letters.expired(expired)
    else if (!webhooks?.expired(expired)) logDeadLetter(log, expired.deviceId.slice(WEBHOOK_PREFIX.length), expired.receipt) // of an endpoint that other nodes have, or had
  } })
  sweeper.start()
  if (webhooks) app.addHook('onReady', async () => webhooks.start())
  app.addHook('preClose', async () => {
    draining = true
    node.readiness.close()
    await closeConnections({ app, limits: settings, registry, transports, delivery, letters, log })
    feed.close()
  })
  app.addHook('onClose', async () => await stopNode({ heartbeat, subscriptions, workers, dispatcher, sweeper, letters, backplane, webhooks }))
}

function checkDrainTimeout (app: FastifyInstance, { drainTimeout }: Settings): void {
  const { pluginTimeout = DEFAULT_PLUGIN_TIMEOUT_MS } = app.initialConfig
  if (pluginTimeout <= 0 || drainTimeout < pluginTimeout) return
  throw new Error(`fastify-devices: the option "drainTimeout" must be less than Fastify's pluginTimeout of ${pluginTimeout} ms, or closing fails`)
}

/** Once devices must authenticate, their topics need a decision too: without `authorizeTopic` they get none. */
function authorizeTopicOf ({ authorizeTopic, authenticate }: Settings): NonNullable<Settings['authorizeTopic']> {
  return authorizeTopic ?? (() => !authenticate)
}

function dialerFor (webCodec: Codec, lineCodec: Codec): Dialer {
  const webSocket = { connect: connectWebSocket, codec: webCodec }
  const tcp = { connect: connectTcp, codec: lineCodec }
  return new Dialer({ 'ws:': webSocket, 'wss:': webSocket, 'tcp:': tcp, 'unix:': tcp })
}

/** Loaded only with the option. */
async function webhooksFor (options: WebhookOptions[], parts: ConstructorParameters<typeof Webhooks>[1]): Promise<Webhooks> {
  const { Webhooks } = await import('./observe/webhooks/index.ts')
  return new Webhooks(options, parts)
}

function watchLink (backplane: Backplane, { registry, log, node }: { registry: Iterable<Session>, log: FastifyBaseLogger, node: string }): void {
  const logLink = clusterLinkLogger(log, node)
  backplane.onLink?.(up => {
    logLink(up)
    // wake-ups from other nodes were lost while the link was down
    if (up) for (const session of registry) session.wake()
  })
  backplane.onTrouble?.(error => log.error({ err: error }, 'backplane error'))
}

declare module 'fastify' {
  interface FastifyInstance {
    /** The devices of this application: connected to this node, connected to another, or away. */
    devices: Devices
  }
}

export default fp(devicesPlugin, { name: 'fastify-devices', fastify: '5.x' })
