import { timingSafeEqual } from 'node:crypto'
import type { Writable } from 'node:stream'
import Fastify, { type FastifyInstance } from 'fastify'
import devicesConsole from '../../console/index.ts'
import devices, { type Options } from '../../index.ts'
import type { GatewayConfig } from './config.ts'
import { openEngines, type EngineSettings } from './engines.ts'
import { addMetrics } from './metrics.ts'
import { probes } from './probes.ts'

export interface GatewaySettings extends EngineSettings {
  /** Devices and REST callers must send it. Without a token, only this machine may connect. */
  token?: string | undefined
  /** Addresses of proxies, whose `X-Forwarded-For` is believed. */
  trustProxy?: string | undefined
  /** Once it is aborted, `/readyz` answers 503. */
  signal: AbortSignal
  config?: GatewayConfig
  log: { level: string, stream: Writable }
}

const MAX_DEVICE_ID_LENGTH = 128

/** A Fastify application with the plugin, which does not listen yet. */
export async function createGateway ({ token, trustProxy, signal, config = {}, log, ...engineSettings }: GatewaySettings): Promise<FastifyInstance> {
  const { options = {}, default: extension } = config
  const hasEngines = options.mailbox !== undefined || options.backplane !== undefined
  const engines = hasEngines ? {} : await openEngines(engineSettings)
  const app = Fastify({
    logger: log,
    ...(trustProxy !== undefined && { trustProxy }),
    routerOptions: { maxParamLength: MAX_DEVICE_ID_LENGTH },
    return503OnClosing: false // the plugin answers during the drain, and says when to come back
  })
  try {
    await app.register(devices, { ...accessRules(token), ...engines, ...options })
  } catch (error) { // the plugin closes only the engines of an application that it is part of
    await Promise.all([engines.mailbox?.close?.(), engines.backplane?.close?.()])
    throw error
  }
  try {
    await app.register(probes, { signal })
    await addMetrics(app as unknown as FastifyInstance)
    if (options.rest !== false) await app.register(devicesConsole)
    if (extension) await app.register(extension)
  } catch (error) {
    await app.close()
    throw error
  }
  return app as unknown as FastifyInstance
}

function accessRules (token: string | undefined): Options {
  if (token === undefined) return {}
  const isToken = (given = '') => {
    const [mine, theirs] = [Buffer.from(token), Buffer.from(given)]
    return mine.length === theirs.length && timingSafeEqual(mine, theirs)
  }
  return {
    authenticate: ({ token }) => isToken(token),
    guard: ({ headers }) => isToken(headers.authorization?.replace(/^Bearer /i, '')),
    authorizeTopic: () => true
  }
}
